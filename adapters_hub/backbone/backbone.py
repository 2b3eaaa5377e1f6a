"""The frozen backbone: its sites listed once, and transformers' task classes around it.

Knows transformers' classes and names; does not know adapters, or how a checkpoint is loaded.
Nothing here ever trains: all parameters have ``requires_grad`` off and all modules are in eval
mode.
"""

import copy
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput
from transformers.pytorch_utils import Conv1D

from adapters_hub.backbone.copies import with_children
from adapters_hub.backbone.moe import MoEModule
from adapters_hub.backbone.packing import Packing, packing_of
from adapters_hub.backbone.sentence_transformer import EmbeddingSettings
from adapters_hub.backbone.shards import Shards
from adapters_hub.backbone.task_shell import KnownBody, TaskShell
from adapters_hub.errors import BackboneError
from adapters_hub.library.safetensors_file import Layout

log = logging.getLogger(__name__)

Kind = Literal["encoder", "decoder", "encoder-decoder"]


@dataclass
class Backbone:
    """A frozen pretrained model and its tokenizer.

    ``model`` is the language-model class where the checkpoint has a language-model head, else the
    bare model; ``base`` is the part below every head. ``sites`` maps each linear layer's path to
    the layer; paths are relative to ``base``, so they are the same whatever head is on top. ``moe``
    are the routers and experts by theirs, whose sites (`MoEModule.sites`) are no layers.
    ``bits`` are those of its linear layers' weights, ``dtype`` is the precision of what flows
    between the layers; ``embedding`` is what the checkpoint's folder says about its use for
    sentence embeddings. A model that was made from a configuration has no ``folder``. ``shards``
    are what this process holds of a backbone whose weights lie on several.
    """

    name: str
    folder: Path | None
    model: PreTrainedModel
    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kind: Kind
    bits: int
    dtype: torch.dtype
    fingerprint: str
    has_lm_head: bool
    revision: str | None = None  # of a hub id: the one asked for
    untrained: frozenset[str] = frozenset()  # base parameters that the checkpoint lacks (a pooler)
    attached: frozenset[str] = frozenset()  # modules of base that the class of model leaves out
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    sites: dict[str, nn.Module] = field(default_factory=dict, repr=False)
    moe: dict[str, MoEModule] = field(default_factory=dict, repr=False)
    shards: Shards | None = field(default=None, repr=False)
    # what the runtime remembers of how files of one layout, and of some target_parameters, lie here
    site_maps: WeakKeyDictionary[Layout, dict[frozenset[str], object]] = field(
        default_factory=WeakKeyDictionary, repr=False
    )
    _shells: dict[tuple[str, tuple[tuple[str, object], ...]], TaskShell] = field(
        default_factory=dict, repr=False
    )
    _packings: dict[int, Packing | None] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> PreTrainedConfig:
        """The transformers configuration."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the embeddings are, or are brought to, and so where inputs go."""
        first = next(self.model.parameters())
        return execution_device(self.model) if first.is_meta else first.device

    @property
    def offloaded(self) -> bool:
        """Whether weights are on disk, or swapped in for each forward by accelerate's hooks."""
        return any(parameter.is_meta for parameter in self.model.parameters())

    @property
    def prefix(self) -> str:
        """What stands before a site's path in ``model``: ``bert.``, ``model.``, or nothing."""
        name = getattr(self.model, "base_model_prefix", "")
        return f"{name}." if name and getattr(self.model, name, None) is self.base else ""

    def check_at_hand(self, what: str) -> None:
        """Raise `BackboneError` where weights are sharded or offloaded; ``what`` they cannot be."""
        if self.shards is not None:
            raise BackboneError(
                f"{self.name} is sharded (FSDP): its weights lie in parts on several processes and "
                f"so cannot be {what}; do that in a process that holds all of them"
            )
        if self.offloaded:
            raise BackboneError(
                f"{self.name} is offloaded by its device_map: some weights are not in memory and "
                f"so cannot be {what}; load it with device='cpu', or a map without 'disk'"
            )

    def site_of(self, module: str) -> str | None:
        """The site that a module path from a PEFT file means, for any head it was saved under.

        Of the experts of a layer it is their path in ``moe``.
        """
        body_name = getattr(self.base, "base_model_prefix", "")
        for path in (module, module.removeprefix(f"{body_name}."), module.partition(".")[2]):
            if path in self.sites or path in self.moe:
                return path
        alike = self._by_last_parts.get(_last_parts(module), [])
        return alike[0] if len(alike) == 1 else None

    @cached_property
    def _by_last_parts(self) -> dict[str, list[str]]:
        sites: dict[str, list[str]] = {}
        for site in (*self.sites, *self.moe):
            sites.setdefault(_last_parts(site), []).append(site)
        return sites

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(in, out) features of every site."""
        return site_shapes(self.sites, self.moe)

    @cached_property
    def stacks(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """The parameters of routers and experts by their path in ``moe``, each with its sites."""
        return {path: module.parameters for path, module in self.moe.items()}

    def module(self, path: str) -> nn.Module:
        """The layer of a site, or the router or experts of a path in ``moe``."""
        return self.sites[path] if path in self.sites else self.moe[path].module

    def weights(self, sites: Collection[str]) -> list[nn.Parameter]:
        """The weights that have these sites, each once."""
        layers = [self.sites[s].get_parameter("weight") for s in sorted(sites) if s in self.sites]
        return layers + [
            module.module.get_parameter(parameter)
            for module in self.moe.values()
            for parameter, slices in module.parameters.items()
            if not frozenset(sites).isdisjoint(slices)
        ]

    @property
    def call_options(self) -> dict[str, bool]:
        """What a forward of a task class, or of what reads texts, asks for: no key-value cache.

        Of an encoder-decoder nothing: the encoder that reads has no cache, and some task classes
        (T5Gemma's) say so themselves and take it from no one else.
        """
        return {"use_cache": False} if self.kind == "decoder" else {}

    @property
    def lm_options(self) -> dict[str, bool]:
        """The same of ``model`` and ``base``, in which an encoder-decoder's decoder has a cache."""
        return {} if self.kind == "encoder" else {"use_cache": False}

    @property
    def pad_token_id(self) -> int:
        """The token that fills what a row is shorter than its batch."""
        choices = (self.config.get_text_config().pad_token_id, self.tokenizer.pad_token_id)
        return next((token for token in choices if token is not None), 0)

    @property
    def vocabulary(self) -> int:
        """How many tokens the embedding has a row for."""
        return embedding_rows(self.model)

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
                positions = len(module.get_parameter("weight"))  # I-BERT's is no nn.Embedding
                limit = min(limit, positions - offset - 1)
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
        hidden: torch.Tensor = self.base(**inputs, **self.lm_options).last_hidden_state
        return hidden

    def bypassed(self, called: Collection[str], rows: int, tokens: int) -> frozenset[str]:
        """Sites whose weight has an effect though their layer is never called (Mamba's dt_proj).

        ``called`` are those that a forward called. Of the other layers, those without an effect,
        such as experts that no token went to, are fine.
        """
        kinds: dict[str, list[str]] = {}
        for site in self.body_sites:
            weight = self.sites[site]._parameters["weight"]
            if site not in called and weight is not None:
                kinds.setdefault(site.rpartition(".")[2], []).append(site)
        seen = (sites for sites in kinds.values() if self._sees_weights(sites, rows, tokens))
        moe = (module.sites - set(called) for module in self.moe.values())
        return frozenset().union(*seen, *moe)

    def _sees_weights(self, sites: Sequence[str], rows: int, tokens: int) -> bool:
        """Whether a forward sees the weights of these sites, for which NaN stands meanwhile.

        A quantised one, which cannot hold NaN, is taken for a whole one. Who looks for its scales
        then fails, and so has seen it too.
        """
        parameters = [self.sites[site]._parameters for site in sites]
        kept = [of_site["weight"] for of_site in parameters]
        try:
            for site, of_site, weight in zip(sites, parameters, kept, strict=True):
                assert weight is not None  # of which `bypassed` makes sure
                shape, dtype = weight.shape, weight.dtype
                if not weight.is_floating_point():  # bitsandbytes', of which none is a Conv1D
                    shape, dtype = torch.Size(reversed(site_shape(self.sites[site]))), self.dtype
                nothing = torch.full((), torch.nan, dtype=dtype, device=weight.device)
                of_site["weight"] = nn.Parameter(nothing.expand(shape), requires_grad=False)
            return bool(self.probe(rows, tokens).isnan().any())
        except (RuntimeError, ValueError, TypeError, AttributeError):
            return True
        finally:
            for of_site, weight in zip(parameters, kept, strict=True):
                of_site["weight"] = weight

    def hidden_states(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The last hidden states (rows, tokens, width) below the head, of the decoder if there are
        two parts.
        """
        hidden: torch.Tensor = self.base(**inputs, **self.lm_options).last_hidden_state
        return hidden

    def head_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Language-model logits (n, vocabulary) of last hidden states (n, width).

        The class of ``model`` makes them, whatever it does above its body, scales and caps
        included. Sites of the head get each state as a row of its own.
        """
        ids = torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device)
        inputs: dict[str, object] = {"input_ids": ids, **self.lm_options}
        if self.kind == "encoder-decoder":
            known = BaseModelOutput(last_hidden_state=hidden[:, None])
            inputs |= {"decoder_input_ids": ids, "encoder_outputs": known}
        # T5's holds its two parts itself, of which the second is below the head
        body = {self.prefix[:-1] or "decoder": KnownBody(hidden[:, None])}
        logits: torch.Tensor = with_children(self.model, **body)(**inputs).logits[:, 0]
        return logits.to(hidden.device)  # where accelerate's hook, which is off, would bring them

    def splits_head(self) -> bool:
        """Whether `head_logits` of `hidden_states` are the model's logits, as far as a probe tells.

        Ask where no plan is followed, and once: it takes a forward.
        """
        if not self.has_lm_head:
            return False
        for tokens in (5, 64):  # some architectures need more than a few
            try:
                return self._splits(2, tokens)
            except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
                log.debug("the head of %s, with %d tokens: %r", self.name, tokens, error)
        return False

    @torch.no_grad()
    def _splits(self, rows: int, tokens: int) -> bool:
        ids = torch.arange(rows * tokens, device=self.device).view(rows, tokens) % self.vocabulary
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.kind == "encoder-decoder":
            inputs["decoder_input_ids"] = ids
        model = copy.copy(self.model)  # which is not a compiled one
        whole = model(**inputs, **self.lm_options).logits.float()
        split = self.head_logits(self.hidden_states(inputs).flatten(0, 1)).view(whole.shape)
        apart = (split - whole).abs().max() <= 0.02 * whole.abs().max()  # rounding of 16 bits
        if not apart:
            log.debug("the head of %s does more than with its last hidden states", self.name)
        return bool(apart)

    def packing(self, tokens: int) -> Packing | None:
        """How documents in rows of so many tokens are kept apart; see `packing_of`."""
        if tokens not in self._packings:
            self._packings[tokens] = packing_of(self, tokens)
        return self._packings[tokens]

    def shell(self, auto_class: str, **changes: object) -> TaskShell:
        """A transformers task class (``AutoModelForSequenceClassification``, …) around ``base``.

        ``changes`` are made to the configuration, such as ``num_labels=3``. Raises `BackboneError`
        where transformers has no such class around the whole of ``base``.
        """
        key = (auto_class, tuple(sorted(changes.items())))
        if key not in self._shells:
            self._shells[key] = TaskShell(
                self.base,
                self.config,
                auto_class,
                changes,
                options=self.call_options,
                untrained=self.untrained,
                sites=self.body_sites,
            )
        return self._shells[key]


def _last_parts(path: str) -> str:
    """A site's path without the names that only say what the text model is wrapped in.

    A model of vision and language, the text model alone, and older versions of either call the same
    layer ``model.language_model.layers.0.…``, ``language_model.model.layers.0.…`` or
    ``model.layers.0.…``.
    """
    parts = path.split(".")
    while parts and parts[0] in ("model", "language_model", "text_model"):
        del parts[0]
    return ".".join(parts)


def find_sites(model: nn.Module, prefix: str) -> dict[str, nn.Module]:
    """Every linear layer adapters may act on, by its path below ``prefix``.

    Experts that are linear layers each are left out: their input is a shuffle of tokens, in which
    rows of the batch can no longer be told apart. Those in stacks are `moe.find_moe`'s.
    """
    return {
        path.removeprefix(prefix): module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and ".experts." not in path
    }


def execution_device(model: nn.Module) -> torch.device:
    """Where an offloaded model's weights are brought to first, as accelerate's hooks say."""
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            if (device := getattr(one, "execution_device", None)) is not None:
                return torch.device(device)
    raise BackboneError(
        f"this {type(model).__name__} has no weights in memory, and no hooks that would bring them"
    )


def site_shape(module: nn.Module) -> tuple[int, int]:
    """(in, out) features of a site, whatever its class packs its weight into."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return module.in_features, module.out_features  # type: ignore[return-value]


def site_shapes(
    layers: Mapping[str, nn.Module], moe: Mapping[str, MoEModule]
) -> dict[str, tuple[int, int]]:
    """(in, out) features of every site."""
    shapes = {site: site_shape(layer) for site, layer in layers.items()}
    for module in moe.values():
        for parameter, sites in module.parameters.items():
            shapes |= dict.fromkeys(sites, module.shape(parameter))
    return shapes


def embedding_rows(model: PreTrainedModel) -> int:
    """How many tokens a model's input embedding has a row for."""
    return len(model.get_input_embeddings().get_parameter("weight"))


ContextPair = tuple[AbstractContextManager[object], AbstractContextManager[object]]


def enable_checkpointing(
    model: PreTrainedModel, context_fn: Callable[[], ContextPair]
) -> list[RemovableHandle]:
    """Recompute each layer's activations in the backward instead of keeping them.

    Returns the hooks it put on what calls the layers.

    transformers does so only for layers in training mode, so the layers alone are put into it, for
    a forward that is differentiated (in others it would take away the key-value cache), with the
    dropout they apply by themselves set to nothing: a frozen backbone has none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    def follow_grad_mode(container: nn.Module, inputs: object) -> None:
        for layer in container.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = torch.is_grad_enabled()

    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False, "context_fn": context_fn})
    # What calls the layers has the hook: a layer of transformers may look before its hooks run.
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
