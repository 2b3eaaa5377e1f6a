"""Whether what is seen before a composition goes with what it gains: rank correlations, a verdict.

Knows reports and plain numbers; does not know how a gain is measured.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import resources

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

_MEASURED = "measured_correlations.json"


def on_record(matrix: str) -> dict[str, Correlation]:
    """Predictor → its correlation with the gain that was measured in ``matrix``.

    ``matrix``: ``starter-reviews`` or ``english-topics``, as in ``measured_correlations.json``,
    which has the date, the setting and the source of each.
    """
    text = resources.files(__package__).joinpath(_MEASURED).read_text(encoding="utf-8")
    return {
        name: Correlation(**values)
        for name, values in json.loads(text)[matrix]["correlations"].items()
    }


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
    support: Mapping[str, Correlation] | None = None,
    again: Mapping[str, Correlation] | None = None,
) -> str:
    """What can be said of a pair in a few sentences, no more than ``support`` bears out.

    ``support``: predictor → its measured correlation with the gain of composing, as `correlate`
    gives it, of a language adapter first and a domain adapter second; ``again``: the same in
    another matrix. What is not given is what is on record. However strong, a correlation over
    pairs is no threshold, and none is named.
    """
    support = on_record("starter-reviews") if support is None else support
    again = on_record("english-topics") if again is None else again
    total = report.total
    said = [f"‖ΔW‖ {total.energy_first:.3g} and {total.energy_second:.3g}"]
    for predictor, name in PREDICTORS.items():
        value = getattr(total, predictor)
        if value is not None:
            share = predictor in ("sign_conflict", "interference")
            said.append(f"{name} {value:.3f}" if share else f"{name} {value:+.3f}")
    text = f"{report.first} and {report.second}: {', '.join(said)}."
    shown = {
        name: measured
        for name, measured in support.items()
        if name in PREDICTORS and measured.rho is not None
    }
    if not shown:
        return (
            f"{text} No threshold on any of these has been shown to predict what composing gains."
        )
    held = [
        f"{PREDICTORS[name]} ({_shown(measured)}, n={measured.n}: "
        f"{'more' if (measured.rho or 0) > 0 else 'less'} of it went with a larger gain"
        f"{_seen_again(again.get(name))})"
        for name, measured in shown.items()
        if measured.is_supported
    ]
    rest = [PREDICTORS[name] for name, measured in shown.items() if not measured.is_supported]
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


def _seen_again(measured: Correlation | None) -> str:
    if measured is None or measured.rho is None or measured.is_supported:
        return ""
    return f"; not so in a second matrix, {_shown(measured)}"


def _shown(measured: Correlation) -> str:
    return f"ρ {measured.rho:+.2f} [{measured.low:+.2f}, {measured.high:+.2f}]"
