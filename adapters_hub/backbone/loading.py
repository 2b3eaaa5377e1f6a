"""A checkpoint, at a precision, as a `Backbone`: loaded frozen, its gaps filled or refused.

Knows transformers' loading and what checkpoints lack; does not know adapters or libraries.
"""

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from adapters_hub.backbone.backbone import Backbone, Kind, embedding_rows, find_sites
from adapters_hub.backbone.quantised import (
    BITS,
    compute_dtype,
    keep_4bit_differentiable,
    loading_options,
    narrow_embeddings,
    stored_bits,
)
from adapters_hub.backbone.sentence_transformer import read_embedding_settings
from adapters_hub.errors import BackboneError, SettingsError
from adapters_hub.library.fingerprint import fingerprint, weight_files
from adapters_hub.library.paths import STARTER, starter_folder
from adapters_hub.library.safetensors_file import read_header

log = logging.getLogger(__name__)

_CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]


def read_backbone(
    name: str,
    *,
    bits: int | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Backbone:
    """Load ``starter``, a folder, or a hub id, frozen, at 32, 16 (bfloat16), 8 or 4 bits.

    ``bits`` not given are 32, or those of a checkpoint that bitsandbytes already quantised. 8 and 4
    bits quantise the linear layers with bitsandbytes (arXiv:2208.07339, 2305.14314). ``revision``
    is a hub id's branch, tag or commit. Code that comes with a checkpoint runs only with
    ``trust_remote_code``. Offline, a hub id must be in the local cache. Raises `BackboneError`, or
    `SettingsError` for ``bits`` or a ``device`` that cannot be.
    """
    if bits is not None and bits not in BITS:
        raise SettingsError(f"bits={bits!r}: choose one of {', '.join(map(str, BITS))}")
    device = _device(device)
    folder = checkpoint_folder(name, revision)
    backbone_fingerprint = fingerprint(folder)
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"{name}: {error}") from error
    stored = stored_bits(name, config, bits)
    bits = stored or bits or 32
    _drop_impossible_padding(config)
    auto, kind = _class_for(config)
    has_lm_head = auto is not transformers.AutoModel
    options = loading_options(bits, device, quantised=stored is not None)
    if kind == "encoder" and not has_lm_head and _lacks_pooler(config, folder):
        # else the pooler would be made up, and at 8 and 4 bits not even be quantised
        options["add_pooling_layer"] = False
    options |= {"trust_remote_code": trust_remote_code, "config": config}
    model, missing = _load(name, auto, folder, options)
    if bits < 16:
        narrow_embeddings(model)
    base = _body_of(model, config, has_lm_head)
    untrained = {key.removeprefix(f"{model.base_model_prefix}.") for key in missing}
    attached: set[str] = set()
    if kind == "encoder":
        attached, random = _attach_pooler(base, config, folder, device, compute_dtype(bits, device))
        untrained |= random
    if lost := sorted(key for key in untrained if not key.startswith("pooler.")):
        raise BackboneError(
            f"{name}: the checkpoint lacks {len(lost)} tensors of {type(model).__name__}, which "
            f"would be random: {', '.join(lost[:4])}"
        )
    if bits >= 16:
        model.to(device)
    model.requires_grad_(False)
    model.eval()
    keep_4bit_differentiable(model)
    _set_padding(name, tokenizer, model)
    backbone = Backbone(
        name=name,
        folder=folder,
        model=model,
        base=base,
        tokenizer=tokenizer,
        kind=kind,
        bits=bits,
        fingerprint=backbone_fingerprint,
        has_lm_head=has_lm_head,
        revision=revision,
        untrained=frozenset(untrained),
        attached=frozenset(attached),
        embedding=read_embedding_settings(folder),
    )
    backbone.sites = find_sites(model, backbone.prefix)
    return backbone


def outline(
    name: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> tuple[Kind, bool]:
    """A backbone's kind, and whether its checkpoint has a language-model head; loads no weights."""
    folder = checkpoint_folder(name, revision)
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"{name}: {error}") from error
    auto, kind = _class_for(config)
    return kind, auto is not transformers.AutoModel


def _device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else a GPU if there is one; `SettingsError` if it is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(
            f"device={device!r}: give 'cpu', 'cuda' or 'cuda:1' ({reason})"
        ) from None
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            f"device={str(device)!r}: this PyTorch ({torch.__version__}) finds no CUDA device; "
            "device='cpu', or none given, runs on the CPU"
        )
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"device={str(device)!r}: there are {torch.cuda.device_count()} CUDA devices, counted "
            "from 0"
        )
    return wanted


def checkpoint_folder(name: str, revision: str | None = None) -> Path:
    """The local folder of a backbone; a hub id is downloaded, or taken from the cache offline."""
    if name == STARTER:
        return starter_folder()
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_CHECKPOINT_FILES))
    except HFValidationError:
        raise BackboneError(f"{name!r} is neither {STARTER!r}, a folder, nor a hub id") from None
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise BackboneError(
            f"{name!r}: no such folder, and not to be had from the hub or its local cache "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Without network, give a "
            f"folder, or {STARTER!r}"
        ) from error


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


def _class_for(config: PreTrainedConfig) -> tuple[type, Kind]:
    """The auto class with the checkpoint's language-model head, if it has one, and its kind."""
    architecture = (config.architectures or [""])[0]
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM, "encoder-decoder"
    if any(part in architecture for part in ("CausalLM", "LMHead", "ConditionalGeneration")):
        return transformers.AutoModelForCausalLM, "decoder"
    masked = type(config) in transformers.AutoModelForMaskedLM._model_mapping
    if any(part in architecture for part in ("MaskedLM", "PreTraining")) and masked:
        return transformers.AutoModelForMaskedLM, "encoder"
    return transformers.AutoModel, "encoder" if masked else "decoder"


def _load(
    name: str, auto: Any, folder: Path, options: Mapping[str, object]
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of the tensors that the checkpoint lacks."""
    try:
        with _quiet():
            model, report = auto.from_pretrained(
                folder,
                output_loading_info=True,
                use_safetensors=True,
                local_files_only=True,
                **options,
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise BackboneError(f"{name} ({folder}): {error}") from error
    return model, set(report["missing_keys"])


def _body_of(
    model: PreTrainedModel, config: PreTrainedConfig, has_lm_head: bool
) -> PreTrainedModel:
    """The part of a model below its head, as a separate model that shares its modules."""
    base = getattr(model, model.base_model_prefix, model)
    if has_lm_head and base is model:  # T5's language model holds encoder and decoder itself
        with torch.device("meta"):
            base = transformers.AutoModel.from_config(config)
        for child_name in dict(base.named_children()):
            setattr(base, child_name, getattr(model, child_name))
    return base


# ── poolers ──────────────────────────────────────────────────────────────────────────────────────


def _lacks_pooler(config: PreTrainedConfig, folder: Path) -> bool:
    """Whether the class would have a pooler, may be without one, and the checkpoint has none."""
    model_class = transformers.AutoModel._model_mapping.get(type(config), None)
    if not isinstance(model_class, type):
        return False
    optional = "add_pooling_layer" in inspect.signature(model_class).parameters
    names = (name for file in weight_files(folder) for name in read_header(file).tensors)
    return optional and not any("pooler." in name for name in names)


def _attach_pooler(
    base: PreTrainedModel,
    config: PreTrainedConfig,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[set[str], set[str]]:
    """Give an encoder the pooler its classification class has and the loaded class leaves out.

    Returns the names of the modules that were attached, and of their parameters for which the
    checkpoint has no weights.
    """
    with torch.device("meta"):
        whole = transformers.AutoModel.from_config(config)
    if getattr(whole, "pooler", None) is None or getattr(base, "pooler", None) is not None:
        return set(), set()
    from safetensors import safe_open

    pooler = whole.pooler.to_empty(device="cpu")
    pooler.apply(whole._init_weights)
    left = dict(pooler.named_parameters())
    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                parameter = key.rpartition("pooler.")[2]
                if "pooler." in key and parameter in left:
                    left.pop(parameter).data.copy_(tensors.get_tensor(key))
    base.pooler = pooler.to(device=device, dtype=dtype)
    attached = {"pooler"}
    if isinstance(getattr(whole, "pooler_activation", None), nn.Module):  # ALBERT's is beside it
        base.pooler_activation = whole.pooler_activation
        attached.add("pooler_activation")
    return attached, {f"pooler.{name}" for name in left}


# ── padding ──────────────────────────────────────────────────────────────────────────────────────


def _drop_impossible_padding(config: PreTrainedConfig) -> None:
    """Forget a padding token that the embedding has no row for: some files have -1, some more."""
    text_config = config.get_text_config()
    token, rows = text_config.pad_token_id, getattr(text_config, "vocab_size", None)
    if token is not None and rows is not None and not 0 <= token < rows:
        text_config.pad_token_id = None


def _set_padding(name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Batches need a padding token that the embedding has a row for; which one is masked anyway.

    Where the tokenizer has none, its end token pads, else its unknown token. Raises
    `BackboneError` where the embedding has a row for none of them.
    """
    rows = embedding_rows(model)
    config = model.config.get_text_config()
    missing = tokenizer.pad_token
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        tokens = [tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token]
        if config.pad_token_id is not None:
            tokens.insert(0, tokenizer.convert_ids_to_tokens(config.pad_token_id))
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokens if token}
        inside = [token for token, number in ids.items() if number is not None and number < rows]
        if not inside:
            have = ", ".join(f"{token!r} is {number}" for token, number in ids.items())
            raise BackboneError(
                f"{name}: the model's embedding has {rows} rows, and none for a token that could "
                f"pad ({have or 'the tokenizer names no special tokens'}); "
                "set tokenizer.pad_token to one of its tokens and save the tokenizer again"
            )
        tokenizer.pad_token = inside[0]
        if missing is not None:
            log.warning(
                "%s: the tokenizer pads with %r, for which the model's %d embeddings have no row; "
                "%r pads here",
                name,
                missing,
                rows,
                inside[0],
            )
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        token = generation.pad_token_id
        if token is None or not 0 <= token < rows:
            generation.pad_token_id = config.pad_token_id
