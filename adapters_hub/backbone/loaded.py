"""A transformers model that is loaded already, as a `Backbone`: the same object, frozen.

Knows which of transformers' classes can be a backbone; does not know adapters or libraries.
"""

import os
from dataclasses import replace
from pathlib import Path

import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapters_hub.backbone.assembly import Parts, assembled, attach_pooler, body_of, check_in_memory
from adapters_hub.backbone.backbone import Backbone, Kind
from adapters_hub.backbone.checkpoint import Checkpoint, class_for
from adapters_hub.backbone.identity import fingerprint_of_model
from adapters_hub.backbone.options import Options
from adapters_hub.backbone.quantised import check_not_repacked, stored_bits
from adapters_hub.errors import BackboneError, SettingsError
from adapters_hub.library.fingerprint import weight_files
from adapters_hub.library.safetensors_file import read_header


def name_of(model_or_id: str | os.PathLike[str] | PreTrainedModel) -> str:
    """The checkpoint's name: the one given, or that of the model; its class's where it has none."""
    if isinstance(model_or_id, str | os.PathLike):
        return os.fspath(model_or_id)
    return getattr(model_or_id, "name_or_path", "") or type(model_or_id).__name__


def take_model(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    options: Options,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Backbone:
    """A backbone of the model itself, which is frozen and put into eval mode; no weight changes.

    ``checkpoint`` is what it came from, and has its tokenizer, unless one is given. Raises
    `BackboneError` for a model that cannot be a backbone, `SettingsError` for ``options`` of
    loading, and where there is no tokenizer.
    """
    _check(model)
    if options.given:
        raise SettingsError(
            f"{', '.join(options.given)}: the model is loaded already, with its precision, place "
            "and attention; give these to from_pretrained, or the checkpoint's name here"
        )
    kind, has_lm_head = _kind_of(model)
    name = checkpoint.name
    quantised = stored_bits(name, model.config, None)
    known = _checkpoint_of(model, checkpoint)
    if tokenizer is None:
        if known is None:
            raise SettingsError(
                f"{name}: the model was made from a configuration, so nothing says which tokenizer "
                "is its; give tokenizer=…"
            )
        tokenizer = known.tokenizer()
    folder = None if known is None else _folder_of(known)
    check_in_memory(name, model)
    check_not_repacked(name, model)
    parts = Parts(model, body_of(model, has_lm_head))
    backbone_fingerprint = fingerprint_of_model(name, model, folder)
    if kind == "encoder":
        files = _weight_files(folder)
        parts.untrained = _untrained_pooler(parts.base, files)
        attach_pooler(parts, files, model.dtype, to_copy=True)
    return assembled(
        parts,
        tokenizer,
        name=name,
        folder=folder,
        kind=kind,
        bits=quantised or min(32, model.dtype.itemsize * 8),
        dtype=model.dtype,
        fingerprint=backbone_fingerprint,
        has_lm_head=has_lm_head,
        revision=None if known is None else known.revision,
    )


def _check(model: nn.Module) -> None:
    """Refuse what is no plain transformers model."""
    kind = type(model).__name__
    modules = [*model.modules()] if isinstance(model, nn.Module) else []
    if hasattr(model, "_orig_mod") or any(m._compiled_call_impl is not None for m in modules):
        raise BackboneError(
            f"the {kind} is compiled, and so would not see adapters; give the model as it was "
            "before torch.compile, and call .compile() of what load_backbone returns"
        )
    of_peft = next((m for m in modules if type(m).__module__.partition(".")[0] == "peft"), None)
    if of_peft is not None:
        raise BackboneError(
            f"the {kind} holds adapters of PEFT ({type(of_peft).__name__}), and a backbone is a "
            "model without any: save_pretrained them, library.add(...) the folder, and give the "
            "plain model (.unload() of a PeftModel returns it)"
        )
    if not isinstance(model, PreTrainedModel):
        raise BackboneError(
            f"a backbone is 'starter', a folder, a hub id, or a transformers PreTrainedModel, and "
            f"this is a {type(model).__module__}.{kind}"
        )


def _kind_of(model: PreTrainedModel) -> tuple[Kind, bool]:
    """A model's kind, and whether it has a language-model head; refuses those of other heads."""
    cls = type(model)
    auto, kind = class_for(model.config, cls.__name__)
    has_lm_head = auto is not transformers.AutoModel
    if has_lm_head:
        if model.get_output_embeddings() is not None and "PreTraining" not in cls.__name__:
            return kind, True
    elif model.base_model is model:
        bare = transformers.AutoModel._model_mapping.get(type(model.config), cls)
        if isinstance(model, bare):
            return kind, False
    raise BackboneError(
        f"a {cls.__name__} cannot be a backbone: give a language model or a bare encoder or "
        "decoder, such as AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM or "
        "AutoModel load; the heads of tasks come with adapters"
    )


def _checkpoint_of(model: PreTrainedModel, checkpoint: Checkpoint) -> Checkpoint | None:
    """What the model was loaded from, at the commit it had then; None for a new model."""
    if not model.name_or_path:
        return None
    commit = getattr(model.config, "_commit_hash", None)
    on_hub = not Path(checkpoint.name).is_dir()
    revision = checkpoint.revision or (commit if on_hub else None)
    return replace(checkpoint, revision=revision, with_weights=False)


def _folder_of(checkpoint: Checkpoint) -> Path | None:
    """The checkpoint's folder, if it can be had: a model may have a name and no files left."""
    try:
        return checkpoint.folder
    except BackboneError:
        return None


def _weight_files(folder: Path | None) -> list[Path]:
    try:
        return [] if folder is None else weight_files(folder)
    except BackboneError:  # pickled ones
        return []


def _untrained_pooler(base: PreTrainedModel, files: list[Path]) -> set[str]:
    """Parameters of a pooler for which the checkpoint has no weights: transformers made them up."""
    pooler = getattr(base, "pooler", None)
    if pooler is None or not files:
        return set()
    stored = [key for file in files for key in read_header(file).tensors]
    names = (f"pooler.{name}" for name, _ in pooler.named_parameters())
    return {name for name in names if not any(key.endswith(name) for key in stored)}
