"""What matching says of itself."""

import math
from dataclasses import dataclass

from adapters_hub.data.pairs import PAIR
from adapters_hub.errors import SettingsError
from adapters_hub.library import languages
from adapters_hub.tasks.declaration import Declaration, TaskOptions, option


@dataclass(frozen=True, kw_only=True)
class MatchingOptions(TaskOptions):
    """Settings of matching."""

    pivot: str = option(
        "en", "a language the backbone knows: without positives, texts are matched to its"
    )
    depths: int = option(1, "how many layers are matched, evenly spaced, the last among them")
    words: float = option(
        1.0, "weight of words that mean each other (by IBM model 1), beside whole texts; 0: none"
    )
    strength: float = option(
        0.5, "how much of the delta is kept, WiSE-FT (arXiv:2109.01903): for texts unlike these"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "pivot", languages.canonical(self.pivot))
        if self.depths < 1:
            raise SettingsError(f"depths={self.depths}: must be 1 or more")
        if not 0 <= self.words < math.inf:
            raise SettingsError(f"words={self.words}: must be finite and not negative")
        if not 0 < self.strength <= 1:
            raise SettingsError(f"strength={self.strength}: must be above 0 and at most 1")


DECLARATION = Declaration(
    name="matching",
    class_name="Matching",
    pipeline_tag="feature-extraction",
    options=MatchingOptions,
    fields=PAIR,
    objectives=("match",),
)
