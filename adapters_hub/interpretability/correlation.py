"""Whether what is seen before a composition goes with what it gains: rank correlations, a verdict.

Knows reports and plain numbers; does not know how a gain is measured.
"""

from collections.abc import Mapping, Sequence

from adapters_hub.interpretability.comparison import Comparison
from adapters_hub.metrics import bootstrap
from adapters_hub.metrics.bootstrap import Correlation

PREDICTORS = {
    "log2_energy_ratio": "log2 of the ratio of energies",
    "cosine": "cosine",
    "overlap_left": "overlap of outputs above random",
    "overlap_right": "overlap of inputs above random",
    "sign_conflict": "share of opposite signs",
    "interference": "interference",
}
"""The measures of two adapters that might predict a gain, and what to call them."""


SUPPORT: Mapping[str, Correlation] = {
    "log2_energy_ratio": Correlation(-0.51, -0.82, 0.01, 18),
    "cosine": Correlation(-0.30, -0.75, 0.24, 18),
    "overlap_left": Correlation(0.24, -0.23, 0.64, 18),
    "overlap_right": Correlation(0.19, -0.36, 0.62, 18),
    "sign_conflict": Correlation(0.44, -0.06, 0.76, 18),
    "interference": Correlation(0.53, 0.04, 0.82, 18),
}
"""What is on record of each predictor, the language adapter first: the starter, reviews of three
domains in six languages, bits per byte, ``sum`` (docs/lab-log.md, 2026-11-26). The 18 cells share
adapters, and six predictors were tried, so that one interval just off zero is weak support."""

AGAIN: Mapping[str, Correlation] = {
    "log2_energy_ratio": Correlation(-0.27, -0.84, 0.52, 9),
    "cosine": Correlation(-0.02, -0.68, 0.95, 9),
    "overlap_left": Correlation(-0.28, -0.86, 0.50, 9),
    "overlap_right": Correlation(-0.03, -0.73, 0.86, 9),
    "sign_conflict": Correlation(0.05, -0.83, 0.69, 9),
    "interference": Correlation(-0.13, -0.81, 0.60, 9),
}
"""The same in a second matrix: an English encoder of sentences, topics in nine other languages,
macro-F1 (the same log)."""


def predictors_of(report: Comparison) -> dict[str, float | None]:
    """What a report has of each of `PREDICTORS`, over the whole model."""
    return {name: getattr(report.total, name) for name in PREDICTORS}


def correlate(
    reports: Sequence[Comparison], gains: Sequence[float], seed: int = 0
) -> dict[str, Correlation]:
    """Each predictor's correlation with the gains, one gain a report; see `bootstrap.correlate`."""
    return bootstrap.correlate([predictors_of(report) for report in reports], gains, seed)


def verdict(
    report: Comparison,
    support: Mapping[str, Correlation] = SUPPORT,
    again: Mapping[str, Correlation] = AGAIN,
) -> str:
    """What can be said of a pair in a few sentences, no more than ``support`` bears out.

    ``support``: predictor → its measured correlation with the gain of composing, as `correlate`
    gives it, of a language adapter first and a domain adapter second; ``again``: the same in
    another matrix. However strong, a correlation over pairs is no threshold, and none is named.
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
        f"{'more' if (own.rho or 0) > 0 else 'less'} of it went with a larger gain"
        f"{_seen_again(again.get(name))})"
        for name, own in shown.items()
        if own.is_supported
    ]
    rest = [PREDICTORS[name] for name, own in shown.items() if not own.is_supported]
    text += (
        f" Of {len(shown)} predictors measured against the gain of composing, of a language "
        "adapter first and a domain adapter second, "
    )
    if not held:
        return f"{text}none was shown to go with it, and no threshold is known."
    text += f"these went with it: {'; '.join(held)}"
    if rest:
        text += f"; not shown for {', '.join(rest)}"
    return (
        f"{text}. That is a tendency over those pairs, some of which share adapters, and no "
        "threshold for this one."
    )


def _seen_again(own: Correlation | None) -> str:
    if own is None or own.rho is None or own.is_supported:
        return ""
    return f"; not so in a second matrix, ρ {own.rho:+.2f} [{own.low:+.2f}, {own.high:+.2f}]"
