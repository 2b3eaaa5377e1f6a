"""The frozen backbone: loaded at a precision, its sites found once, task classes around it.

Knows transformers' classes and names; does not know adapters. Nothing here ever trains: all
parameters have ``requires_grad`` off and all modules are in eval mode.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from adapters_hub.backbone.quantised import narrow_embeddings
from adapters_hub.backbone.task_shell import Given, TaskShell
from adapters_hub.errors import BackboneError, SettingsError
from adapters_hub.library.fingerprint import fingerprint
from adapters_hub.library.paths import STARTER, starter_folder

log = logging.getLogger(__name__)

Kind = Literal["encoder", "decoder", "encoder-decoder"]
BITS = (32, 16, 8, 4)
_WHOLE = {32: torch.float32, 16: torch.bfloat16}
_CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]


@dataclass
class Backbone:
    """A frozen pretrained model and its tokenizer.

    ``model`` is the language-model class where the checkpoint has a language-model head, else the
    bare model; ``base`` is the part below every head. ``sites`` maps each linear layer's path to
    the layer; paths are relative to ``base``, so they are the same whatever head is on top.
    """

    name: str
    folder: Path
    model: nn.Module
    base: nn.Module
    tokenizer: Any
    kind: Kind
    bits: int
    fingerprint: str
    has_lm_head: bool
    untrained: frozenset[str] = frozenset()  # base parameters that the checkpoint lacks (a pooler)
    attached: frozenset[str] = frozenset()  # modules of base that the class of model leaves out
    sites: dict[str, nn.Module] = field(default_factory=dict, repr=False)
    fits: Any = field(default_factory=WeakKeyDictionary, repr=False)  # for `adapter` to remember by
    _shells: dict[Any, TaskShell] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the embeddings are, and so where inputs go."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of what flows between the layers."""
        return _wide(self.device) if self.bits < 16 else _WHOLE[self.bits]

    @property
    def prefix(self) -> str:
        """What stands before a site's path in ``model``: ``bert.``, ``model.``, or nothing."""
        name = getattr(self.model, "base_model_prefix", "")
        return f"{name}." if name and getattr(self.model, name, None) is self.base else ""

    def site_of(self, module: str) -> str | None:
        """The site that a module path from a PEFT file means, for any head it was saved under."""
        own = getattr(self.base, "base_model_prefix", "")
        for path in (module, module.removeprefix(f"{own}."), module.partition(".")[2]):
            if path in self.sites:
                return path
        return None

    @property
    def call_options(self) -> dict[str, Any]:
        """What a forward without generation asks for: no key-value cache."""
        return {"use_cache": False} if self.kind == "decoder" else {}

    @property
    def pad_token_id(self) -> int:
        """The token that fills what a row is shorter than its batch."""
        known = (self.config.get_text_config().pad_token_id, self.tokenizer.pad_token_id)
        return next((token for token in known if token is not None), 0)

    @property
    def width(self) -> int:
        """The size of a hidden state."""
        return self.config.get_text_config().hidden_size

    @cached_property
    def max_tokens(self) -> int | None:
        """How many tokens a row may have; RoBERTa's kind counts its positions from padding on."""
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        for path, module in self.base.named_modules():
            offset = getattr(module, "padding_idx", None)
            if limit and path.endswith("position_embeddings") and offset is not None:
                limit = min(limit, module.num_embeddings - offset - 1)
        return limit

    @cached_property
    def body_sites(self) -> list[str]:
        """Sites of the body, an attached pooler's too."""
        body = dict(self.base.named_modules())
        return [site for site in self.sites if site in body]

    @cached_property
    def lm_sites(self) -> list[str]:
        """Sites of the body that ``model`` has as transformers loads it."""
        return [site for site in self.body_sites if site.partition(".")[0] not in self.attached]

    @cached_property
    def head_sites(self) -> frozenset[str]:
        """Sites outside the body, such as ``lm_head``."""
        return frozenset(self.sites) - frozenset(self.body_sites)

    @torch.no_grad()
    def probe(self, rows: int, tokens: int) -> torch.Tensor:
        """One forward of the body over rows of one token repeated, for who watches its layers.

        Returns its last hidden states (rows, tokens, width).
        """
        ones = torch.ones(rows, tokens, dtype=torch.long, device=self.device)
        inputs = {"input_ids": ones, "attention_mask": ones}
        if self.kind == "encoder-decoder":
            inputs["decoder_input_ids"] = ones
        hidden: torch.Tensor = self.base(**inputs, **self.call_options).last_hidden_state
        return hidden

    def lm_logits(self, inputs: dict[str, torch.Tensor], at: torch.Tensor) -> torch.Tensor:
        """Language-model logits (n, vocabulary) at the n chosen positions, ``at`` (rows, tokens).

        Only these go through the head, which for masked targets saves most of its cost.
        """
        hidden = self.base(**inputs, **self.call_options).last_hidden_state[at]
        return self.head_logits(hidden, inputs["input_ids"])

    def head_logits(self, hidden: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Language-model logits (n, vocabulary) of last hidden states (n, width).

        ``input_ids`` (rows, tokens) are only there because the class wants some.
        """
        head = copy.copy(self.model)
        head._modules = {**self.model._modules, self.prefix[:-1]: Given(hidden[None])}
        return head(input_ids=input_ids, **self.call_options).logits[0]

    def shell(self, auto_class: str, **config: Any) -> TaskShell:
        """A transformers task class (``AutoModelForSequenceClassification``, …) around ``base``."""
        key = (auto_class, tuple(sorted(config.items())))
        if key not in self._shells:
            self._shells[key] = TaskShell(self, auto_class, config)
        return self._shells[key]


# ── loading ──────────────────────────────────────────────────────────────────────────────────────


def load_backbone(
    name: str,
    *,
    bits: int = 32,
    device: str | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Backbone:
    """Load ``starter``, a folder, or a hub id, frozen, at 32, 16 (bfloat16), 8 or 4 bits.

    8 and 4 bits quantise the linear layers with bitsandbytes (arXiv:2208.07339, 2305.14314). Code
    that comes with a checkpoint runs only with ``trust_remote_code``. Offline, a hub id must be in
    the local cache. Raises `BackboneError`, or `SettingsError` for wrong ``bits``.
    """
    if bits not in BITS:
        raise SettingsError(f"bits={bits!r}: choose one of {', '.join(map(str, BITS))}")
    folder = checkpoint_folder(name, revision)
    print_ = fingerprint(folder)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"{name}: {error}") from error
    auto, kind = _class_for(config)
    options = _precision(bits, device) | {"trust_remote_code": trust_remote_code}
    model, missing = _load(auto, folder, options)
    if bits < 16:
        narrow_embeddings(model)
    base = getattr(model, model.base_model_prefix, model)
    has_lm_head = auto is not transformers.AutoModel
    if has_lm_head and base is model:  # T5's language model holds encoder and decoder itself
        with torch.device("meta"):
            base = transformers.AutoModel.from_config(config)
        for child_name in dict(base.named_children()):
            setattr(base, child_name, getattr(model, child_name))
    untrained = {key.removeprefix(f"{model.base_model_prefix}.") for key in missing}
    had_pooler = getattr(base, "pooler", None) is not None
    if has_lm_head and kind == "encoder":
        untrained |= _attach_pooler(base, config, folder, device, options["dtype"])
    attached = getattr(base, "pooler", None) is not None and not had_pooler
    if lost := sorted(key for key in untrained if not key.startswith("pooler.")):
        raise BackboneError(
            f"{name}: the checkpoint lacks {len(lost)} tensors of {type(model).__name__}, which "
            f"would be random: {', '.join(lost[:4])}"
        )
    if "quantization_config" not in options:
        model.to(device)
    model.requires_grad_(False)
    model.eval()
    _keep_4bit_differentiable(model)
    _set_padding(tokenizer, model)
    backbone = Backbone(
        name=name,
        folder=folder,
        model=model,
        base=base,
        tokenizer=tokenizer,
        kind=kind,
        bits=bits,
        fingerprint=print_,
        has_lm_head=has_lm_head,
        untrained=frozenset(untrained),
        attached=frozenset({"pooler"} if attached else ()),
    )
    backbone.sites = find_sites(model, backbone.prefix)
    return backbone


def find_sites(model: nn.Module, prefix: str) -> dict[str, nn.Module]:
    """Every linear layer adapters may act on, by its path below ``prefix``.

    Linear layers of mixture-of-experts blocks are left out: their input is a shuffle of tokens, in
    which rows of the batch can no longer be told apart.
    """
    return {
        path.removeprefix(prefix): module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and ".experts." not in path
    }


def site_shape(module: nn.Module) -> tuple[int, int]:
    """(in, out) features of a site, whatever its class packs its weight into."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return module.in_features, module.out_features  # type: ignore[return-value]


def enable_checkpointing(model: Any, context_fn: Any) -> list[RemovableHandle]:
    """Recompute each layer's activations in the backward instead of keeping them.

    Returns the hooks it put on what calls the layers.

    transformers does so only for layers in training mode, so the layers alone are put into it, for
    a forward that is differentiated (in others it would take away the key-value cache), with the
    dropout they apply by themselves set to nothing: a frozen backbone has none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    def follow_grad_mode(container: nn.Module, inputs: Any) -> None:
        for layer in container.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = torch.is_grad_enabled()

    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False, "context_fn": context_fn})
    # What calls the layers has the hook: a layer of transformers may look before its own hooks run.
    modules, callers = dict(model.named_modules()), {}
    for path, module in modules.items():
        if isinstance(module, GradientCheckpointingLayer):
            while isinstance(modules[path := path.rpartition(".")[0]], nn.ModuleList):
                pass
            callers[path] = modules[path]
            for name, value in vars(module).items():
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)
    return [caller.register_forward_pre_hook(follow_grad_mode) for caller in callers.values()]


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


def _class_for(config: Any) -> tuple[Any, Kind]:
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


def _wide(device: torch.device) -> torch.dtype:
    """The precision beside quantised weights."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def _precision(bits: int, device: torch.device) -> dict[str, Any]:
    wide = _wide(device)
    if bits >= 16:
        return {"dtype": _WHOLE[bits]}
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise BackboneError(
            f"bits={bits} needs bitsandbytes: pip install 'adapters-hub[bits]'"
        ) from None
    if bits == 8:
        quantised = transformers.BitsAndBytesConfig(load_in_8bit=True)
    else:
        quantised = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=wide
        )
    return {"dtype": wide, "quantization_config": quantised, "device_map": {"": device}}


def _load(auto: Any, folder: Path, options: dict[str, Any]) -> tuple[Any, set[str]]:
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
        raise BackboneError(f"{folder}: {error}") from error
    return model, set(report["missing_keys"])


def _attach_pooler(
    base: nn.Module, config: Any, folder: Path, device: torch.device, dtype: torch.dtype
) -> set[str]:
    """Give an encoder the pooler its classification class has and its LM class leaves out.

    Returns the pooler's parameter names if the checkpoint has no weights for it.
    """
    with torch.device("meta"):
        full = transformers.AutoModel.from_config(config)
    if getattr(full, "pooler", None) is None or getattr(base, "pooler", None) is not None:
        return set()
    from safetensors import safe_open

    from adapters_hub.library.fingerprint import weight_files

    pooler = full.pooler.to_empty(device="cpu")
    pooler.apply(full._init_weights)
    left = dict(pooler.named_parameters())
    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                own = key.rpartition("pooler.")[2]
                if "pooler." in key and own in left:
                    left.pop(own).data.copy_(tensors.get_tensor(key))
    base.pooler = pooler.to(device=device, dtype=dtype)
    return {f"pooler.{name}" for name in left}


def _keep_4bit_differentiable(model: nn.Module) -> None:
    """Keep bitsandbytes' 4-bit layers out of eval mode on the CPU.

    In eval mode they repack their weight for a kernel that has no backward and drops the gradient
    with no more than a warning. The layer has no dropout, so nothing else changes.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.training = True


def _set_padding(tokenizer: Any, model: Any) -> None:
    """Batches need a padding token; a decoder without one pads with its end token, masked."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    config = model.config.get_text_config()
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None and generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
