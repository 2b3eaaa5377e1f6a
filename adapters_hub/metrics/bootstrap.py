"""What a number could have been, by the bootstrap: scores, their differences, rank correlations.

Knows sums of tallies and a function of them, and plain numbers; not tasks, models or what a column
is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapters_hub.errors import DataError

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


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ over ``n`` pairs of values, and its 95% interval; None where not defined."""

    rho: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def is_supported(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


def spearman(
    predictors: Sequence[float], gains: Sequence[float], seed: int = 0, draws: int = 2000
) -> Correlation:
    """Spearman's rank correlation, ranks of ties averaged, with a bootstrap 95% interval.

    The interval has the 2.5 and 97.5 percentiles of ρ over ``draws`` resamples of the pairs
    (percentile bootstrap, Efron 1979), those with one value only left out. It takes pairs for
    independent: where they share adapters, as the cells of a matrix do, it is too narrow; below
    some ten pairs it is rough. Raises `DataError` for fewer than 3 pairs, lists of different
    lengths, and numbers that are not finite.
    """
    if len(predictors) != len(gains) or len(gains) < 3:
        raise DataError(
            f"{len(predictors)} predictions for {len(gains)} gains: a correlation needs as many of "
            "both, 3 or more"
        )
    values = np.array([predictors, gains], dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError("a prediction or a gain is not a finite number")
    rho, count = _rho(values), values.shape[1]
    random = np.random.default_rng(seed)
    drawn = (_rho(values[:, random.integers(count, size=count)]) for _ in range(draws))
    known = [value for value in drawn if value is not None]
    if rho is None or not known:
        return Correlation(rho, None, None, count)
    low, high = np.percentile(known, [2.5, 97.5])
    return Correlation(rho, float(low), float(high), count)


def correlate(
    seen: Sequence[Mapping[str, float | None]], gains: Sequence[float], seed: int = 0
) -> dict[str, Correlation]:
    """Each predictor's rank correlation with the gains, one gain for each thing that was seen.

    Where a predictor is not defined, the pair is left out for it; one with fewer than 3 pairs is
    left out itself. Raises `DataError` for lists of different lengths.
    """
    if len(seen) != len(gains):
        raise DataError(f"{len(seen)} reports for {len(gains)} gains: give one gain a report")
    correlations = {}
    for name in dict.fromkeys(name for values in seen for name in values):
        pairs = [
            (value, gain)
            for values, gain in zip(seen, gains, strict=True)
            if (value := values.get(name)) is not None
        ]
        if len(pairs) >= 3:
            values, paired = zip(*pairs, strict=True)
            correlations[name] = spearman(values, paired, seed)
    return correlations


def _rho(values: np.ndarray) -> float | None:
    """Pearson's correlation of the ranks of two rows; None if one has a single value."""
    one, two = (_ranks(row) for row in values)
    one, two = one - one.mean(), two - two.mean()
    size = float(np.sqrt((one @ one) * (two @ two)))
    return float(one @ two) / size if size else None


def _ranks(row: np.ndarray) -> np.ndarray:
    """Ranks from 1, the mean of them where values are equal."""
    _, places, counts = np.unique(row, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks
