"""Copies of a transformers model: what they share is parted, and foreign hooks are taken off.

Knows torch's and transformers' insides; does not know adapters or what the copies are for.
"""

import copy
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

_BOUND_CALLS = ("_compiled_call", "_compiled_call_impl", "forward")
"""What transformers, torch and accelerate's hooks bind to the module itself."""


def untie(model: PreTrainedModel) -> None:
    """Give every name of a shared parameter a separate tensor, and say so in the configuration.

    One output layer that differs from its embedding unties all of them: with
    ``tie_word_embeddings=False`` transformers ties nothing when it loads the model again, neither
    BART's encoder and decoder embeddings nor BERT's second name of the output layer's bias.
    """
    model.config.tie_word_embeddings = False
    model.config.get_text_config().tie_word_embeddings = False
    seen: set[int] = set()
    for path, parameter in [*model.named_parameters(remove_duplicate=False)]:
        if id(parameter) in seen:
            owner, _, name = path.rpartition(".")
            alone = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            setattr(model.get_submodule(owner), name, alone)
            parameter = alone
        seen.add(id(parameter))


def remove_hooks(model: nn.Module, ids: Collection[int]) -> None:
    """Take the forward hooks of these handles' ids off every module."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for number in [number for number in hooks if number in ids]:
                del hooks[number]


def with_children(module: PreTrainedModel, **children: nn.Module) -> PreTrainedModel:
    """A module that shares everything with another, but may have other children."""
    clone = copy.copy(module)
    vars(clone).pop("forward", None)  # accelerate's runs the module that this is a copy of
    clone._modules = {**module._modules, **children}
    return clone


def with_parameters(
    module: nn.Module, parameters: Mapping[str, Tensor], *, hooks: Collection[int]
) -> nn.Module:
    """A module with other tensors as some of its parameters, sharing everything else.

    Of the forward hooks it keeps those of these handles' ids.
    """
    clone = copy.copy(module)
    for bound in _BOUND_CALLS:  # to the module this is a copy of
        vars(clone).pop(bound, None)
    replaced: dict[str, Any] = {**module._parameters, **parameters}  # torch's type has parameters
    clone._parameters = replaced
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        kept = vars(module)[name]
        setattr(clone, name, type(kept)((n, hook) for n, hook in kept.items() if n in hooks))
    return clone


def with_weights(
    model: nn.Module,
    weights: Mapping[int, Mapping[str, Tensor]],
    *,
    without_hooks: Collection[int],
) -> nn.Module:
    """The model with other weights in some modules, sharing everything else with it.

    ``weights`` are by the modules' ids and the parameters' names; ``without_hooks`` are ids of
    forward hooks it must not have.
    """
    made: dict[int, nn.Module] = {}

    def view(module: nn.Module) -> nn.Module:
        if id(module) not in made:
            hooks = {*module._forward_hooks, *module._forward_pre_hooks}.difference(without_hooks)
            new = weights.get(id(module), {})
            parameters = {name: nn.Parameter(t, requires_grad=False) for name, t in new.items()}
            clone = made[id(module)] = with_parameters(module, parameters, hooks=hooks)
            children = module._modules.items()
            clone._modules = {n: None if child is None else view(child) for n, child in children}
        return made[id(module)]

    return view(model)
