"""Transformers' task classes around one frozen body, and what a body is replaced with for them.

Knows transformers' classes; does not know adapters, tasks or how a backbone was loaded.
"""

import copy
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from adapters_hub.errors import BackboneError

BODY_OUTPUTS = ("last_hidden_state", "pooler_output")
"""What heads read of a body: (rows, tokens, width), and (rows, width) where it has a pooler."""


class TaskShell:
    """A transformers task class that computes its head and borrows everything below it.

    The class is built on the meta device, so it costs nothing; its head's parameters are passed in
    at each call. So every architecture has the head, the pooling and the parameter names that
    transformers and PEFT give it, one body serves any number of heads, and rows of one batch can
    have different heads over one pass through the body. Calls share no state: threads are fine.
    ``sites`` are those of the body that the class has below its head.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        config: PreTrainedConfig,
        auto_class: str,
        changes: Mapping[str, object],
        *,
        options: Mapping[str, object],
        untrained: Set[str],
        sites: Sequence[str],
    ) -> None:
        """``auto_class``, with ``changes`` made to ``config``, around the body ``base``.

        ``options`` go into each forward of the body, ``untrained`` are its parameters for which the
        checkpoint has no weights, ``sites`` are its linear layers. Raises `BackboneError` where
        transformers has no such class, or not one around the whole body.
        """
        two_parts = config.is_encoder_decoder  # a class that takes the encoder alone resets it
        config = copy.deepcopy(config)
        for key, value in changes.items():
            setattr(config, key, value)
        mapping = getattr(transformers, auto_class)._model_mapping
        if type(config) not in mapping:
            raise BackboneError(f"transformers has no {auto_class} for {config.model_type} models")
        cls = mapping[type(config)]
        with torch.device("meta"):
            self._shell = (cls[0] if isinstance(cls, tuple) else cls)(config).eval()
        self._base = base
        self._options = options
        self._slot = self._shell.base_model_prefix
        body = getattr(self._shell, self._slot, None)
        if body is None or (two_parts and type(body) is not type(base)):
            raise BackboneError(
                f"{type(self._shell).__name__} of transformers is not a head around the whole "
                f"{type(base).__name__}, so it cannot share it; take an encoder or a decoder "
                "for this task"
            )
        uses_pooler = getattr(body, "pooler", None) is not None
        self._shell._modules[self._slot] = None
        self.prefix = f"{self._slot}."
        self._pooler_prefix = f"{self._slot}.pooler."
        self.shapes = {name: p.shape for name, p in self._shell.named_parameters()}
        if uses_pooler:
            parameters = dict(base.named_parameters())
            self.shapes |= {self.prefix + name: parameters[name].shape for name in untrained}
        self.untrained_pooler = uses_pooler and bool(untrained)
        pooler_is_the_heads = bool(untrained) or not uses_pooler  # or no one's
        self.sites = [
            site
            for site in sites
            if not (pooler_is_the_heads and site.partition(".")[0] == "pooler")
        ]

    def initial_head(self, seed: int) -> dict[str, torch.Tensor]:
        """Fresh head parameters (float32) by path, started as transformers starts them."""
        children = {
            name: child for name, child in self._shell.named_children() if child is not None
        }
        if any(name.startswith(self._pooler_prefix) for name in self.shapes):
            children[self._pooler_prefix[:-1]] = self._base.pooler
        head: dict[str, torch.Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, child in children.items():
                real = copy.deepcopy(child).to_empty(device="cpu").float()
                real.apply(self._shell._init_weights)
                head |= {f"{name}.{k}": v.detach() for k, v in real.named_parameters()}
        return {name: head[name] for name in self.shapes}

    def __call__(
        self,
        heads: list[tuple[dict[str, torch.Tensor], torch.Tensor | None]],
        inputs: dict[str, torch.Tensor],
        known: Mapping[str, torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Logits, a tensor for each (head parameters, row indices or None = all).

        (rows, labels) or (rows, tokens, labels), as the class has them; start and end logits of
        question answering are two labels (rows, tokens, 2). The body runs once over the whole
        batch, however many heads there are, and not at all where ``known`` are its `features`.
        """
        return self._run(_Body(self._base, known), heads, inputs)

    @torch.no_grad()
    def features(
        self, head: Mapping[str, torch.Tensor], inputs: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What heads read of the body, by `BODY_OUTPUTS`, whatever ``head`` is the one at hand."""
        body = _Body(self._base)
        # Detached: autocast may keep the copies that it makes here, which have no gradient.
        self._run(body, [({name: p.detach() for name, p in head.items()}, None)], inputs)
        outputs = {name: getattr(body.output, name, None) for name in BODY_OUTPUTS}
        return {name: tensor for name, tensor in outputs.items() if tensor is not None}

    def _run(
        self,
        body: "_Body",
        heads: list[tuple[dict[str, torch.Tensor], torch.Tensor | None]],
        inputs: dict[str, torch.Tensor],
    ) -> list[torch.Tensor]:
        logits: list[torch.Tensor] = []
        for parameters, rows in heads:
            shell = _bind(self._shell, parameters)
            body.pooler = _pooler_of(self._base, parameters, self._pooler_prefix)
            shell._modules[self._slot] = body
            if body.output is None:  # the first head sees the whole batch, so that the body does
                out = _logits(shell(**inputs, **self._options))
                logits.append(out if rows is None else out[rows])
            else:
                body.rows = rows
                some = inputs if rows is None else {k: v[rows] for k, v in inputs.items()}
                logits.append(_logits(shell(**some, **self._options)))
        return logits


def _logits(output: ModelOutput) -> torch.Tensor:
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], -1)
    return output.logits


class KnownBody(nn.Module):
    """Stands where a language-model class has its body, with the hidden states already known."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *args: object, **kwargs: object) -> ModelOutput:
        """The hidden states it was made with, whatever is asked."""
        return _HiddenStates(last_hidden_state=self.hidden)


@dataclass
class _HiddenStates(ModelOutput):
    """A body's output with nothing but what heads read of it.

    Caches, routers' logits and whatever else a class passes on are None.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Body(nn.Module):
    """Stands where a task class has its body: runs it once, then hands out rows of its output.

    It is not run where its output is ``known``.
    Heads compute in float32, whatever the precision of the body.
    """

    def __init__(self, base: nn.Module, known: Mapping[str, torch.Tensor] | None = None) -> None:
        super().__init__()
        self._run = base.__call__  # not a submodule: its parameters are not the head's
        self.activation = _pooler_activation(base)
        # of the class that the body returns
        self.output: ModelOutput | None = _HiddenStates(**known) if known else None
        self.rows: torch.Tensor | None = None
        self.pooler: nn.Module | None = None

    def forward(self, *args: object, **kwargs: object) -> ModelOutput:
        """What the body gives, for ``rows`` of the batch only."""
        if self.output is None:
            self.output = self._run(*args, **kwargs)
        out = type(self.output)(last_hidden_state=self._take(self.output.last_hidden_state))
        pooled = getattr(self.output, "pooler_output", None)
        if self.pooler is not None:
            states = out.last_hidden_state
            if self.activation is None:
                out["pooler_output"] = self.pooler(states)
            else:
                out["pooler_output"] = self.activation(self.pooler(states[:, 0]))
        elif pooled is not None:
            out["pooler_output"] = self._take(pooled)
        return out

    def _take(self, tensor: torch.Tensor) -> torch.Tensor:
        return (tensor if self.rows is None else tensor[self.rows]).float()


def _bind(module: nn.Module, parameters: dict[str, torch.Tensor], path: str = "") -> nn.Module:
    """A shallow copy of a module tree that holds the given tensors as its parameters."""
    clone = copy.copy(module)
    bound: dict[str, Any] = {  # tensors, where torch's type has parameters
        name: None if old is None else parameters[path + name]
        for name, old in module._parameters.items()
    }
    clone._parameters = bound
    clone._modules = {
        name: None if child is None else _bind(child, parameters, f"{path}{name}.")
        for name, child in module._modules.items()
    }
    return clone


def _pooler_of(
    base: PreTrainedModel, parameters: dict[str, torch.Tensor], prefix: str
) -> nn.Module | None:
    """A pooler from the parameters of the head, where the checkpoint brought none."""
    of_pooler = {
        name.removeprefix(prefix): p for name, p in parameters.items() if name.startswith(prefix)
    }
    return _bind(base.pooler, of_pooler) if of_pooler else None


def _pooler_activation(base: nn.Module) -> nn.Module | None:
    """The activation of a pooler that is one linear layer, of the first token's state (ALBERT's).

    None where the pooler is a module that does all of it (BERT's).
    """
    return getattr(base, "pooler_activation", None)
