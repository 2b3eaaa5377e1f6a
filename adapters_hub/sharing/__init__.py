"""What leaves the library for other people and other programs.

Knows blends as one adapter, files, and the forms that inference engines read. Does not know how
anything was trained.
"""
