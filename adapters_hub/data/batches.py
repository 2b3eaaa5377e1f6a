"""Which rows make up each batch, in training and in use.

In training languages, then domains, are drawn with p ∝ n^α. Everywhere rows of about one length go
together, since a batch is padded to its longest. Pure functions of sizes and a seed: every process
works out the same list, a run that resumes needs no saved position, and nothing here knows of texts
or models.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from numbers import Integral

import numpy as np

from adapters_hub.errors import SettingsError

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
    """``steps`` lists of ``batch_size`` example indices; see `draw_batches`.

    ``groups`` says what each example is drawn as, such as its language, ``within`` what it is drawn
    as inside that, such as its domain.
    """
    return draw_batches(
        members_of(groups, within),
        lengths,
        batch_size=batch_size,
        steps=steps,
        alpha=alpha,
        pooled=pooled,
        seed=seed,
    ).tolist()


def members_of(
    groups: Sequence[Hashable], within: Sequence[Hashable] | None = None
) -> dict[tuple[Hashable, Hashable], np.ndarray]:
    """The example indices of each (group, part), for `draw_batches`."""
    members: dict[tuple[Hashable, Hashable], list[int]] = {}
    for number, part in enumerate(zip(groups, within or [None] * len(groups), strict=True)):
        members.setdefault(part, []).append(number)
    return {part: np.array(examples) for part, examples in members.items()}


def draw_batches(
    members: Mapping[tuple[Hashable, Hashable], np.ndarray],
    lengths: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    steps: int,
    alpha: float = 0.3,
    pooled: bool = True,
    seed: int = 0,
) -> np.ndarray:
    """Batches of example indices (steps, batch_size), of the ``members`` of each (group, part).

    A group of n examples is drawn with probability ∝ n^alpha (arXiv:1901.07291: 1 is proportional,
    0 uniform), then a part of it of m examples with probability ∝ m^alpha; so what a language gets
    does not depend on how many domains it is cut into. Each part's examples come in a fresh shuffle
    each time round.

    Where ``pooled``, rows of some batches are brought together, sorted by length and cut again, so
    that a batch needs little padding; the batches' order is shuffled. Not where rows are compared
    with those of their batch: what they would learn is to tell apart texts of one length.
    """
    rng = np.random.default_rng(seed)
    names = sorted(members, key=repr)
    chances = _chances({name: len(members[name]) for name in names}, alpha)
    drawn = rng.choice(len(names), size=steps * batch_size, p=chances)
    order = np.empty(len(drawn), dtype=np.int64)
    for number, name in enumerate(names):
        places = np.flatnonzero(drawn == number)
        examples = members[name]
        rounds = -(-len(places) // len(examples))
        shuffled = [rng.permutation(examples) for _ in range(rounds)] or [examples]
        order[places] = np.concatenate(shuffled)[: len(places)]
    sizes = np.asarray(lengths)
    count = sum(map(len, members.values()))
    pool = batch_size * int(np.clip(count // (2 * batch_size), 1, _MOST_POOLED))
    pool = pool if pooled else batch_size
    batches = []
    for start in range(0, len(order), pool):
        rows = order[start : start + pool]
        rows = rows[np.argsort(sizes[rows], kind="stable")]
        cut = rows.reshape(-1, batch_size)
        batches.append(cut[rng.permutation(len(cut))])
    return np.concatenate(batches)


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

    The batch is sorted by length, so strides give every piece rows of all its lengths. The first
    process has as many pieces as any.
    """
    parts = processes * pieces
    cut = [list(batch[process * pieces + piece :: parts]) for piece in range(pieces)]
    return [piece for piece in cut if piece]


def by_length(
    lengths: Sequence[int],
    batch_size: int,
    process: int = 0,
    processes: int = 1,
    *,
    even: bool = False,
) -> list[list[int]]:
    """Every row once, in batches of rows of about one length, the shortest first.

    Of several processes each gets every ``processes``-th row of that order, so that all have as
    much to do. Where ``even`` one that has a batch less than the first gets the shortest row as one
    more, which is some process's already. Raises `SettingsError` for a ``batch_size`` below 1.
    """
    check_batch_size(batch_size)
    sorted_rows = sorted(range(len(lengths)), key=lambda row: lengths[row])
    order, first = sorted_rows[process::processes], sorted_rows[::processes]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if even and len(batches) * batch_size < len(first):
        batches.append(sorted_rows[:1])
    return batches


def check_batch_size(batch_size: int) -> None:
    """Raise `SettingsError` for a ``batch_size`` that is no whole number from 1 on."""
    whole = isinstance(batch_size, Integral) and not isinstance(batch_size, bool)
    if not whole or batch_size < 1:
        raise SettingsError(f"batch_size={batch_size!r}: must be a whole number, 1 or more")
