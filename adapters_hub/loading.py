"""From names to a model: the two ways to get an `AdaptedModel`.

Knows which backbone adapters name; what a model does with them is its own.
"""

import os

import torch

from adapters_hub import backbone as backbones
from adapters_hub.bank import MEMORY
from adapters_hub.blend import Blend
from adapters_hub.errors import BackboneMismatchError, NotFoundError
from adapters_hub.info import AdapterInfo
from adapters_hub.library import Library
from adapters_hub.model import AdaptedModel


def load_backbone(
    name: str = "starter",
    *,
    library: Library | str | os.PathLike[str] | None = None,
    bits: int = 32,
    device: str | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    check_backbone: bool = True,
    memory: int = MEMORY,
    host_memory: int | None = None,
) -> AdaptedModel:
    """A backbone with no adapter active: ``starter``, a folder, or a hub id.

    ``bits``: 32, 16 (bfloat16), or 8 and 4 by bitsandbytes. See `AdaptedModel`.
    """
    backbone = backbones.load_backbone(
        name, bits=bits, device=device, revision=revision, trust_remote_code=trust_remote_code
    )
    if not isinstance(library, Library):
        library = Library(library)
    return AdaptedModel(
        backbone, library, memory=memory, host_memory=host_memory, check_backbone=check_backbone
    )


def load(
    language: str | None = None,
    domain: str | None = None,
    *,
    library: Library | str | os.PathLike[str] | None = None,
    bits: int = 32,
    device: str | torch.device | None = None,
) -> AdaptedModel:
    """The backbone that a language's and a domain's adapters name, with both active.

    A language without an adapter falls back to the closest one within a stated distance, with a
    logged warning. Raises `NotFoundError`, or `BackboneMismatchError` if they name two backbones.
    """
    library = library if isinstance(library, Library) else Library(library)
    terms = [f"domain:{domain}"] if domain else []
    terms += [f"lang:{language}"] if language else []
    if not terms:
        raise NotFoundError("load() needs a language or a domain; load_backbone() takes none")
    found: list[AdapterInfo] = []
    for term in terms:
        found.append(library.find(term, found[0].fingerprint if found else None))
    names = {info.backbone for info in found}
    if len(names) != 1 or None in names:
        raise BackboneMismatchError(
            "the adapters must name one backbone, and name "
            + ", ".join(f"{info.backbone} ({info.name})" for info in found)
            + "; load_backbone(...) takes it from you"
        )
    model = load_backbone(names.pop() or "", library=library, bits=bits, device=device)
    exact = Blend.of([info.name for info in reversed(found)])
    model.residents.load(set(exact.terms))
    once = tuple((name, 1.0) for name in exact.terms)  # if both are one
    model.active = Blend(once, exact=True)
    return model
