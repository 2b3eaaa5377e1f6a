"""Files to rows, pairs and batches.

Knows formats and fields; never imports torch or transformers.
"""

from adapters_hub.data.reading import Splits, read_data, select, with_held_out
from adapters_hub.data.rows import Row

__all__ = ["Row", "Splits", "read_data", "select", "with_held_out"]
