import math
from collections import Counter

import numpy as np
import pytest

from adapters_hub.data.batches import by_length, plan_batches, share
from adapters_hub.errors import SettingsError


def lengths_of(count, seed=0):
    return np.random.default_rng(seed).integers(3, 200, size=count).tolist()


def padded_share(batches, lengths):
    """The share of all cells of the padded batches that hold no token."""
    cells = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    return 1 - sum(lengths[i] for batch in batches for i in batch) / cells


@pytest.mark.parametrize(
    ("rows", "batch_size", "steps"),
    [(1, 1, 1), (1, 8, 5), (3, 8, 7), (100, 7, 33), (100, 32, 1), (1000, 16, 65), (5, 1, 400)],
)
def test_steps_times_batch_size_and_only_valid_rows(rows, batch_size, steps):
    groups = [("de", None) if i % 3 else ("sw", "hotel") for i in range(rows)]
    batches = plan_batches(lengths_of(rows), groups, batch_size=batch_size, steps=steps)
    assert [len(batch) for batch in batches] == [batch_size] * steps
    drawn = [i for batch in batches for i in batch]
    assert all(type(i) is int and 0 <= i < rows for i in drawn)


def test_the_same_seed_gives_the_same_plan():
    lengths, groups = lengths_of(50), [i % 4 for i in range(50)]
    plan = plan_batches(lengths, groups, batch_size=8, steps=20, seed=3)
    assert plan == plan_batches(lengths, groups, batch_size=8, steps=20, seed=3)
    assert plan != plan_batches(lengths, groups, batch_size=8, steps=20, seed=4)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_groups_are_drawn_with_their_size_to_the_power_of_alpha(alpha):
    sizes = {("en", None): 640, ("sw", None): 40, (None, "hotel"): 5}
    groups = [group for group, size in sizes.items() for _ in range(size)]
    steps, batch_size = 400, 16
    batches = plan_batches(
        [10] * len(groups), groups, batch_size=batch_size, steps=steps, alpha=alpha
    )
    drawn = Counter(groups[i] for batch in batches for i in batch)
    total = sum(size**alpha for size in sizes.values())
    draws = steps * batch_size
    for group, size in sizes.items():
        p = size**alpha / total
        assert abs(drawn[group] - p * draws) < 5 * math.sqrt(draws * p * (1 - p))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_what_a_language_gets_does_not_depend_on_its_domains(alpha):
    """100 German rows in ten domains and 100 French ones in one: as many of either are drawn."""
    german = [("de", f"domain {n % 9}") for n in range(45)] + [("de", "large")] * 55
    rows = [*german, *[("fr", None)] * 100, *[("sw", "hotel")] * 10]
    steps, batch_size = 600, 16
    batches = plan_batches(
        [5] * len(rows), [r[0] for r in rows], [r[1] for r in rows],
        batch_size=batch_size, steps=steps, alpha=alpha,
    )  # fmt: skip
    drawn = Counter(rows[i] for batch in batches for i in batch)
    draws = steps * batch_size
    languages = {"de": 100**alpha, "fr": 100**alpha, "sw": 10**alpha}
    inside = {("de", f"domain {n}"): 5**alpha for n in range(9)} | {("de", "large"): 55**alpha}
    for (language, domain), times in drawn.items():
        p = languages[language] / sum(languages.values())
        if language == "de":
            p *= inside["de", domain] / sum(inside.values())
        assert abs(times - p * draws) < 5 * math.sqrt(draws * p * (1 - p))


def test_an_epoch_holds_every_row_once():
    rows, batch_size = 96, 8
    epochs = 3
    batches = plan_batches(
        lengths_of(rows), ["de"] * rows, batch_size=batch_size, steps=epochs * 12, alpha=1
    )
    assert Counter(i for batch in batches for i in batch) == dict.fromkeys(range(rows), epochs)
    one = plan_batches(lengths_of(rows), ["de"] * rows, batch_size=batch_size, steps=12, alpha=1)
    assert sorted(i for batch in one for i in batch) == list(range(rows))


def test_a_group_is_used_evenly_however_often_it_is_drawn():
    groups = ["large"] * 90 + ["small"] * 10
    batches = plan_batches([5] * 100, groups, batch_size=10, steps=60, alpha=0.0)
    times = Counter(i for batch in batches for i in batch)
    for members in (range(90), range(90, 100)):
        assert max(times[i] for i in members) - min(times[i] for i in members) <= 1


def test_less_padding_than_in_random_batches():
    lengths = lengths_of(2000)
    batches = plan_batches(lengths, ["de"] * 2000, batch_size=16, steps=125, alpha=1)
    rows = np.random.default_rng(1).permutation(2000).reshape(-1, 16).tolist()
    assert padded_share(rows, lengths) > 0.4
    assert padded_share(batches, lengths) < padded_share(rows, lengths) / 4


def test_rows_that_are_compared_are_not_brought_together_by_length():
    lengths = lengths_of(2000)
    options = {"batch_size": 16, "steps": 100, "seed": 1}
    pooled = plan_batches(lengths, ["de"] * 2000, **options)
    loose = plan_batches(lengths, ["de"] * 2000, pooled=False, **options)
    assert sorted(i for batch in pooled for i in batch) == sorted(i for b in loose for i in b)
    spread = [np.std([lengths[i] for i in batch]) for batch in loose]
    assert np.mean(spread) > 0.9 * np.std(lengths)
    for batch in loose:  # in order, so that pieces of it have rows of all lengths
        assert [lengths[i] for i in batch] == sorted(lengths[i] for i in batch)


def test_batches_do_not_come_in_order_of_length():
    lengths = lengths_of(2000)
    batches = plan_batches(lengths, ["de"] * 2000, batch_size=16, steps=125, alpha=1)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert abs(np.corrcoef(longest[:32], range(32))[0, 1]) < 0.5
    assert abs(np.corrcoef(longest, range(125))[0, 1]) < 0.3


@pytest.mark.parametrize(
    ("size", "processes", "pieces"), [(32, 1, 1), (32, 4, 2), (7, 2, 3), (3, 4, 2), (1, 2, 1)]
)
def test_shares_partition_a_batch(size, processes, pieces):
    batch = list(range(100, 100 + size))
    shares = [share(batch, process, processes, pieces) for process in range(processes)]
    rows = [row for of_process in shares for piece in of_process for row in piece]
    assert sorted(rows) == batch
    assert all(piece for of_process in shares for piece in of_process)
    assert all(len(of_process) <= pieces for of_process in shares)
    counts = [len(piece) for of_process in shares for piece in of_process]
    assert max(counts) - min(counts) <= 1


def test_every_share_has_rows_of_all_lengths():
    lengths = sorted(lengths_of(32))
    sums = [
        sum(lengths[i] for i in piece)
        for process in range(2)
        for piece in share(range(32), process, 2, 2)
    ]
    assert max(sums) < 1.5 * min(sums)
    assert sum(lengths[24:]) > 4 * sum(lengths[:8])


# ── every row once ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rows", "batch_size"), [(0, 4), (1, 4), (7, 1), (100, 8), (96, 8), (5, 9)]
)
def test_by_length_has_every_row_once_and_the_shortest_first(rows, batch_size):
    lengths = lengths_of(rows)
    batches = by_length(lengths, batch_size)
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    in_order = [lengths[row] for batch in batches for row in batch]
    assert in_order == sorted(lengths)


def test_rows_of_equal_length_keep_their_order():
    assert by_length([3, 2, 3, 2, 3], 3) == [[1, 3, 0], [2, 4]]


def test_processes_share_rows_of_all_lengths():
    lengths = lengths_of(50)
    shares = [by_length(lengths, 4, process, 3) for process in range(3)]
    rows = [[row for batch in batches for row in batch] for batches in shares]
    assert sorted(row for one in rows for row in one) == list(range(50))
    tokens = [sum(lengths[row] for row in one) for one in rows]
    assert max(tokens) - min(tokens) <= max(lengths)


@pytest.mark.parametrize("batch_size", [0, -3, True, 1.5, None])
def test_a_batch_size_is_a_whole_number_from_one_on(batch_size):
    with pytest.raises(SettingsError, match="must be a whole number, 1 or more"):
        by_length([1, 2], batch_size)
