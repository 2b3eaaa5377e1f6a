"""At which weight a language adapter is added to another adapter, where nobody says one.

Knows what adapters' files say of them and of each other; does not measure anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from adapters_hub.library.adapter_file import AdapterInfo


@dataclass(frozen=True)
class Choice:
    """A weight, and the reason for it in words."""

    weight: float
    reason: str


def weight_beside(language: AdapterInfo, others: Sequence[AdapterInfo]) -> Choice:
    """The weight of a language adapter beside others: the smallest that one of them allows.

    Of one other adapter it is, in this order: what was measured for the two; 1, if the other was
    trained over language adapters; the mean of what was measured for language adapters that were
    trained for the same; 0 for one that learnt to find pairs beside an adapter of another task,
    which hurts as often as it helps; else 1.
    """
    choices = [_beside(language, other) for other in others if other.name != language.name]
    return min(choices, key=lambda choice: choice.weight, default=Choice(1.0, "nothing beside it"))


def _beside(language: AdapterInfo, other: AdapterInfo) -> Choice:
    measured = other.pair_weights.get(language.name)
    if measured and measured.hash == language.hash:
        return Choice(measured.weight, f"measured with {other.name}: {measured}")
    if other.over:
        return Choice(1.0, f"{other.name} was trained over language adapters")
    kind = [pair.weight for pair in other.pair_weights.values() if pair.task == language.task]
    if kind:
        return Choice(
            sum(kind) / len(kind),
            f"the mean of {len(kind)} language adapters for {language.task} that were measured "
            f"with {other.name}",
        )
    if language.task == "retrieval" and other.task not in (None, "retrieval"):
        return Choice(
            0.0,
            f"it learnt to find pairs, which may hurt {other.task}; measure it: adapters-hub fit "
            f'"{language.name} + {other.name}" --store --data FILE',
        )
    return Choice(1.0, "nothing was measured")
