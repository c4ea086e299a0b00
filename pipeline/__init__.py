"""One file per command, named as the command; the only floor that knows paths and both sides.

A stage takes a configuration and a console, writes whole files, and returns what it wrote.
"""
