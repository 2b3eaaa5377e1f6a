"""Ranking documents for queries, and the metrics of it; knows vectors only.

The rank of a document is one more than the number of documents before it: those with a higher
cosine, and of equal ones those that come earlier in the corpus. So ties are always broken the same
way, nothing is sorted, and all metrics follow from the ranks of the relevant documents.
"""

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from adapters_hub.errors import DataError

_SCORES = 2**24  # similarities in memory at a time, unless one query has more


def ranks(
    queries: Tensor,
    documents: Tensor,
    relevant: Sequence[Collection[int]],
    left_out: Sequence[Collection[int]] | None = None,
) -> list[list[int]]:
    """The rank, from 1, of each relevant document, the best first; a list a query.

    ``queries`` (n, width) and ``documents`` (m, width) are unit vectors; ``relevant`` and
    ``left_out`` have document numbers for each query, and the latter are not ranked at all.
    Products are taken in float64, so that equal vectors have equal scores wherever they stand.
    """
    ranked: list[list[int]] = []
    corpus = documents.double().T
    places = torch.arange(len(documents), device=documents.device)
    chunk = max(1, _SCORES // max(1, len(documents)))
    for start in range(0, len(queries), chunk):
        scores = (queries[start : start + chunk].double() @ corpus).float()
        if scores.isnan().any():
            raise DataError("a vector to rank holds NaN or infinity")
        for number, row in enumerate(scores, start):
            if left_out:
                row[list(left_out[number])] = -torch.inf
            right = torch.tensor(sorted(relevant[number]), dtype=torch.long, device=row.device)
            score = row[right][:, None]
            before = (row > score) | ((row == score) & (places < right[:, None]))
            ranked.append(sorted((before.sum(1) + 1).tolist()))
    return ranked


def ndcg(positions: Sequence[int], at: int = 10) -> float:
    """One query's nDCG from the ranks of its relevant documents: relevance is 0 or 1.

    DCG is Σ 1 / log2(1 + rank) over those of the first ``at`` (doi:10.1145/582415.582418), divided
    by that of the best order there is.
    """
    gains = [1 / math.log2(1 + rank) for rank in range(1, at + 1)]
    return sum(gains[rank - 1] for rank in positions if rank <= at) / sum(gains[: len(positions)])


def ranking_metrics(
    ranked: Sequence[Sequence[int]], recall_at: Sequence[int] = (1, 10, 100)
) -> dict[str, float]:
    """nDCG@10, MRR, accuracy@1 and recall@k, means over queries, from `ranks`.

    The reciprocal rank is the first relevant document's; recall is the share of the relevant ones
    among the first k. See `ndcg`.
    """
    totals = dict.fromkeys(
        ["ndcg@10", "mrr", "accuracy@1", *(f"recall@{k}" for k in recall_at)], 0.0
    )
    for positions in ranked:
        totals["ndcg@10"] += ndcg(positions)
        totals["mrr"] += 1 / positions[0]
        totals["accuracy@1"] += positions[0] == 1
        for k in recall_at:
            totals[f"recall@{k}"] += sum(rank <= k for rank in positions) / len(positions)
    return {name: total / len(ranked) for name, total in totals.items()}
