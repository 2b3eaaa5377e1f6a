"""Which examples make up each step: languages and domains drawn with p ∝ n^α, lengths together.

A pure function of sizes and a seed: every process works out the same list, a run that resumes
needs no saved position, and nothing here knows of texts or models.
"""

from collections.abc import Hashable, Sequence

import numpy as np

_MOST_POOLED = 32  # batches whose rows are sorted by length together


def plan_batches(
    lengths: Sequence[int],
    groups: Sequence[Hashable],
    *,
    batch_size: int,
    steps: int,
    alpha: float = 0.3,
    seed: int = 0,
) -> list[list[int]]:
    """``steps`` lists of ``batch_size`` example indices.

    ``groups`` says the language and domain of each example. A group of n examples is drawn with
    probability ∝ n^alpha (arXiv:1901.07291: 1 is proportional, 0 uniform), each group's examples in
    a fresh shuffle each time round. Rows of some batches are pooled, sorted by length and cut
    again, so that a batch needs little padding; the batches' order is shuffled.
    """
    rng = np.random.default_rng(seed)
    names = sorted(set(groups), key=repr)
    members = {name: np.array([i for i, g in enumerate(groups) if g == name]) for name in names}
    weights = np.array([len(members[name]) for name in names], dtype=float) ** alpha
    drawn = rng.choice(len(names), size=steps * batch_size, p=weights / weights.sum())
    order = np.empty(len(drawn), dtype=np.int64)
    for number, name in enumerate(names):
        places = np.flatnonzero(drawn == number)
        own = members[name]
        rounds = -(-len(places) // len(own))
        order[places] = np.concatenate([rng.permutation(own) for _ in range(rounds)] or [own])[
            : len(places)
        ]
    sizes = np.asarray(lengths)
    pool = batch_size * int(np.clip(len(lengths) // (2 * batch_size), 1, _MOST_POOLED))
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        rows = order[start : start + pool]
        rows = rows[np.argsort(sizes[rows], kind="stable")]
        cut = rows.reshape(-1, batch_size)
        batches += cut[rng.permutation(len(cut))].tolist()
    return batches


def share(batch: Sequence[int], process: int, processes: int, pieces: int) -> list[list[int]]:
    """One process's part of a batch, in pieces; every row is in just one piece of one process.

    The batch is sorted by length, so strides give every piece rows of all its lengths.
    """
    parts = processes * pieces
    own = [list(batch[process * pieces + piece :: parts]) for piece in range(pieces)]
    return [piece for piece in own if piece]
