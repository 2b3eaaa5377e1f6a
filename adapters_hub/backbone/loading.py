"""A checkpoint, at a precision, as a `Backbone`: loaded frozen, its gaps filled or refused.

Knows transformers' loading and what checkpoints lack; does not know adapters or libraries.
"""

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from adapters_hub.backbone.assembly import Parts, assembled, attach_pooler, body_of
from adapters_hub.backbone.backbone import Backbone
from adapters_hub.backbone.checkpoint import Checkpoint, class_for
from adapters_hub.backbone.options import Options
from adapters_hub.backbone.quantised import narrow_embeddings, stored_bits
from adapters_hub.errors import BackboneError
from adapters_hub.extras import say_once
from adapters_hub.library.fingerprint import fingerprint, weight_files
from adapters_hub.library.safetensors_file import read_header


def read_backbone(
    checkpoint: Checkpoint | str,
    options: Options | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Backbone:
    """Load a checkpoint, frozen; ``tokenizer`` takes the place of the one beside it.

    ``bits`` not given are those of a checkpoint that bitsandbytes already quantised, else 32. 8 and
    4 bits quantise the linear layers with bitsandbytes (arXiv:2208.07339, 2305.14314). Offline, a
    hub id must be in the local cache. Raises `BackboneError`.
    """
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    options = options or Options()
    name, folder = checkpoint.name, checkpoint.folder
    backbone_fingerprint = fingerprint(folder)
    config = checkpoint.config()
    tokenizer = tokenizer or checkpoint.tokenizer()
    stored = stored_bits(name, config, options.bits)
    bits = stored or options.bits or 32
    _drop_impossible_padding(config)
    auto, kind = class_for(config)
    has_lm_head = auto is not transformers.AutoModel
    keywords = options.keywords(bits, quantised=stored is not None)
    if kind == "encoder" and not has_lm_head and _lacks_pooler(config, folder):
        # else the pooler would be made up, and at 8 and 4 bits not even be quantised
        keywords["add_pooling_layer"] = False
    keywords |= {"trust_remote_code": checkpoint.trust_remote_code, "config": config}
    model, missing = _load(name, auto, folder, keywords)
    dtype = model.dtype
    if bits < 16:
        narrow_embeddings(model)
    elif options.device_map is None:
        model.to(options.place)
    parts = Parts(model, body_of(model, has_lm_head))
    parts.untrained |= {key.removeprefix(f"{model.base_model_prefix}.") for key in missing}
    if kind == "encoder":
        attach_pooler(parts, weight_files(folder), dtype)
    if bits < 16:
        say_once("bitsandbytes")  # which else says at each layer that it casts its inputs
    if lost := sorted(key for key in parts.untrained if not key.startswith("pooler.")):
        raise BackboneError(
            f"{name}: the checkpoint lacks {len(lost)} tensors of {type(model).__name__}, which "
            f"would be random: {', '.join(lost[:4])}"
        )
    return assembled(
        parts,
        tokenizer,
        name=name,
        folder=folder,
        kind=kind,
        bits=bits if bits < 16 else dtype.itemsize * 8,
        dtype=dtype,
        fingerprint=backbone_fingerprint,
        has_lm_head=has_lm_head,
        revision=checkpoint.revision,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars or reports of transformers while a checkpoint loads."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


@contextmanager
def _read_by_each_process() -> Iterator[None]:
    """Read the weights in every process that accelerate launched for FSDP, not in the first alone.

    They are mapped into memory, which the processes of a machine share; nothing is sent between
    them.
    """
    key = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    asked = os.environ.get(key)
    if asked is None:
        yield
        return
    os.environ[key] = "false"
    try:
        yield
    finally:
        os.environ[key] = asked


def _load(
    name: str, auto: Any, folder: Path, keywords: Mapping[str, object]
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of the tensors that the checkpoint lacks."""
    try:
        with _quiet(), _read_by_each_process():
            model, report = auto.from_pretrained(
                folder,
                output_loading_info=True,
                use_safetensors=True,
                local_files_only=True,
                **keywords,
            )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        raise BackboneError(f"{name} ({folder}): {error}") from error
    return model, set(report["missing_keys"])


def _lacks_pooler(config: PreTrainedConfig, folder: Path) -> bool:
    """Whether the class would have a pooler, may be without one, and the checkpoint has none."""
    model_class = transformers.AutoModel._model_mapping.get(type(config), None)
    if not isinstance(model_class, type):
        return False
    optional = "add_pooling_layer" in inspect.signature(model_class).parameters
    names = (name for file in weight_files(folder) for name in read_header(file).tensors)
    return optional and not any("pooler." in name for name in names)


def _drop_impossible_padding(config: PreTrainedConfig) -> None:
    """Forget a padding token that the embedding has no row for: some files have -1, some more."""
    text_config = config.get_text_config()
    token, rows = text_config.pad_token_id, getattr(text_config, "vocab_size", None)
    if token is not None and rows is not None and not 0 <= token < rows:
        text_config.pad_token_id = None
