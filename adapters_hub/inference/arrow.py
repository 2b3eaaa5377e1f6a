"""Arrow (arXiv:2405.11157): chooses adapters for a text by the adapters' factors alone.

At each site an adapter's prototype is the direction that its delta answers most, the top right
singular vector of B·A. A token's hidden state votes for the adapters whose prototypes it is most in
line with. The paper mixes anew for each token at each site. A plan here is one for all sites, so
the votes of the bare backbone's tokens are averaged, over sites and the tokens of a text: one blend
a text. Knows texts, factors and hidden states; no languages.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident

import torch
from torch import Tensor, nn

from adapters_hub.backbone.padding import padded
from adapters_hub.data.batches import by_length, check_batch_size
from adapters_hub.errors import SettingsError
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Runtime
from adapters_hub.tasks.reader import reader
from adapters_hub.text.tokenising import encode_texts


@torch.no_grad()
def arrow_blends(
    model: Runtime,
    texts: Sequence[str],
    terms: Sequence[str],
    *,
    top: int = 2,
    temperature: float = 1.0,
    batch_size: int = 32,
) -> list[Blend]:
    """A blend of some of these adapters for each text, whose weights add up to one.

    At each site and token the ``top`` adapters share a softmax of the votes over ``temperature``.
    Raises `SettingsError` for fewer adapters than ``top``, and for none that acts in the body.
    """
    check_batch_size(batch_size)
    names = [name for term in terms for name in model.resolve(term).terms]
    names = list(dict.fromkeys(names))
    if not 1 <= top <= len(names) or not temperature > 0:
        raise SettingsError(
            f"top={top}, temperature={temperature} with {len(names)} adapters: top is from 1 to "
            "the number of adapters, and the temperature above 0"
        )
    adapters = [model.resident(name) for name in names]
    of_sites = {
        site: prototypes_of(adapters, site)
        for site in model.backbone.lm_sites
        if any(site in adapter.factors for adapter in adapters)
    }
    if not of_sites:
        raise SettingsError(f"{', '.join(names)}: none acts on a linear layer of the body")
    encoded = encode_texts(texts, model.backbone)
    weights = torch.zeros(len(texts), len(names))
    for rows in by_length([len(ids) for ids in encoded], batch_size):
        inputs = padded([encoded[row] for row in rows], model.backbone)
        mask = inputs["attention_mask"].float()
        with model.bank.using(None), _seen(model.backbone.sites, of_sites) as seen:
            reader(model.backbone)(**inputs, **model.backbone.call_options)
        votes = [
            votes_of(states, of_sites[site], top, temperature)
            for site, states in seen.items()
            if states.shape[:2] == mask.shape  # a pooler sees no tokens, a decoder others
        ]
        by_token = torch.stack(votes).mean(0)
        share = mask / mask.sum(1, keepdim=True)
        weights[rows] = torch.einsum("rt,rte->re", share, by_token).cpu()
    kept = [[round(weight, 4) for weight in row] for row in weights.tolist()]
    return [Blend([*zip(names, row, strict=True)], exact=True) for row in kept]


def prototypes_of(adapters: Sequence[Adapter], site: str) -> Tensor:
    """The prototypes (adapters, in) of a site: unit vectors, zero where an adapter does not act."""
    width = next(a.factors[site][0].shape[1] for a in adapters if site in a.factors)
    rows = []
    for adapter in adapters:
        if site not in adapter.factors:
            rows.append(torch.zeros(width))
            continue
        a, b = (factor.float() for factor in adapter.factors[site])
        # B = Q·R with orthonormal Q, so that B·A and the small R·A have the same right vectors
        small = torch.linalg.qr(b).R @ a
        rows.append(torch.linalg.svd(small, full_matrices=False).Vh[0])
    return torch.stack([row.to(rows[0].device) for row in rows])


def votes_of(states: Tensor, prototypes: Tensor, top: int, temperature: float) -> Tensor:
    """The weights (…, adapters) of hidden states (…, in): |h·v|, a softmax over the ``top``."""
    alike = (states.float() @ prototypes.to(states.device).T).abs()
    best, where = alike.topk(top, dim=-1)
    return torch.zeros_like(alike).scatter(-1, where, (best / temperature).softmax(-1))


@contextmanager
def _seen(sites: Mapping[str, nn.Module], chosen: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """What goes into sites in this thread while the block runs, of the last call."""
    seen: dict[str, Tensor] = {}
    thread = get_ident()  # hooks are the module's, and other threads may call it too

    def keeping(site: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            if get_ident() == thread:
                seen[site] = given[0].detach()

        return keep

    hooks = [sites[site].register_forward_pre_hook(keeping(site)) for site in chosen]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
