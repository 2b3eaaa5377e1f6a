"""Whether what was written for an engine is the blend: read back, and compared with it.

Knows blends and what engines' readers gave. Engines that load adapters without effect, or at
another scale, say nothing; so this is asked of the files themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXTS = (
    "The room was quiet and the breakfast was good.",
    "Das Zimmer war ruhig und das Frühstück gut.",
    "房间很安静，早餐也不错。",
)
"""What is compared on where nobody gives texts."""


@dataclass(frozen=True)
class Check:
    """The largest difference between what an engine's reader has and the blend.

    ``effect`` is the most that the blend changes of what was compared: of a file that is loaded
    without effect, or at twice the scale, the difference is as large. ``tolerance`` is a share of
    it, for rounding.
    """

    reader: str
    compared: str
    difference: float
    effect: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether it is the blend to rounding, and there is an effect at all."""
        return self.effect > 0 and self.difference <= self.tolerance * self.effect

    def __str__(self) -> str:
        verdict = "agrees" if self.agrees else "DIFFERS"
        return (
            f"{verdict}: {self.compared} read by {self.reader}, largest difference "
            f"{self.difference:.2g} where the blend changes up to {self.effect:.2g}"
        )


def check_deltas(
    reader: str, read: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]]
) -> Check:
    """Deltas (out, in) by site beside those of factors of scaling 1; a missing one counts whole."""
    difference = effect = 0.0
    for site in read.keys() | factors.keys():
        delta = torch.zeros(())
        if site in factors:
            a, b = factors[site]
            delta = b.detach().float().cpu() @ a.detach().float().cpu()
            effect = max(effect, delta.abs().max().item())
        difference = max(difference, (read.get(site, torch.zeros(())) - delta).abs().max().item())
    return Check(reader, f"deltas of {len(factors)} layers", difference, effect, 0.01)


def check_outputs(
    reader: str,
    loaded: nn.Module,
    expected: PreTrainedModel,
    bare: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    dtype: str,
) -> Check:
    """What models say of texts, one by one: logits, or the last states where there is no head.

    ``bare`` is the one without the blend. Rounding to 16 bits adds up from layer to layer.
    """
    difference = effect = 0.0
    what = "states"
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        if expected.config.is_encoder_decoder and expected.get_output_embeddings() is not None:
            inputs["decoder_input_ids"] = inputs["input_ids"][:, :1]
        with torch.no_grad():
            theirs, ours, without = (_said(model(**inputs)) for model in (loaded, expected, bare))
        what = ours[0]
        difference = max(difference, (theirs[1] - ours[1]).abs().max().item())
        effect = max(effect, (ours[1] - without[1]).abs().max().item())
    tolerance = 0.01 if dtype == "float32" else 0.2
    return Check(reader, f"{what} of {len(texts)} texts", difference, effect, tolerance)


def _said(outputs: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    for name in ("logits", "start_logits"):
        if name in outputs:
            return "logits", outputs[name].float()
    return "states", outputs["last_hidden_state"].float()
