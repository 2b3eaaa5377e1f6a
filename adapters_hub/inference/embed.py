"""Sentence embeddings: hidden states pooled to one vector of length 1 a text, under any blend.

Knows hidden states, pooling and prompts; does not know training, pairs or ranking.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.runtime.core import Adapters, Languages, Runtime
from adapters_hub.tasks.base import Example, pad
from adapters_hub.tasks.pooling import embedding_of, unit_vectors
from adapters_hub.text.tokenising import encode_texts


@torch.no_grad()
def embed(
    model: Runtime,
    texts: Sequence[str],
    adapters: Adapters,
    languages: Languages,
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
    blends = model.blends(len(texts), adapters, languages)
    known = {blend: embedding_of(model, blend, pooling) for blend in set(blends)}
    poolings = [known[blend][0] for blend in blends]
    names = sorted({"query", "document"}.union(*(prompts for _, prompts in known.values())) - {""})
    if prompt_name is not None and prompt_name not in names:
        raise SettingsError(f"prompt_name={prompt_name!r}: choose one of {', '.join(names)}")
    prompts = [prompt or known[blend][1].get(prompt_name or "", "") for blend in blends]
    prompted = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    if backbone.embedding.lower_case:
        prompted = [text.lower() for text in prompted]
    encoded = encode_texts(prompted, backbone, backbone.embedding.max_tokens or 10**9)
    order = sorted(range(len(texts)), key=lambda i: -len(encoded[i]))
    out = torch.empty(len(texts), backbone.width, device=backbone.device)
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc="embedding", unit="batch", disable=not progress):
        rows = order[start : start + batch_size]
        inputs = pad([Example(encoded[i], Row(texts[i])) for i in rows], backbone)
        with model.bank.using(model.plan([blends[i] for i in rows])):
            out[rows] = unit_vectors(model, inputs, [poolings[i] for i in rows])
    return out
