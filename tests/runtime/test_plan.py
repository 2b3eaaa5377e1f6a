"""Every way to add the same deltas agrees: masked, grouped, whole, merged, in compiled slots."""

import pytest
import torch
from helpers.banks import OpenBank
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adapters_hub.runtime.bank import Bank
from adapters_hub.runtime.compiled import CompiledSlots
from adapters_hub.runtime.merged import merged_weight
from adapters_hub.runtime.plan import Plan
from adapters_hub.runtime.products import COSTS, FlatFactors, cost, shapes

IN, OUTS = 6, {"q": 5, "k": 4, "v": 4}
NAMES = [f"ad{n}" for n in range(5)]


class Attention(nn.Module):
    """Three sites on one input, as in a transformer."""

    def __init__(self, dtype):
        super().__init__()
        self.sites = nn.ModuleDict({n: nn.Linear(IN, out, dtype=dtype) for n, out in OUTS.items()})

    def forward(self, x):
        return {name: layer(x) for name, layer in self.sites.items()}


def make(ranks, missing, dtype, seed=0):
    random = torch.Generator().manual_seed(seed)
    model = Attention(dtype).requires_grad_(False)
    bank = OpenBank(dict(model.sites))
    with bank.watching(2, 3):
        model(torch.randn(2, 3, IN, dtype=dtype))
    for number, (name, rank) in enumerate(zip(NAMES, ranks, strict=True)):
        own = {
            site: (
                torch.randn(rank, IN, generator=random).to(dtype),
                torch.randn(out, rank, generator=random).to(dtype),
            )
            for site, out in OUTS.items()
            if (number, site) not in missing
        }
        bank.put(name, own, dict.fromkeys(own, 0.5 + 0.25 * number))
    return model, bank


def dense(model, bank, x, blends):
    """Row i by itself in float64, one adapter at a time."""
    found = {}
    for site, layer in model.sites.items():
        rows = []
        for row, blend in zip(x.double(), blends, strict=True):
            weight = layer.weight.double()
            for name, w in blend.items():
                slot = bank.slots[name]
                if site in slot.factors:
                    a, b = slot.factors[site]
                    weight = weight + w * slot.scaling[site] * (b.double() @ a.double())
            rows.append(row @ weight.T + layer.bias.double())
        found[site] = torch.stack(rows)
    return found


def distinct(blends):
    unique = [dict(pairs) for pairs in dict.fromkeys(tuple(sorted(b.items())) for b in blends)]
    return unique, [unique.index(dict(sorted(blend.items()))) for blend in blends]


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.25}
blend = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([-1.0, 0.25, 1.0, 2.0]), max_size=3)
cases = given(
    ranks=st.lists(st.integers(1, 4), min_size=5, max_size=5),
    missing=st.sets(st.tuples(st.integers(0, 4), st.sampled_from(sorted(OUTS))), max_size=6),
    blends=st.lists(blend, min_size=1, max_size=8),
    tokens=st.integers(1, 4),
    dtype=st.sampled_from(sorted(TOLERANCE, key=str)),
    way=st.sampled_from([None, True, False]),
    grad=st.booleans(),
)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@cases
def test_all_strategies_agree(ranks, missing, blends, tokens, dtype, way, grad):
    model, bank = make(ranks, missing, dtype)
    x = torch.randn(len(blends), tokens, IN).to(dtype)
    want = dense(model, bank, x, blends)
    unique, index = distinct(blends)
    bfloat = dtype == torch.bfloat16  # a delta is merged in float32

    def same(got, what):
        for site, own in got.items():
            close = TOLERANCE[torch.float32 if what == "merged" and not bfloat else dtype]
            torch.testing.assert_close(own.double(), want[site], atol=close, rtol=close, msg=what)

    with pytest.MonkeyPatch.context() as patch, torch.set_grad_enabled(grad):
        if way is not None:
            patch.setattr(Plan, "_masked_pays", lambda plan, *_: way or plan.index is None)
        plan = bank.plan(unique, index)
        with bank.using(plan):
            same(model(x), f"way {way}")
            same(model(x), "the second time")
        tokenwise = torch.tensor(index)[:, None].expand(-1, tokens)
        with bank.using(bank.plan(unique, tokenwise)):
            same(model(x), "a blend a token")
        if len(unique) == 1:
            with bank.using(bank.plan(unique)):
                same(model(x), "whole")
    if plan is None:
        return
    outs = {s: (IN, out) for s, out in OUTS.items()}
    slots = CompiledSlots(outs, 5, 4, torch.device("cpu"), dtype)
    slots.show(plan)
    bare = model(x)
    same({site: slots.add(site, x, bare[site]) for site in OUTS}, "compiled slots")
    if len(unique) == 1:
        merged = {}
        for site, layer in model.sites.items():
            pieces = [
                (w * bank.slots[n].scaling[site], *bank.slots[n].factors[site])
                for n, w in unique[0].items()
                if site in bank.slots[n].factors
            ]
            weight = merged_weight(layer, pieces) if pieces else layer.weight
            merged[site] = nn.functional.linear(x, weight, layer.bias)
        same(merged, "merged")


@settings(max_examples=40, deadline=None)
@cases
def test_gradients_of_the_input_agree_too(ranks, missing, blends, tokens, dtype, way, grad):
    model, bank = make(ranks, missing, torch.float64)
    x = torch.randn(len(blends), tokens, IN, dtype=torch.float64, requires_grad=True)
    want = torch.autograd.grad(
        sum(y.square().sum() for y in dense(model, bank, x, blends).values()), x
    )
    with pytest.MonkeyPatch.context() as patch:
        if way is not None:
            patch.setattr(Plan, "_masked_pays", lambda plan, *_: way or plan.index is None)
        with bank.using(bank.plan(*distinct(blends))):
            got = torch.autograd.grad(sum(y.square().sum() for y in model(x).values()), x)
    torch.testing.assert_close(got, want)


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 4), min_size=5, max_size=5),
    missing=st.sets(st.tuples(st.integers(0, 4), st.sampled_from(sorted(OUTS))), max_size=6),
    blends=st.lists(blend, min_size=1, max_size=8),
    way=st.booleans(),
    whole=st.booleans(),
)
def test_adapters_that_learn_have_the_gradients_of_the_plain_sum(
    ranks, missing, blends, way, whole
):
    """As one masked product, and as one an adapter; beside a frozen one, the first."""
    model, bank = make(ranks, missing, torch.float64)
    for name in NAMES[1:]:
        slot = bank.slots[name]
        own = {
            site: (a.clone().requires_grad_(), b.clone().requires_grad_())
            for site, (a, b) in slot.factors.items()
        }
        bank.put(name, own, slot.scaling, trained=True)
    learning = [
        tensor
        for name in NAMES[1:]
        for pair in bank.slots[name].factors.values()
        for tensor in pair
    ]
    blends = blends[:1] * 3 if whole else blends
    x = torch.randn(len(blends), 3, IN, dtype=torch.float64)
    plain = sum(y.square().sum() for y in dense(model, bank, x, blends).values())
    unique, index = distinct(blends)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Plan, "_masked_pays", lambda plan, *_, learning=False: way or plan.index is None
        )
        with bank.using(bank.plan(unique, None if whole else index)):
            loss = sum(y.square().sum() for y in model(x).values())
    assert loss.requires_grad == plain.requires_grad  # no row may use an adapter that learns
    if loss.requires_grad:
        options = {"allow_unused": True, "materialize_grads": True}
        got = torch.autograd.grad(loss, learning, **options)
        want = torch.autograd.grad(plain, learning, **options)
        torch.testing.assert_close(got, want)


def test_sites_of_one_input_are_found_and_share_the_first_product(monkeypatch):
    from adapters_hub.runtime.products import Part

    model, bank = make([2] * 5, set(), torch.float32)
    calls = []
    first = Part.first
    monkeypatch.setattr(Part, "first", lambda *given: calls.append(1) or first(*given))
    x = torch.randn(2, 3, IN)
    with torch.no_grad(), bank.using(bank.plan([{"ad0": 1.0}, {"ad1": 1.0}], [0, 1])):
        model(x)
    assert len(calls) == 1


@pytest.mark.parametrize("inference", [False, True])
def test_an_input_changed_between_the_sites_is_seen(inference):
    model, bank = make([2] * 5, set(), torch.float32)
    x = torch.randn(2, 3, IN)
    with torch.inference_mode(inference), torch.no_grad():
        x = x.clone()
        with bank.using(bank.plan([{"ad0": 1.0}])):
            model.sites["q"](x)
            x.mul_(2.0)
            got = model.sites["k"](x)
    want = dense(model, bank, x, [{"ad0": 1.0}] * 2)["k"]
    torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-4)


def test_a_site_called_again_with_another_input_does_not_get_the_first_ones_product():
    model, bank = make([2] * 5, set(), torch.float32)
    x, other = torch.randn(2, 3, IN), torch.randn(2, 3, IN)
    with torch.no_grad(), bank.using(bank.plan([{"ad0": 1.0}])):
        model.sites["q"](x)
        got = model.sites["k"](other)
        again = model.sites["v"](x)
    for value, given_, site in ((got, other, "k"), (again, x, "v")):
        want = dense(model, bank, given_, [{"ad0": 1.0}] * 2)[site]
        torch.testing.assert_close(value.double(), want, atol=1e-4, rtol=1e-4)


def test_grouped_work_is_what_is_needed_and_masked_is_more():
    _, bank = make([2] * 5, set(), torch.float32)
    blends = [{name: 1.0} for name in NAMES[:4]]
    x = torch.randn(8, IN)
    in_order = bank.plan(blends, [0, 0, 1, 1, 2, 2, 3, 3])
    masked, grouped = in_order.amounts(("q",), x)
    width = IN + OUTS["q"]
    assert list(grouped) == [1, 8 * 2 * width, 4 * 2 * width, 0, 0]
    assert list(masked) == [1, 8 * 8 * width, 8 * width]
    _, moved = bank.plan(blends, [0, 1, 2, 3] * 2).amounts(("q",), x)
    assert list(moved[3:]) == [1, 8 * width]
    assert cost(COSTS.grouped, moved) > cost(COSTS.grouped, grouped)


def test_the_rule_masks_few_and_groups_many():
    layer = nn.Linear(512, 512)
    bank = Bank({"site": layer})
    for n in range(32):
        own = {"site": (torch.zeros(16, 512), torch.zeros(512, 16))}
        bank.put(f"a{n}", own, {"site": 1.0})
    few = bank.plan([{"a0": 1.0}, {"a1": 1.0}], [0, 1])
    many = bank.plan([{f"a{n}": 1.0} for n in range(32)], list(range(32)))
    shuffled = bank.plan([{"a0": 1.0}, {"a1": 1.0}], [1, 0, 1, 0])

    def ranks(plan, rows):
        """Of the parts: all adapters' together where they are masked, else one adapter's."""
        return [part.rank for part in plan.parts(("site",), torch.zeros(rows, 512))]

    masked, grouped = few.amounts(("site",), torch.zeros(2, 512))
    pays = cost(COSTS.masked, masked) <= cost(COSTS.grouped, grouped)
    assert ranks(few, 2) == ([32] if pays else [16])
    assert ranks(many, 32) == [16]
    assert ranks(shuffled, 4) == [32]


def test_flat_factors_are_views_made_when_asked_for():
    flat = torch.arange(20.0)
    own = FlatFactors(flat, {"s": (((2, 4), (4, 1), 0), ((6, 2), (2, 1), 8))})
    assert list(own) == ["s"]
    assert "s" in own
    assert "t" not in own
    short = FlatFactors(flat[:4].clone(), own.places)  # which has no room for the views
    assert list(short) == ["s"]
    with pytest.raises(RuntimeError, match="out of bounds"):
        short["s"]
    assert [(site, tuple(a), tuple(b)) for site, a, b in shapes(own)] == [("s", (2, 4), (6, 2))]
    a, b = own["s"]
    assert torch.equal(a, flat[:8].view(2, 4))
    assert torch.equal(b, flat[8:].view(6, 2))
    assert own["s"][0] is a
    assert a.data_ptr() == flat.data_ptr()


def test_tokens_must_fit_a_plan_of_tokens():
    from adapters_hub.errors import SettingsError

    model, bank = make([2] * 5, set(), torch.float32)
    plan = bank.plan([{"ad0": 1.0}, {}], torch.tensor([[0, 1, 0]]))
    with bank.using(plan), pytest.raises(SettingsError, match="for a plan of 1 rows of 3 tokens"):
        model(torch.randn(1, 4, IN))


@pytest.mark.parametrize("way", [True, False])
@pytest.mark.parametrize("learning", [False, True])
def test_a_plan_asks_its_tensors_the_same_few_questions_however_many_sites(
    monkeypatch, way, learning
):
    """Each question waits for the device where the tensor is on one."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Questions(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.asked = []

        def __torch_dispatch__(self, operation, kinds, given=(), named=None):
            if operation.overloadpacket.__name__ in ("_local_scalar_dense", "equal", "any", "all"):
                self.asked.append(operation)
            return operation(*given, **(named or {}))

    monkeypatch.setattr(Plan, "_masked_pays", lambda plan, *_, learning=False: way)
    asked = []
    for count in (1, 5):
        layers = {f"site{n}": nn.Linear(IN, 4) for n in range(count)}
        bank = Bank(layers)
        for name in NAMES:
            factors = {site: (torch.randn(2, IN), torch.randn(4, 2)) for site in layers}
            bank.put(name, factors, dict.fromkeys(layers, 0.5), trained=learning)
        plan = bank.plan([{name: 1.0} for name in NAMES], [0, 1, 2, 3, 4, 0, 1, 0])
        x = torch.randn(8, 3, IN)
        with bank.using(plan), Questions() as questions:
            for layer in layers.values():
                layer(x)
        asked.append(len(questions.asked))
    assert asked[0] == asked[1] > 0
