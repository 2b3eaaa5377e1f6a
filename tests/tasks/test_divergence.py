"""Divergences a block at a time against plain ones, and two views of rows."""

import pytest
import torch
from helpers.regularising import new, task_and_rows
from torch.nn import functional

import adapters_hub as ah
from adapters_hub.errors import SettingsError
from adapters_hub.tasks import cross_entropy
from adapters_hub.tasks.divergence import blocked_divergence, kl_from, symmetric_kl
from adapters_hub.training.regularisers.passes import consistency

VOCABULARY, WIDTH = 50, 6


def plain_kl(p, q):
    """KL(p ‖ q) of logits."""
    return functional.kl_div(
        q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)


def test_measures_are_torchs():
    torch.manual_seed(0)
    one, other = torch.randn(2, 7, VOCABULARY)
    torch.testing.assert_close(kl_from(one, other), plain_kl(other, one))
    both = (plain_kl(one, other) + plain_kl(other, one)) / 2
    torch.testing.assert_close(symmetric_kl(one, other), both)


def test_what_cannot_be_counts_nothing():
    one, other = torch.randn(2, 4, VOCABULARY)
    nothing = torch.zeros(VOCABULARY, dtype=torch.bool)
    nothing[10:] = True
    masked = [t.masked_fill(nothing, -torch.inf).requires_grad_() for t in (one, other)]
    got = symmetric_kl(*masked)
    torch.testing.assert_close(got, symmetric_kl(one[:, :10], other[:, :10]))
    got.sum().backward()
    assert all(t.grad.isfinite().all() for t in masked)


@pytest.mark.parametrize("measure", [kl_from, symmetric_kl])
@pytest.mark.parametrize("head_learns", [False, True])
@pytest.mark.parametrize("grads", [(True, True), (True, False), (False, True), (False, False)])
def test_blocks_change_nothing(monkeypatch, measure, head_learns, grads):
    monkeypatch.setattr(cross_entropy, "BLOCK_BYTES", 3 * 8 * VOCABULARY)
    torch.manual_seed(0)
    head = torch.randn(VOCABULARY, WIDTH, requires_grad=head_learns)
    states = [torch.randn(10, WIDTH, requires_grad=grad) for grad in grads]
    weights, sizes = torch.randn(10), []

    def logits_of(hidden, at):
        sizes.append(len(hidden))
        return hidden @ head.t()

    got = blocked_divergence(measure, logits_of, *states, VOCABULARY, head_learns=head_learns)
    expected = measure(*(state @ head.t() for state in states))
    torch.testing.assert_close(got, expected)
    assert max(sizes) <= 3
    learnt = [t for t in (*states, head) if t.requires_grad]
    if learnt:
        ours = torch.autograd.grad((got * weights).sum(), learnt)
        theirs = torch.autograd.grad((expected * weights).sum(), learnt)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype):
    torch.manual_seed(0)
    head = torch.randn(2000, WIDTH, dtype=dtype)
    states = [torch.randn(8, WIDTH).to(dtype).requires_grad_() for _ in range(2)]
    logits_of = lambda hidden, at: hidden @ head.t()
    got = blocked_divergence(symmetric_kl, logits_of, *states, 2000, head_learns=False)
    wide = [state.detach().float().requires_grad_() for state in states]
    expected = symmetric_kl(*(state @ head.float().t() for state in wide))
    torch.testing.assert_close(got, expected, atol=0.02, rtol=0.02)
    ours = torch.autograd.grad(got.mean(), states)
    theirs = torch.autograd.grad(expected.mean(), wide)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            one.float(), other, atol=0.02 * other.abs().max().item(), rtol=0.05
        )


# ── two views of rows ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def load(tiny, tmp_path):
    return lambda kind: ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")


def views(model, task, rows, others):
    """Both collated, with what the task reads of them under one adapter."""
    model.add(new(model, task))
    blends = [model.resolve("name:a")] * len(rows)
    heads = model.heads(blends) if task.needs_head() else []
    pair = []
    for some in (rows, others):
        batch = task.collate(task.encode(some, model.backbone), model.backbone)
        with torch.no_grad(), model.bank.using(model.plan(blends)):
            pair.append((batch, task.read(model, batch, heads)))
    return pair


def with_words_split(row):
    """The same row in other tokens: the tokenizer knows no word in which a letter is accented."""
    text = row.text.replace("o", "ö")
    fields = {**row.fields, "words": text.split()} if "words" in row.fields else row.fields
    return row.__class__(text, row.label, row.language, fields=fields)


@pytest.mark.parametrize("name", ["classification", "multi-label", "token-classification"])
def test_two_segmentations_of_rows_can_be_compared(load, name):
    model, (task, rows) = load("bert"), task_and_rows(name)
    one, other = views(model, task, rows, [*map(with_words_split, rows)])
    assert one[0]["input_ids"].shape != other[0]["input_ids"].shape
    apart = consistency(model, task, one, other)
    assert apart.shape == (len(rows),)
    assert (apart > 0).sum() >= 3
    assert consistency(model, task, one, one).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["question-answering", "language-modeling"])
def test_other_tokens_of_tasks_that_point_at_tokens_cannot(load, name):
    model, (task, rows) = load("bert" if "question" in name else "gpt2"), task_and_rows(name)
    others = rows if "question" not in name else None
    if others is None:
        others = [
            row.__class__(row.text + " room", fields=row.fields, language="en") for row in rows
        ]
    else:
        others = [row.__class__(row.text + " room") for row in rows]
    one, other = views(model, task, rows, others)
    with pytest.raises(SettingsError, match="two passes have"):
        consistency(model, task, one, other)
