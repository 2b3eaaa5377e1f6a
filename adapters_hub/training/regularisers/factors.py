"""An adapter's delta as it learns, as factors with the scaling in B.

Knows adapters and their starts; does not know what is penalised.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from adapters_hub.training.checkpoint import Trainee


def deltas(trainee: Trainee) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each site with A (r, in) and B (out, r) whose product is the delta, with gradients.

    Of an adapter with a start, which is subtracted, the delta is s·(B·A - B₀·A₀), and its factors
    are (B - B₀ | B₀) and (A ; A - A₀): side by side the two products would lose their difference.
    """
    adapter, start = trainee.adapter, trainee.start
    for site in sorted(adapter.factors):
        a, b = adapter.factors[site]
        if start is not None:
            a0, b0 = start.factors[site]
            a, b = torch.cat((a, a - a0)), torch.cat((b - b0, b0), 1)
        yield site, a, adapter.scaling[site] * b
