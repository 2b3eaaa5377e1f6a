"""Whole runs, from settings to what is shown: train a language or a domain, the matrix, the demo.

Knows every room below; the command line and the files in ``recipes/`` start what is here. Each
module with a run is also a program of its own, for ``accelerate launch -m``. Imports no torch
before a run starts.
"""
