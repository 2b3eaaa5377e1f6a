"""The training curve of the starter over all its rounds, as numbers and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

CURVE = "curve.json"


def join(run: Path, machine: str) -> list[dict]:
    """All rounds so far: those of the folder that the run started from, and the run itself.

    A round is its machine, minutes, steps and tokens, and points of tokens, loss and dev_loss.
    """
    state = json.loads((run / "checkpoint" / "state.json").read_text())
    settings, last = state["settings"], state["curve"][-1]
    rounds = []
    if settings["start"]:
        rounds = json.loads((Path(settings["start"]) / CURVE).read_text())
    keys = ("tokens", "loss", "dev_loss")
    points = [{key: point[key] for key in keys} for point in state["curve"]]
    this_round = {"machine": machine, "minutes": round(state["minutes"]), "steps": last["step"]}
    return [*rounds, {**this_round, "tokens": last["tokens"], "points": points}]


def draw(rounds: list[dict], path: Path) -> None:
    """Training and held-out loss over tokens; a line where a round begins."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    before = 0
    for number, part in enumerate(rounds):
        tokens = [(before + point["tokens"]) / 1e6 for point in part["points"]]
        for key, style, name in (
            ("loss", "#0072b2", "training"),
            ("dev_loss", "#d55e00", "held out"),
        ):
            values = [point[key] for point in part["points"]]
            axes.plot(tokens, values, color=style, label=None if number else name, linewidth=1.6)
        if number:
            axes.axvline(before / 1e6, color="0.6", linewidth=0.8, linestyle=":")
        before += part["tokens"]
    axes.set(xlabel="tokens, millions", ylabel="loss, nats a token", xlim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
