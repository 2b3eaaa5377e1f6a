"""Rows in, results out: generate, embed, classify, answer, tag, translate, export.

Knows tasks and the runtime; trains nothing.
"""
