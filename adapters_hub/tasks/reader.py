"""What the tasks share that learn from hidden states, and bring no head.

Knows which part of a backbone reads texts; does not know what its states are for.
"""

from torch import nn

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.tasks.base import Record, Target, Task


def reader(backbone: Backbone) -> nn.Module:
    """The part that reads texts: an encoder-decoder's encoder, else all below the head."""
    body: nn.Module = backbone.base
    return backbone.base.get_encoder() if backbone.kind == "encoder-decoder" else body


class ReaderTask(Task[Target, Record]):
    """A task whose adapters act in the `reader`, and are saved for the bare model."""

    def prefix(self, backbone: Backbone) -> str:
        return ""

    def peft_task_type(self, backbone: Backbone) -> str:
        return "FEATURE_EXTRACTION"

    def body_sites_of(self, backbone: Backbone) -> list[str]:
        sites = [site for site in backbone.lm_sites if not site.startswith("pooler.")]
        if backbone.kind == "encoder-decoder":
            sites = [site for site in sites if site.startswith("encoder.")]
        return sites
