"""The bank: rows, tokens, ranks, slots, threads, failures. All compared with dense arithmetic."""

import gc
import threading
import weakref

import pytest
import torch
from helpers import in_threads
from helpers.banks import OpenBank
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adapters_hub.errors import BackboneError, SettingsError
from adapters_hub.runtime import bank as bank_module
from adapters_hub.runtime import plan as plan_module

IN, OUT = 6, 5


def make(ranks, seed=0, sites=("a", "b")):
    """A bank over two linear layers, with an adapter per rank; odd ones lack site b."""
    generator = torch.Generator().manual_seed(seed)
    layers = {site: nn.Linear(IN, OUT).requires_grad_(False) for site in sites}
    bank = OpenBank(layers)
    for number, rank in enumerate(ranks):
        own = sites if number % 2 == 0 else sites[:1]
        factors = {
            site: (
                torch.randn(rank, IN, generator=generator),
                torch.randn(OUT, rank, generator=generator),
            )
            for site in own
        }
        bank.put(f"ad{number}", factors, dict.fromkeys(own, 0.5 + number))
    return bank, layers


def dense(bank, layers, site, x, blends):
    """Row i of W x + Σ w·s·B·A x, one row and one adapter at a time."""
    rows = []
    for row, blend in enumerate(blends):
        y = layers[site].weight @ x[row].T + layers[site].bias[:, None]
        for name, weight in blend.items():
            slot = bank.slots[name]
            if site in slot.factors:
                a, b = slot.factors[site]
                y = y + weight * slot.scaling[site] * (b @ (a @ x[row].T))
        rows.append(y.T)
    return torch.stack(rows)


def distinct(blends):
    unique = [dict(pairs) for pairs in dict.fromkeys(tuple(sorted(b.items())) for b in blends)]
    return unique, [unique.index(dict(sorted(blend.items()))) for blend in blends]


weights = st.sampled_from([-1.0, 0.25, 1.0, 2.0])
blend = st.dictionaries(st.integers(0, 3).map("ad{}".format), weights, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    blends=st.lists(blend, min_size=1, max_size=6),
    masked=st.booleans(),
    tokens=st.integers(1, 4),
)
def test_any_plan_equals_dense_arithmetic_grouped_or_masked(ranks, blends, masked, tokens):
    bank, layers = make(ranks)
    x = torch.randn(len(blends), tokens, IN)
    unique, index = distinct(blends)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module.Plan, "_masked_pays", lambda *_: masked)
        with bank.using(bank.plan(unique, index)):
            for site, layer in layers.items():
                torch.testing.assert_close(
                    layer(x), dense(bank, layers, site, x, blends), atol=1e-4, rtol=1e-4
                )


def test_one_blend_serves_a_batch_of_any_size():
    bank, layers = make([2, 3])
    plan = bank.plan([{"ad0": 1.0, "ad1": -0.5}])
    for rows in (1, 3):
        x = torch.randn(rows, 2, IN)
        with bank.using(plan):
            got = layers["a"](x)
        want = dense(bank, layers, "a", x, [{"ad0": 1.0, "ad1": -0.5}] * rows)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_tokens_of_one_row_may_use_different_adapters():
    bank, layers = make([2, 3, 1])
    blends = [{}, {"ad0": 1.0}, {"ad1": 2.0, "ad2": 1.0}]
    index = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])
    x = torch.randn(2, 4, IN)
    with bank.using(bank.plan(blends, index)):
        got = layers["a"](x)
    for row in range(2):
        for token in range(4):
            alone = x[row : row + 1, token : token + 1]
            want = dense(bank, layers, "a", alone, [blends[index[row, token]]])
            torch.testing.assert_close(
                got[row : row + 1, token : token + 1], want, atol=1e-5, rtol=1e-5
            )


def test_beams_and_flattened_tokens_keep_their_row():
    bank, layers = make([2, 3])
    blends = [{"ad0": 1.0}, {"ad1": 1.0}]
    x = torch.randn(2, 3, IN)
    with bank.using(bank.plan(blends, [0, 1])):
        want = layers["a"](x)
        torch.testing.assert_close(
            layers["a"](x.repeat_interleave(4, 0)), want.repeat_interleave(4, 0)
        )
        torch.testing.assert_close(layers["a"](x.flatten(0, 1)), want.flatten(0, 1))


def test_a_batch_that_does_not_fit_the_plan_is_refused_and_leaves_nothing():
    bank, layers = make([2, 3])
    x = torch.randn(3, 2, IN)
    bare = layers["a"](x)
    with (
        pytest.raises(SettingsError, match="input of 3 × 2 × 6 for a plan of 2 rows"),
        bank.using(bank.plan([{"ad0": 1.0}, {}], [0, 1])),
    ):
        layers["a"](x)
    assert bank.current() is None
    assert torch.equal(layers["a"](x), bare)


def test_gradients_reach_only_the_rows_own_factors():
    bank, layers = make([2, 3])
    slots = {}
    for name in ("t0", "t1"):
        factors = {
            "a": (torch.randn(2, IN, requires_grad=True), torch.randn(OUT, 2, requires_grad=True))
        }
        slots[name] = factors["a"]
        bank.put(name, factors, {"a": 1.0}, trained=True)
    x = torch.randn(3, 2, IN)
    with bank.using(bank.plan([{"t0": 1.0, "ad0": 1.0}, {"ad1": 1.0}], [0, 1, 0])):
        layers["a"](x).square().sum().backward()
    assert slots["t0"][0].grad is not None
    assert slots["t1"][0].grad is None


def test_least_recently_used_goes_first_and_training_ones_stay():
    bank, _ = make([])
    bank.memory = 2 * 4 * (IN + OUT)
    factors = {"a": (torch.ones(1, IN), torch.ones(OUT, 1))}
    bank.put("trained", factors, {"a": 1.0}, trained=True)
    bank.put("old", factors, {"a": 1.0})
    bank.put("new", factors, {"a": 1.0})
    assert bank.names() == ["trained", "new"]


def test_a_replaced_adapter_is_not_served_from_an_old_plan():
    bank, layers = make([2])
    x = torch.randn(1, 1, IN)
    with bank.using(bank.plan([{"ad0": 1.0}])):
        before = layers["a"](x)
    bank.put("ad0", {"a": (torch.zeros(1, IN), torch.zeros(OUT, 1))}, {"a": 1.0})
    with bank.using(bank.plan([{"ad0": 1.0}])):
        after = layers["a"](x)
    assert not torch.equal(before, after)
    assert torch.equal(after, layers["a"](x))


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"c": (torch.ones(1, IN), torch.ones(OUT, 1))}, "no site"),
        ({"a": (torch.ones(1, IN + 1), torch.ones(OUT, 1))}, "do not fit"),
        ({"a": (torch.ones(2, IN), torch.ones(OUT, 1))}, "do not fit"),
    ],
)
def test_factors_that_do_not_fit_are_refused(factors, message):
    bank, _ = make([])
    with pytest.raises(BackboneError, match=message):
        bank.put("wrong", factors, dict.fromkeys(factors, 1.0))
    assert len(bank) == 0


def test_two_threads_follow_two_plans():
    bank, layers = make([2, 3])
    x = torch.randn(1, 2, IN)
    want = {n: dense(bank, layers, "a", x, [{n: 1.0}]) for n in ("ad0", "ad1")}
    wrong, barrier = [], threading.Barrier(2)

    def work(name):
        with bank.using(bank.plan([{name: 1.0}])):
            barrier.wait()
            for _ in range(200):
                if not torch.allclose(layers["a"](x), want[name], atol=1e-5):
                    wrong.append(name)

    in_threads(work, want)
    assert not wrong
    assert bank.current() is None


def test_a_thousand_loads_keep_the_bank_small():
    bank, layers = make([])
    bank.memory = 4 * 4 * (IN + OUT)
    x = torch.randn(1, 1, IN)
    plans = []
    for number in range(1000):
        factors = {"a": (torch.full((1, IN), float(number % 7)), torch.ones(OUT, 1))}
        bank.put(f"n{number}", factors, {"a": 1.0})
        plan = bank.plan([{f"n{number}": 1.0}])
        plans.append(weakref.ref(plan))
        with bank.using(plan):
            got = layers["a"](x)
        want = layers["a"](x) + (number % 7) * x.sum()
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert len(bank) == 4
    gc.collect()
    assert [plan() is not None for plan in plans] == [False] * 996 + [True] * 4


def test_only_the_plans_of_the_last_calls_are_kept():
    bank, _ = make([2])
    plans = [weakref.ref(bank.plan([{"ad0": 1.0 + number}])) for number in range(100)]
    gc.collect()
    kept = [number for number, plan in enumerate(plans) if plan() is not None]
    assert kept == list(range(100 - bank_module._MAX_PLANS, 100))
    oldest = plans[kept[0]]()
    assert bank.plan([{"ad0": 1.0 + kept[0]}]) is oldest
    bank.plan([{"ad0": 0.5}])
    gc.collect()
    assert plans[kept[1]]() is None  # the one that was not asked for again


def test_plans_of_the_same_atoms_share_their_factors():
    bank, layers = make([2, 3])
    x = torch.randn(2, 1, IN)
    sizes = []
    for index in ([0, 1], [1, 0]):
        with bank.using(bank.plan([{"ad0": 1.0}, {"ad1": 1.0}], index)):
            layers["a"](x)
        sizes.append(bank.bytes_beside)
    assert sizes[0] == sizes[1] > 0
    bank.drop("ad0")
    assert bank.bytes_beside == 0


@pytest.mark.parametrize("way", [True, False])
def test_training_keeps_frozen_stacks_from_step_to_step_and_every_bit(monkeypatch, way):
    """As with a new bank for each step; before the last one a frozen adapter is replaced."""
    monkeypatch.setattr(plan_module.Plan, "_masked_pays", lambda *_, learning=False: way)
    made, stacked = [], plan_module.stacked

    def recorded(*given, **options):
        made.append(stacked(*given, **options))
        return made[-1]

    monkeypatch.setattr(plan_module, "stacked", recorded)
    blends = [{"t": 1.0, "ad0": 1.0}, {"t": 1.0, "ad2": 0.5}]
    results, counts = [], []
    for keep in (True, False):
        random = torch.Generator().manual_seed(1)
        learning = {
            site: tuple(
                torch.randn(shape, generator=random).requires_grad_()
                for shape in ((2, IN), (OUT, 2))
            )
            for site in ("a", "b")
        }
        optimizer = torch.optim.Adam([t for pair in learning.values() for t in pair], lr=0.1)
        for step, index in enumerate([[0, 1], [0, 1], [1, 0], [0, 1], [0, 1]]):
            if step == 0 or not keep:
                torch.manual_seed(0)
                bank, layers = make([2, 3, 2])
                bank.put("t", learning, dict.fromkeys(learning, 1.0), trained=True)
            if step == 4:
                new = {site: (torch.ones(2, IN), torch.ones(OUT, 2)) for site in layers}
                bank.put("ad0", new, dict.fromkeys(layers, 1.0))
            x = torch.randn(2, 3, IN, generator=random)
            made.clear()
            with bank.using(bank.plan(blends, index)):
                sum(layer(x).square().mean() for layer in layers.values()).backward()
            counts.append(len(made))
            optimizer.step()
            optimizer.zero_grad()
        results.append([t.detach() for pair in learning.values() for t in pair])
    turned = 0 if way else 2  # groups are in the order of their rows
    assert counts == [2, 0, turned, 0, 2, *[2] * 5]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_pinned_slots_and_those_a_call_needs_stay():
    bank, _ = make([])
    bank.memory = 4 * (IN + OUT)
    factors = {"a": (torch.ones(1, IN), torch.ones(OUT, 1))}
    bank.put("pinned", factors, {"a": 1.0}, pinned=True)
    bank.put("one", factors, {"a": 1.0}, keep={"one", "two"})
    bank.put("two", factors, {"a": 1.0}, keep={"one", "two"})
    assert set(bank.names()) == {"pinned", "one", "two"}
    bank.put("three", factors, {"a": 1.0})
    assert set(bank.names()) == {"pinned", "three"}


def test_stacks_count_and_go_before_adapters():
    bank, layers = make([2, 2, 2])  # the second lacks site b
    size = 4 * 2 * (IN + OUT)
    assert bank.bytes == 5 * size
    mixed = [{"ad0": 1.0}, {"ad1": 1.0}], [0, 1]

    def run():
        with bank.using(bank.plan(*mixed)):
            for layer in layers.values():
                layer(torch.randn(2, 1, IN))

    run()
    assert bank.bytes_beside == 2 * size  # both at a; at b there is one, as it is
    with bank.using(bank.plan([{"ad2": 1.0}])):
        layers["a"](torch.randn(2, 1, IN))
    assert bank.bytes_beside == 2 * size
    bank.memory = 6 * size
    factors = {"a": (torch.ones(2, IN), torch.ones(OUT, 2))}
    bank.put("more", factors, {"a": 1.0})
    assert bank.bytes_beside == 0
    assert bank.names() == ["ad0", "ad1", "ad2", "more"]
    bank.drop("more")
    run()  # for whose stacks an adapter must go that is not in it
    assert bank.names() == ["ad0", "ad1"]
    assert bank.bytes + bank.bytes_beside <= bank.memory
    bank.memory = size
    run()
    assert bank.names() == ["ad0", "ad1"]
    bank.drop("ad1")
    assert bank.bytes_beside == 0


def test_a_merged_view_counts_and_goes_after_stacks_and_before_adapters():
    bank, layers = make([2, 2])
    size = 4 * 2 * (IN + OUT)
    bank.memory = 3 * size + 100
    with bank.using(bank.plan([{"ad0": 1.0}, {"ad1": 1.0}], [0, 1])):
        layers["a"](torch.randn(2, 1, IN))
    assert bank.bytes_beside == 2 * size
    bank.keep_view(bank_module.MergedView(None, 100, ()))
    assert bank.bytes_beside == 100  # there was no room for stacks
    factors = {"a": (torch.ones(1, IN), torch.ones(OUT, 1))}
    bank.memory = bank.bytes + size
    bank.put("more", factors, {"a": 1.0})
    assert bank.view is None
    assert len(bank) == 3


def test_detached_hooks_leave_the_layers_as_they_were():
    bank, layers = make([2])
    plan = bank.plan([{"ad0": 1.0}])
    bank.detach()
    x = torch.randn(1, 1, IN)
    with bank.using(plan):
        assert torch.equal(
            layers["a"](x), nn.functional.linear(x, layers["a"].weight, layers["a"].bias)
        )
