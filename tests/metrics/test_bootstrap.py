"""Intervals against what is known of them, and each task's tallies against its metrics."""

import math

import numpy as np
import pytest
import torch

from adapters_hub.metrics.bootstrap import Resampled
from adapters_hub.tasks import make_task


def mean(sums):
    return sums[..., 0] / sums[..., 1]


def units(values):
    return np.stack([values, np.ones(len(values))], axis=1)


def test_an_interval_of_a_mean_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(size=400)
    found = Resampled({"a": [units(values)]}, mean, 4000).estimate("a")
    error = values.std() / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_differences_are_paired():
    """Two columns that differ by little on every row are told apart, however rows differ."""
    values = np.random.default_rng(1).normal(size=100) * 10
    drawn = Resampled({"a": [units(values)], "b": [units(values + 0.01)]}, mean, 1000)
    found = drawn.estimate("b", "a")
    assert found.low == pytest.approx(0.01)
    assert found.high == pytest.approx(0.01)
    assert found.sure == 1
    assert drawn.estimate("b", "a", sign=-1.0).sure == -1
    same = drawn.estimate("a", "a")
    assert (same.mean, same.low, same.high, same.sure) == (0.0, 0.0, 0.0, 0)


def test_seeds_that_disagree_widen_the_interval():
    rows = np.random.default_rng(2).normal(size=500)
    one = Resampled({"a": [units(rows)] * 3}, mean, 1000).estimate("a")
    apart = [units(rows + shift) for shift in (-1.0, 0.0, 1.0)]
    several = Resampled({"a": apart}, mean, 1000).estimate("a")
    assert several.mean == pytest.approx(one.mean)
    assert several.high - several.low > 5 * (one.high - one.low)


def test_many_units_are_drawn_in_pieces(monkeypatch):
    values = np.random.default_rng(3).normal(size=50)
    monkeypatch.setattr("adapters_hub.metrics.bootstrap._AT_ONCE", 120)
    drawn = Resampled({"a": [units(values)]}, mean, 301)
    assert drawn.samples["a"].shape == (301,)
    assert drawn.samples["a"].std() == pytest.approx(values.std() / math.sqrt(50), rel=0.2)


def test_columns_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="units"):
        Resampled({"a": [np.ones((3, 2))], "b": [np.ones((4, 2))]}, mean, 10)
    with pytest.raises(ValueError, match="seeds"):
        Resampled({"a": [np.ones((3, 2))], "b": [np.ones((3, 2))] * 2}, mean, 10)


def classified():
    generator = np.random.default_rng(4)
    task = make_task("classification", label_names=("a", "b", "c", "unseen"))
    names = task.labels
    return task, [
        {"label": names[generator.integers(3)], "predicted": names[generator.integers(4)]}
        for _ in range(60)
    ]


def several_labels():
    task = make_task("classification", label_names=("a", "b", "c", "d"), multi_label=True)
    gold = [["a", "b"], [], ["c"], ["a"]]
    predicted = [["a"], [], ["b", "c"], ["d"]]
    return task, [{"label": a, "predicted": b} for a, b in zip(gold, predicted, strict=True)]


def modelled(size):
    generator = np.random.default_rng(5)
    return make_task("language-modeling"), [
        {
            "nats": float(generator.uniform(1, 9)),
            "tokens": 3,
            "bytes": size and size + n,
            "first": n % 3 == 0,
        }
        for n in range(20)
    ]


def written():
    task = make_task("generation")
    return task, modelled(10)[1]


def tagged():
    task = make_task("token-classification", label_names=("O", "B-X", "I-X"))
    tags = [["B-X", "I-X", "O"], ["O", "B-X", "B-X"], ["O"]]
    said = [["B-X", "I-X", "O"], ["B-X", "O", "B-X"], ["O"]]
    return task, [
        {"tags": a, "predicted": b, "scores": [1.0] * len(a), "cut": 0}
        for a, b in zip(tags, said, strict=True)
    ]


def asked():
    task = make_task("question-answering", no_answer=None)
    record = {"language": "en", "null": 0.0}
    return task, [
        {**record, "question": 1, "gold": ["the room"], "spans": [[2.0, 0, 4, "room"]]},
        {**record, "question": 0, "gold": ["rude staff"], "spans": [[1.0, 0, 5, "slow staff"]]},
        {**record, "question": 1, "gold": ["the room"], "spans": [[3.0, 9, 12, "the room"]]},
    ]


def ranked():
    task = make_task("retrieval")
    vectors = torch.nn.functional.normalize(torch.randn(12, 2, 8), dim=-1).numpy()
    return task, [
        {"key": f"{n}", "texts": [f"q{n}", f"d{n}"], "vectors": row}
        for n, row in enumerate(vectors)
    ]


@pytest.mark.parametrize(
    "made",
    [
        classified,
        several_labels,
        lambda: modelled(10),
        lambda: modelled(None),
        written,
        tagged,
        asked,
        ranked,
    ],
)
def test_the_score_of_all_tallies_is_the_metric(made):
    task, records = made()
    tallies = task.tallies(records)
    want = task.metrics(records)[task.metric]
    assert float(task.score(tallies.sum(0))) == pytest.approx(want)
    stacked = np.stack([tallies.sum(0), 2 * tallies.sum(0)])
    np.testing.assert_allclose(task.score(stacked), want)


def test_a_label_that_a_resample_lost_is_not_counted():
    task, records = classified()
    some = [record for record in records if record["label"] != "c"]
    assert float(task.score(task.tallies(some).sum(0))) == pytest.approx(
        task.metrics(some)["macro_f1"]
    )
