"""Rank correlations beside scipy's, and verdicts that say no more than they bear out."""

import math

import numpy as np
import pytest

from adapters_hub.errors import DataError
from adapters_hub.interpretability import (
    Comparison,
    Measures,
    correlate,
    verdict,
)
from adapters_hub.metrics.bootstrap import Correlation, spearman


def test_spearman_is_scipys():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(3)
    for size in (3, 8, 40):
        one, two = rng.normal(size=size), rng.integers(0, 4, size=size)
        two[:2] = 0, 3  # ties, but not only
        found = spearman(one.tolist(), two.tolist(), draws=50)
        assert found.rho == pytest.approx(spearmanr(one, two).statistic)
        assert found.n == size


@pytest.mark.slow
def test_the_interval_covers_what_was_drawn():
    """Of 100 samples with a known ρ, some 95 intervals hold it: 6/π·asin(r/2) for a normal pair."""
    rng, r, held = np.random.default_rng(0), 0.6, 0
    truth = 6 / math.pi * math.asin(r / 2)
    for _ in range(100):
        one = rng.normal(size=40)
        two = r * one + math.sqrt(1 - r * r) * rng.normal(size=40)
        found = spearman(one, two, draws=200)
        held += found.low <= truth <= found.high
        assert found.low <= found.rho <= found.high
    assert 88 <= held <= 99


@pytest.mark.slow
def test_spearman_of_little_or_nothing():
    assert spearman([1, 2, 3, 4], [2, 4, 6, 8]) == spearman([1, 2, 3, 4], [2, 4, 6, 8])
    assert spearman([1, 2, 3, 4], [5, 4, 3, 2]).rho == -1
    assert spearman([1, 1, 1], [1, 2, 3]) == Correlation(None, None, None, 3)
    with pytest.raises(DataError, match="3 or more"):
        spearman([1, 2], [1, 2])
    with pytest.raises(DataError, match="4 predictions for 3 gains"):
        spearman([1, 2, 3, 4], [1, 2, 3])
    with pytest.raises(DataError, match="not a finite number"):
        spearman([1, 2, math.nan], [1, 2, 3])


def reports_with(cosines, conflicts):
    return [
        Comparison("de", f"d{n}", {}, {}, Measures(2.0, 1.0, 1.0, c, None, 0.1, s))
        for n, (c, s) in enumerate(zip(cosines, conflicts, strict=True))
    ]


@pytest.mark.slow
def test_predictors_are_correlated_with_gains():
    rng = np.random.default_rng(5)
    gains = rng.normal(size=25)
    reports = reports_with((-gains).tolist(), [*rng.normal(size=24), None])
    found = correlate(reports, gains.tolist())
    assert set(found) == {"log2_energy_ratio", "cosine", "overlap_right", "sign_conflict"}
    assert found["cosine"].rho == pytest.approx(-1)
    assert found["cosine"].is_supported
    assert found["sign_conflict"].n == 24
    assert not found["sign_conflict"].is_supported
    assert found["overlap_right"].rho is None  # it never changes
    with pytest.raises(DataError, match="25 reports for 24 gains"):
        correlate(reports, gains[:24].tolist())


def test_the_verdict_says_no_more_than_is_supported():
    (report,) = reports_with([0.25], [0.4])
    nothing = verdict(report, {})
    assert "Of 6 predictors measured" in verdict(report)  # what is on record
    assert "not so in a second matrix, ρ -0.13 [-0.81, +0.60]" in verdict(report)
    assert "second matrix" not in verdict(report, again={})
    assert "cosine +0.250" in nothing
    assert "share of opposite signs 0.400" in nothing
    assert "No threshold on any of these has been shown to predict" in nothing
    cosine, signs = Correlation(-0.7, -0.9, -0.4, 30), Correlation(0.1, -0.3, 0.5, 30)
    neither = verdict(report, {"sign_conflict": signs})
    assert "none was shown to go with it" in neither
    some = verdict(report, {"cosine": cosine, "sign_conflict": signs}, {})
    assert "cosine (ρ -0.70 [-0.90, -0.40], n=30: less of it went with a larger gain)" in some
    assert "not shown for share of opposite signs" in some
    assert some.endswith("no threshold for this one.")
    assert verdict(report, {"cosine": Correlation(None, None, None, 3)}) == nothing
