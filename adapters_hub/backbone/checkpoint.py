"""Where a checkpoint lies, and what can be read there without its weights.

Knows hub ids, folders and transformers' Auto classes; does not know how weights are loaded.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from adapters_hub.backbone.backbone import Kind
from adapters_hub.errors import BackboneError
from adapters_hub.library.paths import STARTER, starter_folder

_SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.py")

_OF_TOKENIZERS = ("token", "vocab", "merges", ".model", ".spm")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint by name: ``starter``, a folder, or a hub id, and which of its files are meant.

    ``revision`` is a hub id's branch, tag or commit; ``subfolder`` holds all files, of the
    configuration, the tokenizer and the weights. Code that comes with it runs only with
    ``trust_remote_code``. ``with_weights=False`` downloads none.
    """

    name: str
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    subfolder: str = ""
    trust_remote_code: bool = False
    with_weights: bool = True

    @cached_property
    def folder(self) -> Path:
        """Its local folder; a hub id is downloaded, or taken from the cache offline."""
        folder = self._root() / self.subfolder
        if not folder.is_dir():
            raise BackboneError(f"{self.name!r} has no subfolder {self.subfolder!r}")
        return folder

    def config(self) -> PreTrainedConfig:
        """Its configuration; `BackboneError` where transformers cannot read it."""
        return self._read(transformers.AutoConfig)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer; `BackboneError` where there is none, or transformers cannot read it."""
        # transformers would make up one that knows no words
        if not any(part in file.name for file in self.folder.iterdir() for part in _OF_TOKENIZERS):
            raise BackboneError(f"{self.folder}: no tokenizer in it; give tokenizer=…")
        return self._read(transformers.AutoTokenizer)

    def _read(self, auto: Any) -> Any:
        try:
            return auto.from_pretrained(
                self.folder, trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise BackboneError(f"{self.name}: {error}") from error

    def _root(self) -> Path:
        if self.name == STARTER:
            return starter_folder()
        if Path(self.name).is_dir():
            return Path(self.name)
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        files = (*_SMALL_FILES, "*.safetensors") if self.with_weights else _SMALL_FILES
        inside = f"{self.subfolder.strip('/')}/" if self.subfolder else ""
        try:
            return Path(
                snapshot_download(
                    self.name,
                    revision=self.revision,
                    token=self.token,
                    allow_patterns=[inside + pattern for pattern in files],
                )
            )
        except HFValidationError:
            raise BackboneError(
                f"{self.name!r} is neither {STARTER!r}, a folder, nor a hub id"
            ) from None
        except (OSError, HfHubHTTPError, ValueError) as error:
            raise BackboneError(
                f"{self.name!r}: no such folder, and not to be had from the hub or its local cache "
                f"({type(error).__name__}: {str(error).splitlines()[0]}). Without network, give a "
                f"folder, or {STARTER!r}"
            ) from error


def class_for(config: PreTrainedConfig, architecture: str | None = None) -> tuple[type, Kind]:
    """The auto class with the language-model head of an architecture, if it has one; and its kind.

    ``architecture`` is the name of a class, unless it is given the one that a checkpoint names.
    """
    architecture = architecture or (config.architectures or [""])[0]
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM, "encoder-decoder"
    if any(part in architecture for part in ("CausalLM", "LMHead", "ConditionalGeneration")):
        return transformers.AutoModelForCausalLM, "decoder"
    masked = type(config) in transformers.AutoModelForMaskedLM._model_mapping
    if any(part in architecture for part in ("MaskedLM", "PreTraining")) and masked:
        return transformers.AutoModelForMaskedLM, "encoder"
    return transformers.AutoModel, "encoder" if masked else "decoder"


def outline(checkpoint: Checkpoint) -> tuple[Kind, bool]:
    """A backbone's kind, and whether its checkpoint has a language-model head; loads no weights."""
    auto, kind = class_for(checkpoint.config())
    return kind, auto is not transformers.AutoModel
