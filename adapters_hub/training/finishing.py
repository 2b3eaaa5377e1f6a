"""What a trained adapter becomes: a plain LoRA, without the start below it, cut if that was asked.

Knows factors and the settings of a run; does not know tasks, models or files.
"""

from dataclasses import replace

from adapters_hub.compose.core_space import Piece
from adapters_hub.compose.methods import compose_sites, describe_cut
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.training.settings import TrainingSettings


def plain(adapter: Adapter, start: Adapter | None, settings: TrainingSettings) -> Adapter:
    """The adapter whose delta is that of a trained one less that of its start.

    That is s·(B·A - B₀·A₀), of up to twice the rank, by its singular values: B and B₀ are nearly
    equal, and side by side they would lose their difference in 16 bits. ``cut`` and ``cut_rank``
    leave the smallest ones out, and the adapter's description says so. Without these and a start
    it is the trained one, untouched.
    """
    cuts = settings.cut is not None or settings.cut_rank is not None
    if not adapter.factors or not (cuts or start):
        return adapter
    pieces: dict[str, list[Piece]] = {}
    for site, (a, b) in adapter.factors.items():
        pieces[site] = [(adapter.scaling[site], a, b)]
        if start is not None:
            pieces[site].append((-start.scaling[site], *start.factors[site]))
    factors = compose_sites(pieces, "svd", rank=settings.cut_rank, energy=settings.cut)
    info = replace(adapter.info, rank=max(len(a) for a, _ in factors.values()))
    if cuts:
        options = {"energy": settings.cut, "rank": settings.cut_rank}
        asked = ", ".join(f"{name}={value}" for name, value in options.items() if value is not None)
        kept = describe_cut(pieces, factors)
        info = replace(info, description=f"Cut after training ({asked}): it keeps {kept}.")
    config = {key: value for key, value in adapter.config.items() if key != "use_rslora"}
    scaling = dict.fromkeys(factors, 1.0)  # which is in B now
    return replace(adapter, info=info, factors=factors, scaling=scaling, config=config)
