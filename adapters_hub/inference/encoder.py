"""An adapted model where a ``SentenceTransformer`` is asked for.

Knows the names and defaults that sentence-transformers, its evaluators, MTEB and vector stores use;
does not import them.
"""

from __future__ import annotations  # so that help() shows the names of types, not what they are

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from adapters_hub.errors import SettingsError
from adapters_hub.inference.embed import embed
from adapters_hub.inference.inputs import texts_of
from adapters_hub.inference.routing import row_blends
from adapters_hub.inference.similarity import SIMILARITIES, Embeddings, of_all, of_pairs
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.core import ACTIVE, Active, Runtime, Weights
from adapters_hub.tasks.pooling import embedding_of
from adapters_hub.text.tokenising import NO_LIMIT, text_limit

Texts = str | Sequence[str]
Device = str | torch.device
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # sentence-transformers takes the first


class Encoder:
    """An adapted model under one blend, where a ``SentenceTransformer`` is asked to encode.

    Its methods and their arguments have the names and the order that sentence-transformers gives
    them. Embeddings are unit vectors, as of a model that ends in a ``Normalize`` layer.

    ``prompts`` are those of the blend's adapters, by name; ``default_prompt_name`` may be set to
    the one that `encode` uses where none is asked for. ``truncate_dim`` may be set to the number of
    dimensions that are kept, ``similarity_fn_name`` to one of `SIMILARITIES`.
    """

    default_prompt_name: str | None = None
    truncate_dim: int | None = None
    training = False

    def __init__(
        self,
        model: Runtime,
        adapters: Weights | Active = ACTIVE,
        pooling: str | None = None,
        language: str | None = None,
    ) -> None:
        self.model = model
        self.blend = model.pinned(adapters)
        if language is not None:
            (self.blend,) = row_blends(model, [""], adapters, language)
        fixed = model.resolve(model.residents.split(self.blend)[1])
        self.pooling, prompts = embedding_of(model, fixed, pooling)
        self.prompts = {name: text for name, text in prompts.items() if name}
        self.model_card_data = CardData(model.backbone.name, self.blend)
        self._max_seq_length: int | None = None
        self._similarity = "cosine"

    def __repr__(self) -> str:
        return f"Encoder({str(self.blend)!r}, pooling={self.pooling!r}, prompts={self.prompts})"

    # ── encoding ─────────────────────────────────────────────────────────────────────────────

    def encode(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Device | Sequence[Device] | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        pool: object = None,
        chunk_size: int | None = None,
        task: str | None = None,
        *,
        sentences: Texts | None = None,
    ) -> np.ndarray | Tensor | list[Tensor]:
        """Embeddings (texts, width), or (width,) of a single text; float32.

        A numpy array; a tensor with ``convert_to_tensor``; a list of tensors without either.
        ``prompt`` is put before each text, else the one of ``prompt_name``. ``truncate_dim`` keeps
        the first dimensions, again as unit vectors unless ``normalize_embeddings`` is False.
        ``sentences`` is the older name of ``inputs``. ``chunk_size`` and ``task`` have no effect,
        as on a model without a pool of processes and with one body.

        Raises `SettingsError` for what is not done here: token embeddings, other precisions, a pool
        of processes, another device than the model's.
        """
        texts = self._texts(inputs, sentences)
        self._check(output_value, precision, device, pool)
        vectors = embed(
            self.model,
            texts_of(texts, "inputs"),
            self.blend,
            None,
            batch_size,
            prompt=self._prompt(prompt_name, prompt),
            pooling=self.pooling,
            max_length=self._max_seq_length or NO_LIMIT,
            progress=bool(show_progress_bar),
        )
        kept = self.truncate_dim if truncate_dim is None else truncate_dim
        if kept is not None:
            _check_positive("truncate_dim", kept)
            vectors = vectors[:, :kept]
            vectors = functional.normalize(vectors, dim=-1) if normalize_embeddings else vectors
        result = vectors[0] if isinstance(texts, str) else vectors
        if convert_to_tensor:
            return result
        if convert_to_numpy:
            return result.cpu().numpy()
        return result if isinstance(texts, str) else list(vectors)

    def encode_query(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *arguments: object,
        **options: object,
    ) -> np.ndarray | Tensor | list[Tensor]:
        """`encode`, with the prompt for queries unless another is given."""
        if prompt_name is None and prompt is None:
            prompt = self.prompts.get("query", "")
        return self.encode(inputs, prompt_name, prompt, *arguments, **options)  # type: ignore[arg-type]

    def encode_document(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *arguments: object,
        **options: object,
    ) -> np.ndarray | Tensor | list[Tensor]:
        """`encode`, with the prompt for documents unless another is given."""
        if prompt_name is None and prompt is None:
            named = [self.prompts[name] for name in _DOCUMENT_PROMPTS if name in self.prompts]
            prompt = named[0] if named else ""
        return self.encode(inputs, prompt_name, prompt, *arguments, **options)  # type: ignore[arg-type]

    def _texts(self, inputs: Texts | None, sentences: Texts | None) -> Texts:
        if (inputs is None) == (sentences is None):
            raise SettingsError("encode: give the texts once, as inputs (or sentences)")
        texts = sentences if inputs is None else inputs
        assert texts is not None
        return texts

    def _prompt(self, prompt_name: str | None, prompt: str | None) -> str | None:
        """What is put before each text; a prompt goes before a prompt's name."""
        if prompt is not None:
            return prompt
        name = self.default_prompt_name if prompt_name is None else prompt_name
        if name is not None and name not in self.prompts:
            have = ", ".join(self.prompts) or "none"
            raise SettingsError(f"prompt_name={name!r}: this blend has {have}")
        return None if name is None else self.prompts[name]

    def _check(
        self,
        output_value: str | None,
        precision: str | None,
        device: Device | Sequence[Device] | None,
        pool: object,
    ) -> None:
        """Raise `SettingsError` for what a SentenceTransformer does and this does not."""
        if output_value != "sentence_embedding":
            raise SettingsError(
                f"output_value={output_value!r}: only 'sentence_embedding' is given here; for "
                "hidden states of tokens call model(…, output_hidden_states=True)"
            )
        if precision not in (None, "float32"):
            raise SettingsError(
                f"precision={precision!r}: only 'float32' is given here; "
                "sentence_transformers.util.quantize_embeddings makes others of it"
            )
        if pool is not None:
            raise SettingsError("pool: this encodes in one process; leave it out")
        devices: list[Device | None] = []
        devices += [device] if device is None or isinstance(device, Device) else device
        if len(devices) > 1 or not all(_same_device(wanted, self.device) for wanted in devices):
            raise SettingsError(
                f"device={device!r}: the model is on {self.device}, and encodes there; load it "
                "where it should run: load_backbone(…, device=…)"
            )

    # ── similarity ───────────────────────────────────────────────────────────────────────────

    @property
    def similarity_fn_name(self) -> str:
        """How `similarity` compares: one of `SIMILARITIES`; cosine unless another is set."""
        return self._similarity

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: str | None) -> None:
        name = getattr(name, "value", name) or "cosine"  # sentence-transformers has an enum of them
        if name not in SIMILARITIES:
            raise SettingsError(
                f"similarity_fn_name={name!r}: choose one of {', '.join(SIMILARITIES)}"
            )
        self._similarity = name

    def similarity(self, embeddings1: Embeddings, embeddings2: Embeddings) -> Tensor:
        """How alike each of (n, width) is to each of (m, width): (n, m), the greater the more."""
        return of_all(self._similarity, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Embeddings, embeddings2: Embeddings) -> Tensor:
        """How alike each of (n, width) is to the one beside it of (n, width): (n,)."""
        return of_pairs(self._similarity, embeddings1, embeddings2)

    # ── the model ────────────────────────────────────────────────────────────────────────────

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer."""
        return self.model.backbone.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model is, and so its embeddings."""
        return self.model.backbone.device

    @property
    def max_seq_length(self) -> int | None:
        """At how many tokens a text is cut; None where neither a limit nor the backbone says it."""
        limits = (self._max_seq_length, self.model.backbone.max_tokens)
        return min((limit for limit in limits if limit is not None), default=None)

    @max_seq_length.setter
    def max_seq_length(self, length: int | None) -> None:
        if length is not None:
            _check_positive("max_seq_length", length)
            text_limit(self.model.backbone, length)  # says so where special tokens fill it
        self._max_seq_length = length

    def get_max_seq_length(self) -> int | None:
        """`max_seq_length`."""
        return self.max_seq_length

    def get_embedding_dimension(self) -> int:
        """The width of what `encode` gives."""
        width = self.model.backbone.width
        return width if self.truncate_dim is None else min(width, self.truncate_dim)

    def get_sentence_embedding_dimension(self) -> int:
        """`get_embedding_dimension`, by its older name."""
        return self.get_embedding_dimension()

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Inside the block `encode` keeps the first dimensions."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings  # its older name

    def eval(self) -> Self:
        """Nothing: the backbone is frozen and never trains through this."""
        return self


class CardData:
    """What evaluators and benchmarks read of a model, and what they measured on it.

    ``metrics``: evaluator's name → metrics.
    """

    base_model_revision: str | None = None

    def __init__(self, backbone: str, blend: Blend) -> None:
        self.base_model = backbone
        self.model_name = f"{backbone} + {blend}" if blend else backbone
        self.metrics: dict[str, dict[str, float]] = {}

    def set_evaluation_metrics(
        self, evaluator: object, metrics: dict[str, float], epoch: int = 0, step: int = 0
    ) -> None:
        """Keep an evaluator's metrics under its name, else its class's."""
        self.metrics[getattr(evaluator, "name", "") or type(evaluator).__name__] = dict(metrics)


def _same_device(wanted: Device | None, device: torch.device) -> bool:
    """Whether a device is the one that is meant; ``cuda`` is any of them."""
    if wanted is None:
        return True
    wanted = torch.device(wanted)
    return wanted.type == device.type and wanted.index in (None, device.index)


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingsError(f"{name}={value!r}: must be a whole number, 1 or more")
