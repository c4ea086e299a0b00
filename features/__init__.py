"""Videos in, embeddings on disk out: reads the dataset, runs the frozen encoder once, keeps every vector.

This floor knows no target and no fold.
"""
