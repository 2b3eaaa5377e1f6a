"""An adapted model where a ``SentenceTransformer`` is asked for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters_hub.errors import SettingsError
from adapters_hub.inference.embed import embed
from adapters_hub.runtime.core import ACTIVE, Active, Runtime, Weights
from adapters_hub.tasks.pooling import embedding_of


class Encoder:
    """An adapted model under one blend, where a ``SentenceTransformer`` is asked to encode.

    It has what retrieval code and sentence-transformers' evaluators call. Embeddings are unit
    vectors, as of a model that ends in a ``Normalize`` layer, so ``normalize_embeddings`` is taken
    and changes nothing.
    """

    similarity_fn_name = "cosine"

    def __init__(
        self,
        model: Runtime,
        adapters: Weights | Active = ACTIVE,
        pooling: str | None = None,
        language: str | None = None,
    ) -> None:
        self.model = model
        (self.blend,) = model.blends(1, adapters, language)
        self.pooling, prompts = embedding_of(model, self.blend, pooling)
        self.prompts = {name: text for name, text in prompts.items() if name}
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
            self.model, texts, self.blend, None, batch_size, prompt, None, self.pooling, progress
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
