"""Several adapters into one: plain functions on factors.

Knows matrices; does not know names, files, modules or rows.
"""
