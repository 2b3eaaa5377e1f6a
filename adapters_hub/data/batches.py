"""Which examples make up each step: languages, then domains, drawn with p ∝ n^α; lengths together.

A pure function of sizes and a seed: every process works out the same list, a run that resumes
needs no saved position, and nothing here knows of texts or models.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

_MOST_POOLED = 32  # batches whose rows are sorted by length together


def plan_batches(
    lengths: Sequence[int],
    groups: Sequence[Hashable],
    within: Sequence[Hashable] | None = None,
    *,
    batch_size: int,
    steps: int,
    alpha: float = 0.3,
    pooled: bool = True,
    seed: int = 0,
) -> list[list[int]]:
    """``steps`` lists of ``batch_size`` example indices.

    ``groups`` says what each example is drawn as, such as its language, ``within`` what it is drawn
    as inside that, such as its domain. A group of n examples is drawn with probability ∝ n^alpha
    (arXiv:1901.07291: 1 is proportional, 0 uniform), then a part of it of m examples with
    probability ∝ m^alpha; so what a language gets does not depend on how many domains it is cut
    into. Each part's examples come in a fresh shuffle each time round.

    Where ``pooled``, rows of some batches are brought together, sorted by length and cut again, so
    that a batch needs little padding; the batches' order is shuffled. Not where rows are compared
    with those of their batch: what they would learn is to tell apart texts of one length.
    """
    rng = np.random.default_rng(seed)
    parts = list(zip(groups, within or [None] * len(groups), strict=True))
    members: dict[tuple[Hashable, Hashable], list[int]] = {}
    for number, part in enumerate(parts):
        members.setdefault(part, []).append(number)
    names = sorted(members, key=repr)
    chances = _chances({name: len(members[name]) for name in names}, alpha)
    drawn = rng.choice(len(names), size=steps * batch_size, p=chances)
    order = np.empty(len(drawn), dtype=np.int64)
    for number, name in enumerate(names):
        places = np.flatnonzero(drawn == number)
        own = np.array(members[name])
        rounds = -(-len(places) // len(own))
        order[places] = np.concatenate([rng.permutation(own) for _ in range(rounds)] or [own])[
            : len(places)
        ]
    sizes = np.asarray(lengths)
    pool = batch_size * int(np.clip(len(lengths) // (2 * batch_size), 1, _MOST_POOLED))
    pool = pool if pooled else batch_size
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        rows = order[start : start + pool]
        rows = rows[np.argsort(sizes[rows], kind="stable")]
        cut = rows.reshape(-1, batch_size)
        batches += cut[rng.permutation(len(cut))].tolist()
    return batches


def _chances(sizes: Mapping[tuple[Hashable, Hashable], int], alpha: float) -> np.ndarray:
    """The probability of each (group, part) of a size: the group's, times the part's inside it."""
    whole: Counter[Hashable] = Counter()  # examples of a group
    inside: defaultdict[Hashable, float] = defaultdict(float)  # sum of its parts' weights
    for (group, _), size in sizes.items():
        whole[group] += size
        inside[group] += size**alpha
    weights = [whole[g] ** alpha / inside[g] * size**alpha for (g, _), size in sizes.items()]
    return np.array(weights) / sum(weights)


def share(batch: Sequence[int], process: int, processes: int, pieces: int) -> list[list[int]]:
    """One process's part of a batch, in pieces; every row is in just one piece of one process.

    The batch is sorted by length, so strides give every piece rows of all its lengths.
    """
    parts = processes * pieces
    own = [list(batch[process * pieces + piece :: parts]) for piece in range(pieces)]
    return [piece for piece in own if piece]
