"""What the JSON file of a matrix's cell holds; see `adapters_hub.evaluation.matrix`.

Differences are positive where what is judged helps, whichever way the metric goes.
"""

from typing import Literal, NotRequired, TypedDict

from adapters_hub.metrics.bootstrap import Estimate

FORMAT_VERSION = 1

Control = Literal["over source kept", "over wrong language", "over random"]
"""A composition's gain over one of the columns that it should beat."""

CONTROLS: dict[Control, str] = {
    "over source kept": "source kept",
    "over wrong language": "wrong language",
    "over random": "random",
}
"""Each of them, and that column."""


class Interval(TypedDict):
    """An `Estimate`: a number and its 95% interval, over rows and seeds."""

    mean: float
    low: float
    high: float


class Column(Interval):
    """A blend's score on test, in all and of each seed."""

    blend: str
    test: list[float]


Composed = TypedDict(
    "Composed",
    {
        "gain": Interval,  # over bare
        "composition_gain": Interval,  # over the better single adapter
        "hurts": bool,  # all of that interval is below 0
        "helps": bool,  # or above
        "over source kept": NotRequired[Interval],
        "over wrong language": NotRequired[Interval],
        "over random": NotRequired[Interval],
        "recovery": NotRequired[float | None],  # gain as a share of the oracle's
        "forgetting": NotRequired[Interval],  # what the language costs on rows of the source's
    },
)
"""What one method's composition is worth."""


class AdapterNames(TypedDict):
    """A cell's adapters: the language's, and the task's of each seed."""

    language: str | None
    domain: list[str]


class RowCounts(TypedDict):
    """How many rows the cell was measured on."""

    test: int
    dev: int


class CellFile(TypedDict):
    """The whole of it."""

    version: int
    language: str
    domain: str | None
    source: str
    task: str
    metric: str
    higher_is_better: bool
    backbone: str
    seeds: list[int]
    adapters: AdapterNames
    rows: RowCounts
    columns: dict[str, Column]
    best_single: str  # on dev
    dev: dict[str, float]  # by column
    transfer: Interval  # the task's adapter alone over bare
    composed: dict[str, Composed]  # by method
    predictors: NotRequired[dict[str, float | None]]


Cells = list[CellFile]


def interval(estimate: Estimate) -> Interval:
    """An estimate as the file has it."""
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
