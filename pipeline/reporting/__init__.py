"""What `vp report` is made of: from a run, its caches and its dataset to one page."""
