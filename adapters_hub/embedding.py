"""Sentence embeddings: hidden states pooled to one vector of length 1 a text, under any blend.

Knows hidden states, pooling and prompts; does not know training, pairs or ranking.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from adapters_hub.errors import HeadError, SettingsError
from adapters_hub.tasks.base import Example, Row, pad
from adapters_hub.tasks.classification import encode_texts

if TYPE_CHECKING:
    from adapters_hub.backbone import Backbone
    from adapters_hub.blend import Blend
    from adapters_hub.model import AdaptedModel, Adapters, Weights

POOLINGS = ("mean", "cls", "last")
_WORTH = 0.05  # the share of a batch's tokens that another forward must save


def default_pooling(backbone: "Backbone") -> str:
    """The last token for decoders, which alone has seen the whole text; else the mean."""
    return "last" if backbone.kind == "decoder" else "mean"


def hidden_states(backbone: "Backbone", inputs: dict[str, Tensor]) -> Tensor:
    """The last hidden states (rows, tokens, width); an encoder-decoder's are its encoder's."""
    whole: Any = backbone.base
    body = whole.get_encoder() if backbone.kind == "encoder-decoder" else whole
    return body(**inputs, **backbone.call_options).last_hidden_state


def pool(states: Tensor, mask: Tensor, poolings: Sequence[str]) -> Tensor:
    """Hidden states (rows, tokens, width) → unit vectors (rows, width), float32.

    ``mask`` (rows, tokens) is 1 at real tokens, ``poolings`` has a name for each row: ``mean`` of
    the real tokens (arXiv:1908.10084), the first (``cls``) or the last of them.
    """
    if wrong := sorted(set(poolings) - set(POOLINGS)):
        raise SettingsError(f"pooling={wrong[0]!r}: choose one of {', '.join(POOLINGS)}")
    weights = mask.float() / mask.sum(1, keepdim=True)
    place = torch.arange(mask.shape[1], device=mask.device) * mask
    for pooling in {"cls", "last"} & set(poolings):
        at = mask.argmax(1) if pooling == "cls" else place.argmax(1)
        own = torch.tensor([name == pooling for name in poolings], device=mask.device)
        weights[own] = functional.one_hot(at[own], mask.shape[1]).float()
    with torch.autocast(states.device.type, enabled=False):  # which would round the sum
        pooled = torch.einsum("rt,rtw->rw", weights, states.float())
    return functional.normalize(pooled, dim=-1)


def unit_vectors(
    model: "AdaptedModel", inputs: dict[str, Tensor], poolings: Sequence[str]
) -> Tensor:
    """Unit vectors (rows, width) of a batch, padded on the right, under the current plan.

    Queries are short and documents long, so rows of one length go through the model together.
    """
    mask, plan = inputs["attention_mask"], model.bank.current()
    lengths = mask.sum(1).cpu()
    parts = by_length(lengths)
    found = []
    for rows in parts:
        longest = int(lengths[rows].max())
        at = rows.to(mask.device)
        own = {name: tensor[at, :longest] for name, tensor in inputs.items()}
        with model.bank.using(plan and plan.of(rows)):
            states = hidden_states(model.backbone, own)
        found.append(pool(states, own["attention_mask"], [poolings[row] for row in rows]))
    return torch.cat(found)[torch.cat(parts).argsort().to(mask.device)]


def by_length(lengths: Tensor) -> list[Tensor]:
    """Rows, by their lengths (rows,) in tokens, in parts that are each padded to their longest.

    A part, its rows in the batch's order, is cut in two where that saves most padding, as long as
    that is a fair share of the batch.
    """
    ordered, rows = lengths.sort(stable=True)
    worth = _WORTH * len(rows) * int(ordered[-1])

    def cut(start: int, end: int) -> list[Tensor]:
        own = ordered[start:end]
        saved = torch.arange(1, len(own) + 1) * (own[-1] - own)  # by a cut after each row
        best = int(saved.argmax())
        if saved[best] <= worth:
            return [rows[start:end].sort().values]
        return cut(start, start + best + 1) + cut(start + best + 1, end)

    return cut(0, len(rows))


def embedding_of(model: "AdaptedModel", blend: "Blend") -> tuple[str, dict[str, str]]:
    """The pooling and the prompts of a resolved blend: those of its adapters that have them.

    A language adapter's count only where no other has any: a domain's was trained over it. Raises
    `HeadError` for two that differ: each was trained for its own.
    """
    infos = [info for name in blend.terms if (info := model.resident(name).info).pooling]
    infos = [info for info in infos if info.domain or not info.language] or infos
    found = {info.name: (info.pooling, info.prompts) for info in infos}
    if not found:
        return default_pooling(model.backbone), {}
    (pooling, prompts), *others = found.values()
    if any(other != (pooling, prompts) for other in others):
        listed = ", ".join(f"{name}: {own[0]}, {own[1]}" for name, own in found.items())
        raise HeadError(
            f"adapters of {str(blend)!r} were trained to embed in different ways ({listed}); keep "
            "one of them"
        )
    return pooling or "", prompts


@torch.no_grad()
def embed(
    model: "AdaptedModel",
    texts: Sequence[str],
    adapters: "Adapters",
    batch_size: int,
    prompt: str | None,
    prompt_name: str | None,
    pooling: str | None,
    progress: bool = False,
) -> Tensor:
    """See `AdaptedModel.embed`."""
    if batch_size < 1:
        raise SettingsError(f"batch_size={batch_size}: must be 1 or more")
    if prompt is not None and prompt_name is not None:
        raise SettingsError("give a prompt or a prompt_name, not both")
    backbone = model.backbone
    blends = model.blends(len(texts), adapters)
    known = {blend: embedding_of(model, blend) for blend in set(blends)}
    poolings = [pooling or known[blend][0] for blend in blends]
    names = sorted({"query", "document"}.union(*(own for _, own in known.values())))
    if prompt_name is not None and prompt_name not in names:
        raise SettingsError(f"prompt_name={prompt_name!r}: choose one of {', '.join(names)}")
    prompts = [prompt or known[blend][1].get(prompt_name or "", "") for blend in blends]
    prompted = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    encoded = encode_texts(prompted, backbone, max_length=10**9)
    order = sorted(range(len(texts)), key=lambda i: -len(encoded[i]))
    out = torch.empty(len(texts), backbone.width, device=backbone.device)
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc="embedding", unit="batch", disable=not progress):
        rows = order[start : start + batch_size]
        inputs = pad([Example(encoded[i], Row(texts[i])) for i in rows], backbone)
        with model.bank.using(model.plan([blends[i] for i in rows])):
            out[rows] = unit_vectors(model, inputs, [poolings[i] for i in rows])
    return out


class Encoder:
    """An adapted model under one blend, where a ``SentenceTransformer`` is asked to encode.

    It has what retrieval code and sentence-transformers' evaluators call. Embeddings are unit
    vectors, as of a model that ends in a ``Normalize`` layer, so ``normalize_embeddings`` is taken
    and changes nothing.
    """

    similarity_fn_name = "cosine"

    def __init__(
        self, model: "AdaptedModel", adapters: "Weights" = None, pooling: str | None = None
    ) -> None:
        self.model = model
        (self.blend,) = model.blends(1, adapters)
        own, self.prompts = embedding_of(model, self.blend)
        self.pooling = pooling or own
        self.model_card_data = Evaluations()

    def __repr__(self) -> str:
        return f"Encoder({str(self.blend)!r}, pooling={self.pooling!r}, prompts={self.prompts})"

    def encode(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        *,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
    ) -> Any:
        """Embeddings (texts, width), or (width,) of a single text; float32.

        ``prompt`` is put before each text, or the one of ``prompt_name``: ``query``, ``document``.
        A numpy array, a tensor with ``convert_to_tensor``, a list of tensors without either.
        ``truncate_dim`` keeps the first dimensions, again as unit vectors.
        """
        if prompt_name is not None and prompt is None and prompt_name not in self.prompts:
            have = ", ".join(self.prompts) or "none"
            raise SettingsError(f"prompt_name={prompt_name!r}: this blend has {have}")
        prompt = self.prompts[prompt_name] if prompt_name and prompt is None else prompt
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        progress = bool(show_progress_bar)
        found = embed(
            self.model, texts, self.blend, batch_size, prompt, None, self.pooling, progress
        )
        if truncate_dim is not None:
            found = functional.normalize(found[:, :truncate_dim], dim=-1)
        one = found[0] if isinstance(sentences, str) else found
        if convert_to_tensor:
            return one
        if convert_to_numpy:
            return one.cpu().numpy()
        return one if isinstance(sentences, str) else list(found)

    def encode_query(self, sentences: str | Sequence[str], **options: Any) -> Any:
        """`encode`, with the prompt for queries unless another is given."""
        return self.encode(sentences, **self._prompted("query", options))

    def encode_document(self, sentences: str | Sequence[str], **options: Any) -> Any:
        """`encode`, with the prompt for documents unless another is given."""
        return self.encode(sentences, **self._prompted("document", options))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines (n, m) of embeddings (n, width) and (m, width), arrays or tensors."""
        one, two = (
            functional.normalize(
                torch.as_tensor(np.asarray(x) if isinstance(x, list) else x), dim=-1
            )
            for x in (embeddings1, embeddings2)
        )
        return torch.atleast_2d(one) @ torch.atleast_2d(two).T

    def _prompted(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("prompt") is None and options.get("prompt_name") is None:
            return {**options, "prompt_name": None, "prompt": self.prompts.get(name)}
        return options


class Evaluations:
    """What sentence-transformers' evaluators measured: evaluator's name → metrics."""

    def __init__(self) -> None:
        self.metrics: dict[str, dict[str, Any]] = {}

    def set_evaluation_metrics(
        self, evaluator: Any, metrics: dict[str, Any], epoch: int = 0, step: int = 0
    ) -> None:
        """Keep an evaluator's metrics under its name, else its class's."""
        self.metrics[getattr(evaluator, "name", "") or type(evaluator).__name__] = dict(metrics)
