"""What retrieval says of itself."""

import math
from dataclasses import dataclass
from typing import Literal, cast, get_args

from adapters_hub.data.pairs import PAIR
from adapters_hub.errors import SettingsError
from adapters_hub.tasks.declaration import Declaration, Sample, TaskOptions, option

Pooling = Literal["mean", "cls", "last"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
"""How the hidden states of a text become one vector; see `adapters_hub.tasks.pooling`."""


def checked_pooling(name: str | None) -> Pooling | None:
    """A pooling's name, or None for the backbone's default; `SettingsError` for another text."""
    if name is None or name in POOLINGS:
        return cast("Pooling | None", name)
    raise SettingsError(f"pooling={name!r}: choose one of {', '.join(POOLINGS)}")


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(TaskOptions):
    """Settings of retrieval."""

    pooling: Pooling | None = option(
        None, "how hidden states become one vector; default: last in a decoder, else mean"
    )
    query_prompt: str = option("", "put before each text")
    document_prompt: str = option("", "put before each positive and negative")
    temperature: float = option(0.05, "what cosines are divided by")

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_pooling(self.pooling)
        if not 0 < self.temperature < math.inf:
            raise SettingsError(f"temperature={self.temperature}: must be above 0")


DECLARATION = Declaration(
    name="retrieval",
    class_name="Retrieval",
    pipeline_tag="feature-extraction",
    options=RetrievalOptions,
    fields=PAIR,
    objectives=("contrastive",),
    withstands=("segmentation", "words", "masks", "dropped words", "text"),  # of the query
    sample=Sample(settings={"columns": {"text": "question", "positive": "text"}}),
)
