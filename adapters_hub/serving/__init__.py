"""What servers plug in: a name that a client asks for becomes one adapter in files.

Knows blends, libraries and what a server asks of its plugins. Loads no backbone.
"""
