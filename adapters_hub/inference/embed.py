"""Sentence embeddings: hidden states pooled to one vector of length 1 a text, under any blend.

Knows hidden states, pooling and prompts; does not know training, pairs or ranking.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters_hub.backbone.padding import padded
from adapters_hub.data.batches import by_length, check_batch_size
from adapters_hub.errors import SettingsError
from adapters_hub.inference.routing import row_blends
from adapters_hub.progress import over
from adapters_hub.runtime.core import Adapters, Languages, Runtime
from adapters_hub.tasks.pooling import embedding_of, unit_vectors
from adapters_hub.text.tokenising import NO_LIMIT, encode_texts


@torch.no_grad()
def embed(
    model: Runtime,
    texts: Sequence[str],
    adapters: Adapters,
    languages: Languages,
    batch_size: int,
    *,
    prompt: str | None = None,
    prompt_name: str | None = None,
    pooling: str | None = None,
    max_length: int = NO_LIMIT,
    progress: bool = False,
) -> Tensor:
    """See `AdaptedModel.embed`; a text, with its prompt, is cut at ``max_length`` tokens."""
    check_batch_size(batch_size)
    if prompt is not None and prompt_name is not None:
        raise SettingsError("give a prompt or a prompt_name, not both")
    backbone = model.backbone
    blends = row_blends(model, texts, adapters, languages)
    known = {blend: embedding_of(model, blend, pooling) for blend in set(blends)}
    poolings = [known[blend][0] for blend in blends]
    names = sorted({"query", "document"}.union(*(prompts for _, prompts in known.values())) - {""})
    if prompt_name is not None and prompt_name not in names:
        raise SettingsError(f"prompt_name={prompt_name!r}: choose one of {', '.join(names)}")
    if prompt is not None:
        prompts = [prompt] * len(texts)
    else:
        prompts = [known[blend][1].get(prompt_name or "", "") for blend in blends]
    prompted = [before + text for before, text in zip(prompts, texts, strict=True)]
    if backbone.embedding.lower_case:
        prompted = [text.lower() for text in prompted]
    limit = min(max_length, backbone.embedding.max_tokens or max_length)
    encoded = encode_texts(prompted, backbone, limit)
    vectors = torch.empty(len(texts), backbone.width, device=backbone.device)
    batches = by_length([len(ids) for ids in encoded], batch_size)
    batches.reverse()  # the longest first: if they do not fit into memory, that shows at once
    for rows in over(batches, "embedding", "batches", show=progress):
        inputs = padded([encoded[row] for row in rows], backbone)
        with model.bank.using(model.plan([blends[row] for row in rows])):
            vectors[rows] = unit_vectors(model, inputs, [poolings[row] for row in rows])
    return vectors
