"""What a matrix by language and domain is made with: a run's settings, and a few more.

Knows the settings of a run; does not know what a matrix does with them.
"""

from dataclasses import dataclass

from adapters_hub.errors import SettingsError
from adapters_hub.training.settings import TrainingSettings, setting, takes_every_name


@takes_every_name
@dataclass(frozen=True)
class MatrixSettings(TrainingSettings):
    """A run's settings, and what a matrix by language and domain needs beside them."""

    source: str = setting("en", "the language that the task's adapter is trained in", "matrix")
    methods: tuple[str, ...] = setting(
        ("sum",), "how language and domain are composed: fitted, or one of `compose`'s", "matrix"
    )
    seeds: int = setting(3, "trainings of everything, from --seed on", "matrix")
    rows: int = setting(200, "dev and test rows of a cell at most; 0: all", "matrix")
    resamples: int = setting(2000, "bootstrap samples of an interval", "matrix")
    results: str = setting(
        "matrix", "folder of the cells, a JSON each, and of what was trained", "matrix"
    )
    benchmark: str | None = setting(
        None, "the data's task on the Hub, if that is a benchmark ({language}: a cell's)", "matrix"
    )
    oracle: bool = setting(True, "train an adapter in every cell too, to compare with", "matrix")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "resamples"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)}: must be 1 or more")
        if self.rows < 0:
            raise SettingsError(f"rows={self.rows}: must be 0 or more")
