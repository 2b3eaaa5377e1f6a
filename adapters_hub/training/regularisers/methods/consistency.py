"""Consistency loss: the augmented row and the row as read should give the same predictions."""

from typing import ClassVar

from torch import Tensor

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import SettingsError
from adapters_hub.tasks.base import Task
from adapters_hub.training.regularisers.base import OfRows
from adapters_hub.training.regularisers.passes import Passes
from adapters_hub.training.settings import TrainingSettings

_MIXUP = "mixup"


class Consistency(OfRows):
    """Two views of each row go through the model: as drawn (``augment``), and as it was read.

    The loss is ½ (L(p₁) + L(p₂)) + w · ½ (KL(p₁ ‖ p₂) + KL(p₂ ‖ p₁)), the mean over targets. With
    code-switched or translated rows it is the example consistency of xTune (arXiv:2106.08226,
    eq. 2), with other segmentations multi-view subword regularisation (MVR, arXiv:2103.08490,
    eq. 6). A row that the draw left with other targets, as tagged words that no longer fit in, is
    compared with itself.

    Not without augmentation; not with mixup, whose labels are mixed too; only for tasks whose
    targets do not hang on how the text is cut (classification and tagging).
    """

    name: ClassVar[str] = "consistency"
    compares_unaugmented: ClassVar[bool] = True

    @classmethod
    def check(cls, settings: TrainingSettings, task: Task, backbone: Backbone) -> None:
        if not task.compares_views:
            raise SettingsError(
                f"regularise: {cls.name} compares a row with its augmented view, and the targets "
                f"of {task.name} are not the same in both: leave it out, or take rdrop, which "
                "compares two passes over the same tokens"
            )
        if not settings.augment:
            raise SettingsError(
                f"regularise: {cls.name} compares a row with its augmented view, and nothing is "
                "augmented: give --augment too, such as codeswitch=0.5"
            )
        if _MIXUP in settings.augment:
            raise SettingsError(
                f"regularise: {cls.name} wants both views of a row to have its label, and "
                f"{_MIXUP} mixes labels: leave one of the two out"
            )

    def per_target(self, task: Task) -> bool:
        return True

    def values(self, passes: Passes) -> Tensor:
        return passes.from_unaugmented()


METHOD = Consistency
