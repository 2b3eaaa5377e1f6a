"""Paired bootstrap over rows and seeds: what a score, or a difference of scores, could have been.

Knows sums of tallies and a function of them; not tasks, models or what a column is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Score = Callable[[np.ndarray], np.ndarray]
_AT_ONCE = 2**22  # counts of units in memory at a time


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% percentile interval."""

    mean: float
    low: float
    high: float

    @property
    def sure(self) -> int:
        """1 where the whole interval is above 0, -1 where it is below, else 0."""
        return int(self.low > 0) - int(self.high < 0)


class Resampled:
    """Scores of several columns on the same rows, of several seeds, drawn again together.

    ``tallies``: column → one (units, k) array a seed, the same units in all. Each resample draws
    units with replacement, and seeds too (Efron and Tibshirani 1993, chapter 8), the same ones for
    every column, so that differences of columns are paired.
    """

    def __init__(
        self,
        tallies: Mapping[str, Sequence[np.ndarray]],
        score: Score,
        resamples: int,
        seed: int = 0,
    ) -> None:
        sizes = {array.shape[:1] for arrays in tallies.values() for array in arrays}
        seeds = {len(arrays) for arrays in tallies.values()}
        if len(sizes) != 1 or len(seeds) != 1:
            raise ValueError(f"columns of {sorted(sizes)} units and {sorted(seeds)} seeds")
        (units,), (of_seeds,) = sizes.pop(), seeds
        rng = np.random.default_rng(seed)
        self.points = {
            name: float(np.mean([score(array.sum(0)) for array in arrays]))
            for name, arrays in tallies.items()
        }
        drawn: dict[str, list[np.ndarray]] = {name: [] for name in tallies}
        chunk = max(1, _AT_ONCE // units)
        for start in range(0, resamples, chunk):
            count = min(chunk, resamples - start)
            rows = rng.multinomial(units, np.full(units, 1 / units), size=count).astype(float)
            which = rng.multinomial(of_seeds, np.full(of_seeds, 1 / of_seeds), size=count)
            for name, arrays in tallies.items():
                scores = np.stack([score(rows @ array) for array in arrays], axis=1)
                drawn[name].append((scores * which).sum(1) / of_seeds)
        self.samples = {name: np.concatenate(parts) for name, parts in drawn.items()}

    def estimate(self, column: str, other: str | None = None, sign: float = 1.0) -> Estimate:
        """A column's mean over seeds, or how much it is above another one, times ``sign``."""
        point, samples = self.points[column], self.samples[column]
        if other is not None:
            point, samples = point - self.points[other], samples - self.samples[other]
        low, high = np.quantile(sign * samples, (0.025, 0.975))
        return Estimate(sign * point, float(low), float(high))
