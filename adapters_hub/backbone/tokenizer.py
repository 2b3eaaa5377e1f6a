"""A backbone with another engine under its tokenizer.

Knows where transformers keeps the `tokenizers.Tokenizer` of a fast tokenizer.
"""

import copy

from adapters_hub.backbone.backbone import Backbone


def with_engine(backbone: Backbone, engine: object) -> Backbone:
    """The same backbone, with a copy of its fast tokenizer that calls ``engine``, which does what
    `tokenizers.Tokenizer` does.
    """
    tokenizer = copy.copy(backbone.tokenizer)
    tokenizer._tokenizer = engine
    other = copy.copy(backbone)
    other.tokenizer = tokenizer
    return other
