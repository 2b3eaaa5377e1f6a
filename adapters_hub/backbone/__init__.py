"""The frozen transformers model: its sites, its task classes, its rows of token ids.

The only room that touches transformers' private API; does not know adapters.
"""
