"""The weight of a penalty: a number, or one that follows a target. Never imports torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adapters_hub.errors import SettingsError
from adapters_hub.training.regularisers.registry import method_names

_TARGET = "target"
_GAIN, _LARGEST = 0.1, 0.2  # K_β and the clip of Ziegler et al.
_NATS = 0.1


@dataclass(frozen=True)
class Wanted:
    """What a run asks of a method: a ``weight``, or a ``target`` for the penalty's value."""

    weight: float | None = None
    target: float | None = None


def wanted_of(regularise: Mapping[str, object]) -> dict[str, Wanted]:
    """What ``--regularise`` asks for, by method.

    Raises `SettingsError` for a method that is none, and for a value that is neither a number above
    0 nor ``target:`` and one.
    """
    wanted = {}
    for name, value in regularise.items():
        if name not in method_names():
            raise SettingsError(f"regularise: {name!r} is none of {', '.join(method_names())}")
        text = str(value)
        what, colon, number = text.rpartition(":")
        try:
            amount = float(number)
        except ValueError:
            amount = math.nan
        if (colon and what != _TARGET) or not 0 < amount < math.inf:
            raise SettingsError(
                f"regularise: {name}={text}: give a weight above 0, such as {name}=0.1, or a value "
                f"that the weight is to keep the penalty at, such as {name}=target:0.05"
            )
        wanted[name] = Wanted(target=amount) if colon else Wanted(weight=amount)
    return wanted


@dataclass
class Control:
    """The weight of one method for one adapter.

    With a target it is changed after each step of the adapter, as the adaptive controller of
    Ziegler et al. (arXiv:1909.08593, section 2.2) changes its β:

        e = clip((value - target) / target, -0.2, 0.2),  β ← β (1 + 0.1 e)

    It begins where the penalty would be a tenth of a nat at its target, so that no one has to know
    the scale of a method.
    """

    weight: float
    target: float | None = None

    @classmethod
    def of(cls, wanted: Wanted) -> "Control":
        """The control that a run begins with."""
        if wanted.target is not None:
            return cls(_NATS / wanted.target, wanted.target)
        assert wanted.weight is not None
        return cls(wanted.weight)

    def follow(self, value: float) -> None:
        """Change the weight for what the penalty was in a step."""
        if self.target is not None:
            error = (value - self.target) / self.target
            self.weight *= 1 + _GAIN * min(max(error, -_LARGEST), _LARGEST)
