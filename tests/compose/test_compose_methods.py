"""Each method against a plain dense float64 computation, and against PEFT where PEFT has it."""

import numpy as np
import pytest
import torch
from helpers.factors import close, dense, make, product, size_of
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils
from torch.utils._python_dispatch import TorchDispatchMode

from adapters_hub.compose import entrywise as entries
from adapters_hub.compose.core_space import core_space, rows_to_basis
from adapters_hub.compose.entrywise import kth_largest
from adapters_hub.compose.methods import METHODS, compose, compose_sites, delta, options_of
from adapters_hub.errors import SettingsError

CASES = {
    "one": ([3], [1.5], (7, 9)),
    "two": ([2, 4], [1.0, 0.5], (12, 8)),
    "subtracted": ([3, 3], [1.0, -0.7], (9, 12)),
    "three": ([2, 1, 4], [1.0, -2.0, 0.5], (15, 11)),
    "missing": ([2, 0, 3], [1.0, 3.0, -0.5], (11, 15)),
    "no weight": ([2, 3], [0.0, 1.0], (8, 8)),
    "ranks above the layer's": ([9, 8], [1.0, -0.5], (6, 10)),
    "all over the layer": ([7, 6, 5], [1.0, 1.0, -1.0], (5, 4)),
}
SHARED = pytest.mark.parametrize("case", CASES)
RANKS = pytest.mark.parametrize("rank", [None, 1, 3, 100])


def cut(matrix, rank):
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def top(matrix, density):
    count = int(density * matrix.size)
    kept = np.zeros(matrix.size)
    kept[np.argsort(-np.abs(matrix), axis=None)[:count]] = 1
    return matrix * kept.reshape(matrix.shape)


def elect(matrices):
    sign = np.where(sum(matrices) >= 0, 1, -1)
    agree = [np.sign(m) == sign for m in matrices]
    return sum(m * ok for m, ok in zip(matrices, agree, strict=True)) / np.maximum(1, sum(agree))


def thin_svd(matrix):
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    rank = int((s > 1e-7 * s.max(initial=0)).sum())
    return u[:, :rank], s[:rank], vh[:rank]


def cores(pieces):
    left = thin_svd(np.hstack([b.double().numpy() for _, _, b in pieces]))[0]
    right = thin_svd(np.vstack([a.double().numpy() for _, a, _ in pieces]))[2]
    return left, [left.T @ dense(piece) @ right.T for piece in pieces], right


def dense_svd(pieces, rank):
    return cut(sum(map(dense, pieces)), rank)


def dense_iso(pieces, rank):
    u, s, vh = thin_svd(sum(map(dense, pieces)))
    return s[:rank].mean() * u[:, :rank] @ vh[:rank]


def dense_knots(pieces, rank):
    u, s, vh = thin_svd(np.hstack([dense(piece) for piece in pieces]))
    rows = [top(part, 0.3) for part in np.hsplit(vh, len(pieces))]
    # an adapter that does not act is no part, so it changes neither shares nor votes
    return cut(u * s @ elect(rows), rank)


def dense_core_ties(pieces, rank):
    left, inner, right = cores(pieces)
    return cut(left @ elect([top(core, 0.3) for core in inner]) @ right, rank)


def dense_core_prune(pieces, rank):
    left, inner, right = cores(pieces)
    return cut(left @ sum(top(core, 0.3) for core in inner) @ right, rank)


def dense_tsv(pieces, rank):
    parts = [thin_svd(dense(piece)) for piece in pieces]
    (pu, _, qu), (pv, _, qv) = (
        thin_svd(np.hstack([u for u, _, _ in parts])),
        thin_svd(np.vstack([vh for _, _, vh in parts])),
    )
    return cut(pu @ qu * np.concatenate([s for _, s, _ in parts]) @ (pv @ qv), rank)


def dense_ties(pieces, rank):
    return cut(elect([top(dense(piece), 0.3) for piece in pieces]), rank)


def dense_prune(pieces, rank):
    return cut(sum(top(dense(piece), 0.3) for piece in pieces), rank)


REFERENCES = {
    "svd": ("svd", {}, dense_svd),
    "iso": ("iso", {}, dense_iso),
    "knots": ("knots", {"density": 0.3}, dense_knots),
    "core_ties": ("core_ties", {"density": 0.3}, dense_core_ties),
    "core, tsv": ("core", {}, dense_tsv),
    "core, pruned": ("core", {"inner": "magnitude_prune", "density": 0.3}, dense_core_prune),
    "ties": ("ties", {"density": 0.3}, dense_ties),
    "magnitude_prune": ("magnitude_prune", {"density": 0.3}, dense_prune),
}


@SHARED
@RANKS
@pytest.mark.parametrize("reference", REFERENCES)
def test_a_method_is_its_dense_definition(case, rank, reference):
    pieces = make(*CASES[case])
    method, options, plain = REFERENCES[reference]
    sum_rank = min(sum(CASES[case][0]), *CASES[case][2])
    a, b = compose(pieces, method, **options, rank=rank)
    wanted = plain(pieces, min(rank or sum_rank, sum_rank if rank is None else 100))
    close(product((a, b)), wanted, size_of(pieces))
    assert len(a) <= min(rank or sum_rank, *CASES[case][2])


@SHARED
def test_sum_is_the_sum(case):
    pieces = make(*CASES[case])
    a, b = compose(pieces)
    assert len(a) == sum(CASES[case][0])
    close(product((a, b)), sum(map(dense, pieces)), size_of(pieces))
    close(delta(pieces).numpy(), sum(map(dense, pieces)), size_of(pieces))


@st.composite
def some_pieces(draw):
    ranks = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any))
    weights = [draw(st.sampled_from([1.0, -1.0, 0.5, -3.0, 0.0, 1e-3])) for _ in ranks]
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    pieces = make(ranks, weights, shape, draw(st.integers(0, 1000)))
    if draw(st.booleans()):  # the same adapter twice, or one against itself
        pieces.append((draw(st.sampled_from([1.0, -1.0])), *pieces[0][1:]))
    return pieces


@settings(max_examples=60, deadline=None)
@given(some_pieces(), st.integers(1, 8))
def test_svd_is_the_best_approximation(pieces, rank):
    wanted = sum(map(dense, pieces))
    size = size_of(pieces)
    close(product(compose(pieces, "svd")), wanted, size)
    got = product(compose(pieces, "svd", rank=rank))
    values = np.linalg.svd(wanted, compute_uv=False)
    kept = np.linalg.svd(got, compute_uv=False)
    close(kept[:rank], values[:rank], size)
    close(kept[rank:], 0 * kept[rank:], size)
    close(np.linalg.norm(wanted - got), np.linalg.norm(values[rank:]), size)


@settings(max_examples=30, deadline=None)
@given(some_pieces(), st.sampled_from(sorted(set(METHODS) - {"linear", "layer_swap"})))
def test_any_ranks_and_weights_give_finite_factors(pieces, method):
    if method == "subtract":
        pieces = [*pieces, *pieces]
    a, b = compose(pieces, method)
    assert a.shape[1] == pieces[0][1].shape[1]
    assert b.shape[0] == pieces[0][2].shape[0]
    assert np.isfinite(product((a, b))).all()
    if method not in ("sum", "subtract"):
        assert len(a) <= min(sum(len(a) for _, a, _ in pieces), a.shape[1], b.shape[0])


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_against_itself_or_empty(method):
    (one,) = make([3], [1.0], (8, 6))
    cancelled = [one, (-1.0, *one[1:])]
    nothing = [(1.0, one[1][:0], one[2][:, :0])] * 2
    zero = [(1.0, one[1], torch.zeros_like(one[2]))] * 2
    if method in ("sum", "svd", "linear", "magnitude_prune", "iso", "core", "subtract"):
        # linear too: both of its sums have the factor 1 - 1 or 1 + 1, and one of them is zero
        got = product(compose(cancelled, method))
        close(got, 0 * got, 1.0, 1e-5)
    for pieces in (nothing, zero):
        got = product(compose(pieces, method))
        assert got.shape == (8, 6)
        assert not got.any()


@pytest.mark.parametrize("method", ["svd", "iso", "ties", "core_ties", "knots"])
def test_the_same_adapter_twice_is_no_new_direction(method):
    (one,) = make([3], [1.0], (20, 16))
    (other,) = make([2], [1.0], (20, 16), seed=5)
    options = {"density": 0.4} if "density" in options_of(method) else {}
    twice = compose([one, one], method, **options)
    # TIES takes the mean of those that agree
    factor = 2.0 if method in ("svd", "iso") else 1.0
    once = factor * product(compose([one], method, **options, rank=len(twice[0])))
    close(product(twice), once, np.linalg.norm(once), 1e-5)
    assert np.isfinite(product(compose([one, one, other], method, **options))).all()


def test_nearly_equal_adapters_lose_nothing_to_each_other():
    """The difference of two adapters that are close, relative to that difference itself."""
    (one,) = make([4], [1.0], (30, 20))
    _, a, b = one
    near = (-1.0, a, b + 1e-4 * torch.randn(b.shape, generator=torch.Generator().manual_seed(1)))
    wanted = dense(one) + dense(near)
    close(product(compose([one, near], "svd")), wanted, np.linalg.norm(wanted))


@pytest.mark.parametrize(
    "rows",
    [
        torch.randn(4, 9, generator=torch.Generator().manual_seed(0)),
        torch.randn(9, 4, generator=torch.Generator().manual_seed(0)),
        torch.ones(3, 5),
        torch.zeros(3, 5),
        torch.zeros(0, 5),
        torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-7, 0.0]]),
        torch.tensor([[1e20, 0.0, 1e20], [0.0, 1e-20, 0.0]]),
    ],
)
def test_bases_are_orthonormal_and_lose_nothing(rows):
    rows = rows.double()
    small, basis = rows_to_basis(rows)
    eye = torch.eye(min(rows.shape), dtype=torch.float64)
    full = basis.lift(eye)
    torch.testing.assert_close(full @ full.mT, eye, atol=1e-7, rtol=0)
    torch.testing.assert_close(small @ full, rows, atol=1e-12 * float(rows.norm()), rtol=1e-12)


def test_cores_are_lossless_in_both_bases():
    pieces = make(*CASES["three"])
    for reference in (False, True):
        space = core_space(pieces, reference)
        for piece, core in zip(pieces, space.cores, strict=True):
            left = space.left.lift(torch.eye(len(core), dtype=torch.float64))
            close((left.mT @ space.right.lift(core)).numpy(), dense(piece), size_of(pieces), 1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_factors_are_computed_with_in_float32(method, dtype):
    pieces = [(w, a.to(dtype), b.to(dtype)) for w, a, b in make([3, 3], [1.0, -0.5], (9, 7))]
    wide = [(w, a.float(), b.float()) for w, a, b in pieces]
    for got, wanted in zip(compose(pieces, method), compose(wide, method), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted)


# ── the true deltas ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", [(21, 30), (30, 21), (24, 24)])
@pytest.mark.parametrize("block", [1, 64, 100, 1 << 17])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, -0.5, 2.0]])
def test_entries_as_pefts_functions_have_them(shape, block, weights, monkeypatch):
    monkeypatch.setattr(entries, "BLOCK", block)
    pieces = make([2, 4, 3], weights, shape)
    weighted = [torch.from_numpy(dense(piece)) for piece in pieces]
    ones, size = torch.ones(3), size_of(pieces)
    rank = min(shape)
    for density in (0.05, 0.2, 0.7):
        wanted = merge_utils.ties(weighted, ones, density).numpy()
        close(product(compose(pieces, "ties", density=density, rank=rank)), wanted, size)
        wanted = merge_utils.magnitude_prune(weighted, ones, density).numpy()
        got = product(compose(pieces, "magnitude_prune", density=density, rank=rank))
        close(got, wanted, size)


def test_pruning_takes_pefts_weights():
    pieces = make([2, 4], [1.0, -0.5], (12, 18))
    deltas = [torch.from_numpy(dense((1.0, a, b))) for _, a, b in pieces]
    wanted = merge_utils.magnitude_prune(deltas, torch.tensor([1.0, -0.5]), 0.3).numpy()
    got = product(compose(pieces, "magnitude_prune", density=0.3, rank=12))
    close(got, wanted, size_of(pieces))
    # TIES's weights too, where they turn no election: all are equal
    wanted = merge_utils.ties(deltas, torch.tensor([0.5, 0.5]), 0.3).numpy()
    half = [(0.5, a, b) for _, a, b in pieces]
    close(product(compose(half, "ties", density=0.3, rank=12)), wanted, size_of(pieces))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.data())
def test_the_kth_largest_is_exact(seed, data):
    pieces = make([2, 3], [1.0, -1e-3], (9, 7), seed)
    if data.draw(st.booleans()):  # many equal entries, and zeros
        pieces = [(w, a.round(), b.round()) for w, a, b in pieces]
    count = data.draw(st.integers(1, 63))
    wanted = [((w * b) @ a).abs().flatten().sort(descending=True).values for w, a, b in pieces]
    wanted = torch.stack([values[count - 1] for values in wanted])
    assert torch.equal(kth_largest(pieces, count), wanted)
    assert kth_largest(pieces, 0).isinf().all()


def test_dare_keeps_a_share_and_rescales_it():
    (piece,) = make([3], [2.0], (40, 50))
    whole = dense(piece)
    got = product(compose([piece], "dare", density=0.25, seed=3, rank=40))
    kept = np.abs(got) > 1e-4
    np.testing.assert_allclose(got[kept], whole[kept] / 0.25, rtol=1e-4, atol=1e-5)
    assert 0.2 < kept.mean() < 0.3
    two = make([3, 2], [1.0, -1.0], (20, 30))
    close(product(compose(two, "dare", density=1)), sum(map(dense, two)), size_of(two))


@pytest.mark.parametrize(("method", "options"), [("dare", {}), ("core", {"inner": "dare"})])
def test_a_seed_gives_the_same_everywhere_and_each_site_its_own(method, options):
    pieces = make([3, 2], [1.0, -1.0], (20, 30))
    torch.manual_seed(0)
    at = lambda seed, **sites: compose_sites(
        dict.fromkeys(sites, pieces), method, seed=seed, **options
    )
    both = at(1, first=0, second=0)
    torch.manual_seed(1)
    for factors, again in zip(both["second"], at(1, second=0)["second"], strict=True):
        assert torch.equal(factors, again)
    assert not torch.equal(both["first"][1], both["second"][1])
    assert not torch.equal(both["first"][1], at(2, first=0)["first"][1])


class Watch(TorchDispatchMode):
    """Remembers the largest tensor that anything made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // 4)
        return made


@pytest.mark.parametrize("shape", [(2048, 256), (256, 2048)])
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"layer_swap"}))
def test_no_delta_is_ever_held(method, shape, monkeypatch):
    monkeypatch.setattr(entries, "BLOCK", 1 << 14)
    pieces = make([4, 4], [1.0, 0.5], shape)
    options = {"rank": 8} if "rank" in options_of(method) else {}
    with Watch() as watch:
        compose(pieces, method, **options)
    blockwise = method in ("ties", "dare", "magnitude_prune")
    largest = 2048 * 256 // (2 if blockwise else 8)  # float64 Gram 256 × 256, or factors
    assert 0 < watch.largest <= largest


# ── a share of the energy ────────────────────────────────────────────────────────────────────────


@given(some_pieces(), st.floats(0.05, 1.0))
def test_energy_is_kept_by_the_smallest_rank(pieces, energy):
    a, b = compose(pieces, "svd", energy=energy)
    values = np.linalg.svd(sum(dense(piece) for piece in pieces), compute_uv=False) ** 2
    rank, whole = len(a), values.sum()
    assert np.linalg.norm(product((a, b))) ** 2 >= (energy - 1e-5) * whole - 1e-12
    assert values[: max(0, rank - 1)].sum() <= energy * whole * (1 + 1e-5) + 1e-12


def test_all_of_the_energy_is_the_sum():
    pieces = make((3, 2), (1.0, -0.5), (12, 10))
    close(product(compose(pieces, "svd", energy=1.0)), sum(map(dense, pieces)), size_of(pieces))
    twice = [*pieces[:1], *pieces[:1]]
    a, b = compose(twice, "svd", energy=1.0)
    assert len(a) == 3
    close(product((a, b)), 2 * dense(pieces[0]), size_of(twice))


def test_sites_of_one_shape_are_cut_each_to_its_rank():
    flat, steep = make((4,), (1.0,), (12, 10)), make((4,), (1.0,), (12, 10), seed=1)
    steep[0][2].mul_(torch.tensor([1.0, 0.1, 0.01, 0.001]))
    pieces = {"layers.0.q": flat, "layers.1.q": steep}
    made = compose_sites(pieces, "svd", energy=0.9)
    assert len(made["layers.1.q"][0]) < len(made["layers.0.q"][0])
    for site, of_site in pieces.items():
        alone = compose(of_site, "svd", energy=0.9)
        assert all(torch.equal(*pair) for pair in zip(made[site], alone, strict=True))
    capped = compose_sites(pieces, "svd", energy=0.9, rank=2)
    assert [len(a) for a, _ in capped.values()] == [2, len(made["layers.1.q"][0])]


@pytest.mark.parametrize("energy", [0, -0.1, 1.5, float("nan"), True])
def test_energy_is_a_share(energy):
    with pytest.raises(SettingsError, match=r"energy=.*: give a share above 0, at most 1"):
        compose(make((2,), (1.0,), (6, 5)), "svd", energy=energy)


def test_energy_is_for_svd():
    with pytest.raises(SettingsError, match="method='svd' cuts a sum to the ranks that keep"):
        compose(make((2,), (1.0,), (6, 5)), "sum", energy=0.9)
