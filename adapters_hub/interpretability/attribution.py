"""Which tokens a classification hung on: integrated gradients through captum.

Knows one task, classification, and a backbone's embeddings; captum is imported when it is used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters_hub.backbone.padding import padded
from adapters_hub.errors import BackboneError, DataError, HeadError, SettingsError
from adapters_hub.extras import require
from adapters_hub.runtime.core import ACTIVE, Active, Runtime, Weights
from adapters_hub.tasks.classification import Classification
from adapters_hub.tasks.heads import label_names
from adapters_hub.text.tokenising import encode_texts

_TOGETHER = 16
"""Points of the path that go through the model at once."""


@dataclass(frozen=True)
class Attribution:
    """How much each token of a text speaks for a label: the logit's change from the baseline.

    ``scores`` has one number a token of ``tokens``; they add up to ``logit - baseline``, the
    label's logit for the text and for the baseline, but for ``missing`` (a sum over the path stands
    for an integral: more steps make it smaller).
    """

    adapters: str
    target: str
    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    logit: float
    baseline: float

    @property
    def missing(self) -> float:
        """Logit - baseline - Σ scores."""
        return self.logit - self.baseline - sum(self.scores)


def attribute(
    model: Runtime,
    text: str,
    adapters: Weights | Active = ACTIVE,
    target: str | None = None,
    *,
    steps: int = 64,
) -> Attribution:
    """Integrated gradients (arXiv:1703.01365) of a label's logit by the input embeddings.

    ``adapters``: a blend with a classification head, the active one unless given. ``target`` is a
    label, the most probable one unless said otherwise. The baseline has the embedding of the mask
    token, else of padding, in place of every token but special ones. ``steps`` points of the path
    (Gauss-Legendre). Needs captum. Raises `HeadError` for a blend with no such head or label,
    `BackboneError` for an encoder-decoder, whose two stacks share their embeddings.
    """
    captum = require("captum.attr", "interpret", "attribution")
    backbone, tokenizer = model.backbone, model.backbone.tokenizer
    if backbone.kind == "encoder-decoder":
        raise BackboneError(
            f"{backbone.name} is an encoder-decoder: a change of its embeddings would reach both "
            "stacks, so a token has no single score"
        )
    if steps < 1:
        raise SettingsError(f"steps={steps}: must be 1 or more")
    blend = model.resolve(adapters)
    names = label_names(model.resident(model.head_owner(blend)), backbone, Classification.name)
    if target is not None and target not in names:
        raise HeadError(f"the head of {blend} has no label {target!r} (it has {', '.join(names)})")
    ids = encode_texts([text], backbone)[0]
    if not ids:
        raise DataError(f"the text {text!r} has no tokens")
    batch = padded([ids], backbone)
    given, mask = batch["input_ids"], batch["attention_mask"]
    filler = tokenizer.pad_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id
    special = torch.isin(given, torch.tensor(tokenizer.all_special_ids).to(given))
    empty = given.where(special, filler)
    task, heads = Classification(names), model.heads([blend])
    embeddings: nn.Module = backbone.base.get_input_embeddings()

    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        return task.logits(model, {"input_ids": ids, "attention_mask": mask}, heads)

    with torch.inference_mode(False), model.bank.using(model.plan([blend])):
        with torch.no_grad():
            logits_of_text = logits(given, mask)[0]
            with _embedded(embeddings, embeddings(empty)):
                logits_of_baseline = logits(given, mask)[0]
        number = int(logits_of_text.argmax()) if target is None else names.index(target)
        gradients = captum.LayerIntegratedGradients(logits, embeddings)
        attributions = gradients.attribute(
            given,
            baselines=empty,
            target=number,
            additional_forward_args=(mask,),
            n_steps=steps,
            internal_batch_size=_TOGETHER,
        )
    return Attribution(
        adapters=str(blend),
        target=names[number],
        tokens=tuple(tokenizer.decode([number]) for number in ids),
        scores=tuple(attributions.detach().double().sum(-1)[0].tolist()),
        logit=logits_of_text[number].item(),
        baseline=logits_of_baseline[number].item(),
    )


@contextmanager
def _embedded(embeddings: nn.Module, instead: Tensor) -> Iterator[None]:
    """A forward inside the block sees these embeddings (1, tokens, width), whatever its tokens."""

    def replaced(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return instead

    hook = embeddings.register_forward_hook(replaced)
    try:
        yield
    finally:
        hook.remove()
