"""A row as augmentation drew it beside the row as it was read: gradients, pieces and errors."""

import pytest
import torch
from helpers.augmenting import load, write_dictionary
from helpers.regularising import gradients, new, settings, task_and_rows, train, value_in
from helpers.training import assert_same
from torch.nn import functional

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.training.augmentation import augmenter_of

WANTED = {"regularise": {"consistency": "0.5"}, "augment": {"codeswitch": 0.9}}


@pytest.fixture
def dictionary(tmp_path):
    return write_dictionary(tmp_path)


def drawn_by(model, name, dictionary, **values):
    """A task, its rows in English, and the augmenter of a run of it."""
    task, rows = task_and_rows(name)
    rows = [Row(row.text, row.label, "en", fields=row.fields) for row in rows]
    options = {**WANTED, "augment_data": dictionary, **values}
    return task, rows, options, augmenter_of(settings(**options), task, model.backbone, rows)


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
@pytest.mark.parametrize("name", ["classification", "multi-label", "token-classification"])
def test_it_is_half_of_both_losses_and_the_symmetric_kl(
    kind, name, tiny, tmp_path, monkeypatch, dictionary
):
    model = load(tiny(kind), tmp_path)
    task, rows, options, augmenter = drawn_by(model, name, dictionary)
    adapter = new(model, task, scale=0.3)
    (got,), progress = gradients(
        monkeypatch, model, task, rows, [adapter], augmenter=augmenter, **options
    )
    examples = task.encode(rows, model.backbone)
    places = list(range(len(examples)))
    drawn = list(augmenter.draw(0, places, examples, [0] * len(examples), seed=3))
    assert [one.input_ids for one in drawn] != [one.input_ids for one in examples]
    adapter = model.add(adapter.trainable(), trained=True)
    blends = [ah.Blend((("a", 1.0),), exact=True)] * len(rows)
    losses, logits = [], []
    for view in (drawn, examples):
        batch = task.collate(view, model.backbone)
        heads = model.heads(blends)
        with model.bank.using(model.plan(blends)):
            losses.append(task.loss(model, batch, heads))
            of_view = task.logits(model, batch, heads)
        logits.append(of_view[batch["labels"] != -100] if of_view.ndim == 3 else of_view)
    if name == "multi-label":  # each label is yes or no
        logits = [torch.stack([x, torch.zeros_like(x)], -1).flatten(0, 1) for x in logits]
    p, q = (x.log_softmax(-1) for x in logits)
    apart = 0.5 * sum(
        functional.kl_div(one, other, log_target=True, reduction="sum")
        for one, other in ((p, q), (q, p))
    )
    count = task.count(task.collate(examples, model.backbone)).sum()
    value = apart / count / (len(task.labels) if name == "multi-label" else 1)
    total = 0.5 * (losses[0] + losses[1]).sum() / count + 0.5 * value
    expected = torch.autograd.grad(total, adapter.parameters())
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours - theirs).abs().max() <= 2e-5 + 1e-3 * theirs.abs().max()
    assert value.item() > 1e-6
    assert value_in(progress.notes[0], "consistency") == pytest.approx(value.item(), rel=1e-3)


def test_pieces_change_nothing(tiny, tmp_path, dictionary):
    model = load(tiny("bert"), tmp_path)
    task, rows, options, augmenter = drawn_by(model, "classification", dictionary)
    runs = [
        train(
            model, task, rows, [new(model, task)], [[0, 1, 2, 3], [2, 0]], augmenter=augmenter,
            accumulation=accumulation, **options,
        )
        for accumulation in (1, 3)
    ]  # fmt: skip
    (((whole,), of_whole), ((cut,), of_cut)) = runs
    assert_same(whole, cut, atol=2e-5)
    assert value_in(of_whole.notes[0], "consistency") == pytest.approx(
        value_in(of_cut.notes[0], "consistency"), rel=1e-3
    )


def test_a_row_that_was_drawn_with_fewer_targets_is_compared_with_itself(
    tiny, tmp_path, dictionary
):
    model = load(tiny("bert"), tmp_path)
    task, rows, options, _ = drawn_by(model, "token-classification", dictionary)
    tight = type(task)(label_names=task.labels, max_length=4)  # "chambre" takes more than its share
    augmenter = augmenter_of(settings(**options), tight, model.backbone, rows)
    examples = tight.encode(rows, model.backbone)
    drawn = augmenter.draw(0, range(len(rows)), examples, [0] * len(rows), seed=3)
    words = [[place for place in one.target.places if place is not None] for one in drawn]
    assert [len(one) for one in words] != [
        len([place for place in one.target.places if place is not None]) for one in examples
    ]
    batches = [list(range(len(rows)))]
    (adapter,), progress = train(
        model, tight, rows, [new(model, tight)], batches, augmenter=augmenter, **options
    )
    assert value_in(progress.notes[0], "consistency") >= 0
    assert all(t.isfinite().all() for t in adapter.parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("classification", {"augment": {}}, "nothing is augmented: give --augment too"),
        ("classification", {"augment": {"mixup": 0.2, "span": 0.1}}, "mixup mixes labels"),
        ("question-answering", {"augment": {"subword": 0.1}}, "the targets of question-answering"),
        ("language-modeling", {"augment": {"subword": 0.1}}, "or take rdrop"),
        ("retrieval", {"augment": {"subword": 0.1}}, "the targets of retrieval are not the same"),
    ],
)
def test_what_cannot_be_compared(name, options, message, tiny, tmp_path):
    model, (task, rows) = load(tiny("bert"), tmp_path), task_and_rows(name)
    with pytest.raises(SettingsError, match=message):
        train(
            model, task, rows, [new(model, task)], [[0]], regularise={"consistency": "1"}, **options
        )
