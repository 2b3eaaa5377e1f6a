"""Hidden states pooled to one vector of length 1 a text, under any blend.

Knows hidden states and how adapters say they pool; does not know training, pairs or ranking.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import BackboneError, HeadError
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.core import Runtime
from adapters_hub.tasks.declarations.retrieval import checked_pooling
from adapters_hub.tasks.reader import reader

_WORTH = 0.05  # the share of a batch's tokens that another forward must save


def default_pooling(backbone: Backbone) -> str:
    """What the checkpoint's folder says, as sentence-transformers writes it.

    Else the last token for decoders, which alone has seen the whole text, and else the mean. Raises
    `BackboneError` where the folder asks for what is not done here, such as a dense layer.
    """
    said = backbone.embedding
    if said.unsupported:
        raise BackboneError(
            f"{backbone.name} is a sentence-transformers model, and {said.unsupported}; give "
            "pooling='mean', 'cls' or 'last' for the states of its transformer"
        )
    if said.pooling:
        return said.pooling
    return "last" if backbone.kind == "decoder" else "mean"


def hidden_states(backbone: Backbone, inputs: dict[str, Tensor]) -> Tensor:
    """The last hidden states of the `reader` (rows, tokens, width)."""
    states: Tensor = reader(backbone)(**inputs, **backbone.call_options).last_hidden_state
    return states


def pool(states: Tensor, mask: Tensor, poolings: Sequence[str]) -> Tensor:
    """Hidden states (rows, tokens, width) → unit vectors (rows, width), float32.

    ``mask`` (rows, tokens) is 1 at real tokens, ``poolings`` has a name for each row: ``mean`` of
    the real tokens (arXiv:1908.10084), the first (``cls``) or the last of them.
    """
    for name in sorted(set(poolings)):
        checked_pooling(name)
    weights = mask.float() / mask.sum(1, keepdim=True)
    place = torch.arange(mask.shape[1], device=mask.device) * mask
    for pooling in {"cls", "last"} & set(poolings):
        at = mask.argmax(1) if pooling == "cls" else place.argmax(1)
        pooled_so = torch.tensor([name == pooling for name in poolings], device=mask.device)
        weights[pooled_so] = functional.one_hot(at[pooled_so], mask.shape[1]).float()
    with torch.autocast(states.device.type, enabled=False):  # which would round the sum
        pooled = torch.einsum("rt,rtw->rw", weights, states.float())
    return functional.normalize(pooled, dim=-1)


def unit_vectors(model: Runtime, inputs: dict[str, Tensor], poolings: Sequence[str]) -> Tensor:
    """Unit vectors (rows, width) of a batch, padded on the right, under the current plan.

    Queries are short and documents long, so rows of one length go through the model together. All
    do where the backbone is sharded, since its processes run as many forwards.
    """
    mask, plan = inputs["attention_mask"], model.bank.current()
    lengths = mask.sum(1).cpu()
    whole = model.backbone.shards is not None
    parts = [torch.arange(len(lengths))] if whole else padded_parts(lengths)
    pooled = []
    for rows in parts:
        longest = int(lengths[rows].max())
        at = rows.to(mask.device)
        cut = {name: tensor[at, :longest] for name, tensor in inputs.items()}
        with model.bank.using(plan and plan.of(rows)):
            states = hidden_states(model.backbone, cut)
        pooled.append(pool(states, cut["attention_mask"], [poolings[row] for row in rows]))
    return torch.cat(pooled)[torch.cat(parts).argsort().to(mask.device)]


def padded_parts(lengths: Tensor) -> list[Tensor]:
    """Rows, by their lengths (rows,) in tokens, in parts that are each padded to their longest.

    A part, its rows in the batch's order, is cut in two where that saves most padding, as long as
    that is a fair share of the batch.
    """
    ordered, rows = lengths.sort(stable=True)
    worth = _WORTH * len(rows) * int(ordered[-1])

    def cut(start: int, end: int) -> list[Tensor]:
        inside = ordered[start:end]
        saved = torch.arange(1, len(inside) + 1) * (inside[-1] - inside)  # by a cut after each row
        best = int(saved.argmax())
        if saved[best] <= worth:
            return [rows[start:end].sort().values]
        return cut(start, start + best + 1) + cut(start + best + 1, end)

    return cut(0, len(rows))


def embedding_of(
    model: Runtime, blend: Blend, pooling: str | None = None
) -> tuple[str, dict[str, str]]:
    """The pooling and the prompts of a resolved blend: those of its adapters that have them.

    A language adapter's count only where no other has any: a domain's was trained over it. Where
    none has any they are the backbone's, whose prompt of the name ``""`` is for texts that no
    prompt is asked for. ``pooling`` stands in place of theirs. Raises
    `HeadError` for two that differ: each was trained for one of them.
    """
    infos = [info for name in blend.terms if (info := model.resident(name).info).pooling]
    infos = [info for info in infos if info.domain or not info.language] or infos
    ways = {info.name: (info.pooling, info.prompts) for info in infos}
    if not ways:
        said = model.backbone.embedding
        default = {"": said.default_prompt} if said.default_prompt else {}
        return pooling or default_pooling(model.backbone), {**said.prompts, **default}
    (trained, prompts), *others = ways.values()
    if any(other != (trained, prompts) for other in others):
        listed = ", ".join(f"{name}: {way[0]}, {way[1]}" for name, way in ways.items())
        raise HeadError(
            f"adapters of {str(blend)!r} were trained to embed in different ways ({listed}); keep "
            "one of them"
        )
    return pooling or trained or "", prompts
