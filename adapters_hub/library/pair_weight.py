"""What was measured of two adapters: the weight at which one was best beside the other."""

from dataclasses import dataclass, fields

_MOST = 1e300  # what is written in digits may be more than a float holds


def is_number(value: object) -> bool:
    """Whether a value that was read is a number that a float holds."""
    return isinstance(value, int | float) and -_MOST < value < _MOST


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
        """From an object of its fields; raises `TypeError` for what is none."""
        if not isinstance(data, dict):
            raise TypeError("a pair's weight is no object")
        pair = cls(**{field.name: data[field.name] for field in fields(cls) if field.name in data})
        texts = [text for text in (pair.metric, pair.hash, pair.task) if text is not None]
        numbers = (pair.weight, pair.alone, pair.together, pair.rows)
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            raise TypeError("a field of a pair that must be text is not")
        if not all(map(is_number, numbers)):
            raise TypeError("a field of a pair is not a number, or too large for one")
        return pair
