"""Whether what is seen before a composition goes with what it gains: rank correlations, a verdict.

Knows reports and plain numbers; does not know how a gain is measured. numpy only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapters_hub.errors import DataError
from adapters_hub.evaluation import table
from adapters_hub.interpretability.comparison import Comparison

PREDICTORS = {
    "log2_energy_ratio": "log2 of the ratio of energies",
    "cosine": "cosine",
    "overlap_left": "overlap of outputs above random",
    "overlap_right": "overlap of inputs above random",
    "sign_conflict": "share of opposite signs",
    "interference": "interference",
}
"""The measures of two adapters that might predict a gain, and what to call them."""


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


SUPPORT: Mapping[str, Correlation] = {}
"""What measurements on record say of each predictor. None has been recorded yet."""


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
    reports: Sequence[Comparison], gains: Sequence[float], seed: int = 0
) -> dict[str, Correlation]:
    """Each predictor's correlation with the gains, one gain a report, over whole models.

    Reports in which a predictor is not defined are left out for it; a predictor with fewer than 3
    is left out itself. Raises `DataError` for lists of different lengths.
    """
    if len(reports) != len(gains):
        raise DataError(f"{len(reports)} reports for {len(gains)} gains: give one gain a report")
    found = {}
    for predictor in PREDICTORS:
        known = [
            (value, gain)
            for report, gain in zip(reports, gains, strict=True)
            if (value := getattr(report.total, predictor)) is not None
        ]
        if len(known) >= 3:
            values, own = zip(*known, strict=True)
            found[predictor] = spearman(values, own, seed)
    return found


def correlation_table(correlations: Mapping[str, Correlation]) -> str:
    """A Markdown table: predictor, ρ, the interval's ends, and n beside the name."""
    columns: dict[str, dict[str, Any]] = {
        head: {PREDICTORS[name]: getattr(own, field) for name, own in correlations.items()}
        for head, field in (("rho", "rho"), ("95% from", "low"), ("to", "high"))
    }
    notes = {PREDICTORS[name]: f" (n={own.n})" for name, own in correlations.items()}
    return table(columns, "predictor", notes)


def verdict(report: Comparison, support: Mapping[str, Correlation] = SUPPORT) -> str:
    """What can be said of a pair in a few sentences, no more than ``support`` bears out.

    ``support``: predictor → its measured correlation with the gain of composing, as `correlate`
    gives it. However strong, a correlation over pairs is no threshold, and none is named.
    """
    total = report.total
    said = [f"‖ΔW‖ {total.energy_first:.3g} and {total.energy_second:.3g}"]
    for predictor, name in PREDICTORS.items():
        value = getattr(total, predictor)
        if value is not None:
            share = predictor in ("sign_conflict", "interference")
            said.append(f"{name} {value:.3f}" if share else f"{name} {value:+.3f}")
    text = f"{report.first} and {report.second}: {', '.join(said)}."
    shown = {
        name: own for name, own in support.items() if name in PREDICTORS and own.rho is not None
    }
    if not shown:
        return (
            f"{text} No threshold on any of these has been shown to predict what composing gains."
        )
    held = [
        f"{PREDICTORS[name]} (ρ {own.rho:+.2f} [{own.low:+.2f}, {own.high:+.2f}], n={own.n}: "
        f"{'more' if (own.rho or 0) > 0 else 'less'} of it went with a larger gain)"
        for name, own in shown.items()
        if own.is_supported
    ]
    rest = [PREDICTORS[name] for name, own in shown.items() if not own.is_supported]
    text += f" Of {len(shown)} predictors measured against the gain of composing, "
    if not held:
        return f"{text}none was shown to go with it, and no threshold is known."
    text += f"these went with it: {'; '.join(held)}"
    if rest:
        text += f"; not shown for {', '.join(rest)}"
    return f"{text}. That is a tendency over those pairs, and no threshold for this one."


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
