"""What was measured of two adapters: the weight at which one was best beside the other."""

from dataclasses import dataclass

from adapters_hub.library.json_fields import Fields, as_count, as_line, as_number


@dataclass(frozen=True)
class PairWeight:
    """The weight at which a language adapter was best beside a domain adapter, on dev rows.

    It is kept with the domain adapter, under the language adapter's name.
    """

    weight: float  # 0: it only hurt
    hash: str | None  # of the language adapter that was measured
    task: str | None  # what that was trained for
    metric: str  # the domain adapter's task's
    alone: float  # the metric without the language adapter
    together: float  # with it, at the weight
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.alone:.4g} without it, {self.together:.4g} with it at "
            f"{self.weight:g}, on {self.rows} rows"
        )

    @classmethod
    def from_json(cls, data: object) -> "PairWeight":
        """From an object of its fields; raises `TypeError` that names what is wrong."""
        fields = Fields(data)
        return cls(
            weight=fields.need("weight", as_number),
            hash=fields.get("hash", as_line),
            task=fields.get("task", as_line),
            metric=fields.need("metric", as_line),
            alone=fields.need("alone", as_number),
            together=fields.need("together", as_number),
            rows=fields.need("rows", as_count),
        )
