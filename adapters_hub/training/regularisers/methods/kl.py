"""What the model says with the adapter is held near what it says without."""

from typing import ClassVar

import torch
from torch import Tensor

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import SettingsError
from adapters_hub.tasks.base import Task, per_row
from adapters_hub.tasks.bits import BitsTask
from adapters_hub.training.regularisers.base import OfRows, Setup
from adapters_hub.training.regularisers.passes import Passes, States
from adapters_hub.training.settings import TrainingSettings

_LEAST = 1e-12


class Kl(OfRows):
    """KL(p₀ ‖ p) of the next or masked token, where p₀ is the reference's and p the adapted one's.

    The reference is the row's blend without the adapter that learns: the bare backbone, or the
    backbone with the frozen adapter of the row's language. So it is the distillation of learning
    without forgetting (arXiv:1606.09282), with temperature 1, by the model itself. The mean over
    targets, in nats.

    On the batch's own rows it is a KL only for tasks of the language-model head (language
    modelling, generation, translation). A task with a fresh head, and one of hidden states
    (matching, retrieval), have no output that the backbone has too: there it is the relative
    squared distance ‖h - h₀‖² / ‖h₀‖² of the last hidden states, the mean over a row's tokens, then
    over rows. On generic text (``regularise_data``) it is a KL wherever the backbone has a
    language-model head, whatever the task.

    For every task; not for an adapter that is only a head.
    """

    name: ClassVar[str] = "kl"
    reads_text: ClassVar[bool] = True

    @classmethod
    def check(cls, settings: TrainingSettings, task: Task, backbone: Backbone) -> None:
        if settings.regularise_data and backbone.kind == "encoder-decoder":
            raise SettingsError(
                f"regularise: {cls.name} on generic text is for encoders and decoders, and "
                f"{backbone.name} is an encoder-decoder, whose decoder reads targets: leave "
                "regularise_data out, and it is on the run's rows"
            )

    def prepare(self, setup: Setup) -> None:
        self.on_text = setup.text is not None
        self._predicts = setup.text is None or setup.text.predicts

    def per_target(self, task: Task) -> bool:
        return isinstance(task, BitsTask) and self._predicts

    def values(self, passes: Passes) -> Tensor:
        task = passes.task
        if isinstance(task, BitsTask) and self._predicts:
            read, reference = task.read, passes.reference
            reading = passes.within(read) if self.on_text else passes.view().reading
            assert reading is not None
            return passes.within(
                lambda model, inputs, _: task.kl_from(model, inputs, reading, reference)
            )
        return relative_distance(passes.states_of_text() if self.on_text else passes.states)


def relative_distance(seen: States) -> Tensor:
    """‖h - h₀‖² / ‖h₀‖², the mean over the tokens of each sequence, then over an example's
    sequences (examples,), float32.
    """
    states, reference = seen.states.float(), seen.reference.float()
    apart = (states - reference).square().sum(-1)
    apart = apart / reference.square().sum(-1).clamp_min(_LEAST)
    mask = seen.mask.to(apart)
    means = (apart * mask).sum(1) / mask.sum(1)
    sizes = torch.tensor(seen.sizes, device=means.device)
    rows = torch.arange(len(sizes), device=means.device).repeat_interleave(sizes)
    return per_row(means, rows, len(sizes)) / sizes


METHOD = Kl
