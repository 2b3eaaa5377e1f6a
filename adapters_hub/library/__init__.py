"""Adapters on disk and their names: files, cards, languages, blends, fingerprints.

Knows files and names; never imports torch.
"""

from adapters_hub.library.library import Library

__all__ = ["Library"]
