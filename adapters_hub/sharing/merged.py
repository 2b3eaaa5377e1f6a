"""A whole plain model with the blend in its weights: for engines that read no adapters.

Knows transformers' folders, and of KerasHub which models it reads. Never imports Keras.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer

from adapters_hub.errors import SettingsError, UnsupportedAdapterError
from adapters_hub.inference.export import merge, without_blend
from adapters_hub.sharing.checks import Check, check_outputs
from adapters_hub.sharing.engine import Engine, Source, of_type, written

_CAUSAL = ("gemma", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "qwen2", "qwen3")
_ENCODERS = ("bert", "distilbert", "roberta", "xlm-roberta")
"""What KerasHub reads: of these the causal language model, of those the text classifier."""


class Merged(Engine):
    """A transformers folder with weights, configuration, tokenizer and head."""

    name = "merged"

    def write(self, source: Source, folder: Path) -> str:
        if source.method != "sum" or source.options:
            raise SettingsError(
                f"--for {self.name}: a whole model gets the exact sum; leave out method and rank"
            )
        number: torch.dtype = getattr(torch, source.dtype)
        plain = merge(source.model, source.blend).to(number)
        with written(folder) as stage:
            plain.save_pretrained(stage)
            source.model.backbone.tokenizer.save_pretrained(stage)
        return f"{type(plain).__name__}.from_pretrained(FOLDER)"

    def check(self, source: Source, folder: Path, texts: Sequence[str]) -> Check:
        """By transformers."""
        expected = merge(source.model, source.blend)
        loaded = type(expected).from_pretrained(folder, dtype=torch.float32).eval()
        return check_outputs(
            f"transformers {transformers.__version__}",
            loaded,
            expected,
            without_blend(source.model, source.blend),
            AutoTokenizer.from_pretrained(folder),
            texts,
            source.dtype,
        )


class Keras(Merged):
    """The same, of a type that KerasHub reads on TensorFlow, JAX or PyTorch."""

    name = "keras"

    def write(self, source: Source, folder: Path) -> str:
        kind = of_type(source, self.name, (*_CAUSAL, *_ENCODERS))
        owners = [n for n in source.blend.terms if source.model.resident(n).head]
        tasks = {source.model.resident(name).info.task for name in owners}
        if (kind in _ENCODERS) != (tasks <= {"classification", None} and bool(owners)):
            raise UnsupportedAdapterError(
                f"--for keras: KerasHub has text classifiers of {', '.join(_ENCODERS)}, and causal "
                f"language models of {', '.join(_CAUSAL)}; {source.blend} on {kind} is neither"
            )
        if "roberta" in kind and source.model.backbone.pad_token_id != 1:
            raise UnsupportedAdapterError(
                f"--for keras: the padding token of {source.model.backbone.name} is not 1, from "
                "which KerasHub counts a RoBERTa's positions"
            )
        super().write(source, folder)
        return "adapters_hub.sharing.keras.load_keras(FOLDER)"
