"""Two passes with other dropout masks are to say the same."""

from typing import ClassVar

from torch import Tensor

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import SettingsError
from adapters_hub.tasks.base import Task
from adapters_hub.training.regularisers.base import OfRows
from adapters_hub.training.regularisers.passes import Passes
from adapters_hub.training.settings import TrainingSettings


class RDrop(OfRows):
    """R-Drop (arXiv:2106.14448, eq. 4): each row goes through the model twice.

    The loss is ½ (L(p₁) + L(p₂)) + w · ½ (KL(p₁ ‖ p₂) + KL(p₂ ‖ p₁)), the mean over targets: half
    of the paper's, so that the learning rate means what it does without, and w is its α/2. The
    distributions are over labels, over the labels of each tagged word, over the places of start and
    end, or over the vocabulary at each target, of which all logits never exist at once. The only
    dropout is that of the adapters (``dropout``): a frozen backbone has none.

    Not without dropout; not for tasks without distributions (retrieval, matching).
    """

    name: ClassVar[str] = "rdrop"

    @classmethod
    def check(cls, settings: TrainingSettings, task: Task, backbone: Backbone) -> None:
        if not task.compares:
            raise SettingsError(
                f"regularise: {cls.name} compares the distributions that two passes give, and "
                f"{task.name} learns from vectors, which are none: leave it out, or take kl, which "
                "holds hidden states near the backbone's"
            )
        if not settings.dropout:
            raise SettingsError(
                f"regularise: {cls.name} compares passes with other dropout masks, and dropout is "
                "0: give some (--dropout 0.1)"
            )

    def per_target(self, task: Task) -> bool:
        return True

    def values(self, passes: Passes) -> Tensor:
        return passes.divergence(0, 1)


METHOD = RDrop
