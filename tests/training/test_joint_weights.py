"""Weights of languages and domains: by hand, in the loop, cut into pieces, over a checkpoint."""

import math
import signal
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from conftest import in_double
from helpers.regularising import gradients, new, task_and_rows, train
from helpers.training import assert_same

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.tasks.base import Example
from adapters_hub.training.joint_weights import JointWeights

BATCHES = [[0, 3, 1, 2], [1, 2, 0], [3, 1], [0, 2, 3, 1], [2, 1, 3], [0, 1, 2, 3]]


@pytest.fixture
def model(tiny, tmp_path):
    return in_double(ah.load_backbone(str(tiny("bert")), library=tmp_path / "library"))


def examples(*languages, domain=None):
    return [Example([1], Row("x", language=tag, domain=domain), 0) for tag in languages]


def weigher(kind, seen):
    task, _ = task_and_rows("classification")
    return JointWeights(kind, task, seen, Accelerator(cpu=True), torch.device("cpu"))


def test_dro_multiplies_by_the_exponential_of_each_groups_mean_loss():
    rows = examples("de", "de", "en", "fr")
    joint = weigher("dro", [(row, 0) for row in rows])
    losses = torch.tensor([4.0, 2.0, 1.0])
    weights = joint.weigh(losses, torch.tensor([1.0, 3.0, 1.0]), rows[:3], [0, 0, 0])
    assert weights.tolist() == [1, 1, 1]
    joint.finish(shared=True)
    raw = [math.exp(0.01 * 6 / 4), math.exp(0.01), 1.0]  # of fr there was no row
    expected = [3 * value / sum(raw) for value in raw]
    assert joint.weights == pytest.approx(expected)
    again = joint.weigh(losses, torch.ones(3), rows[1:], [0, 0, 0])
    assert again.tolist() == pytest.approx(expected)


def test_proportional_weights_follow_a_moving_average():
    rows = examples("de", "en", "fr")
    joint = weigher("proportional", [(row, 0) for row in rows])
    for losses in ([2.0, 1.0], [4.0, 1.0]):
        joint.weigh(torch.tensor(losses), torch.ones(2), rows[:2], [0, 0])
        joint.finish(shared=True)
    averages = [0.9 * 2 + 0.1 * 4, 1.0]
    averages.append(sum(averages) / 2)  # fr, which was not seen
    assert joint.weights == pytest.approx([3 * value / sum(averages) for value in averages])


def test_each_adapter_has_weights_of_its_own_and_domains_are_groups():
    rows = [*examples("de", "en"), *examples("de", domain="law"), *examples("de", "en")]
    owners = [0, 0, 0, 1, 1]
    joint = weigher("dro", list(zip(rows, owners, strict=True)))
    assert len(joint.weights) == 5
    joint.weigh(torch.tensor([9.0, 0.0, 0.0]), torch.ones(3), rows[:3], owners[:3])
    joint.finish(shared=True)
    assert joint.weights[3:] == [1.0, 1.0]
    assert sum(joint.weights[:3]) == pytest.approx(3)
    assert "de law of adapter 1" in joint.summary()


def rows_of(model, *languages):
    task, rows = task_and_rows("classification")
    tagged = [replace(row, language=tag) for row, tag in zip(rows, languages, strict=True)]
    return task, tagged


def test_a_row_counts_as_often_as_its_group(model, monkeypatch):
    task, rows = rows_of(model, "de", "de", "en", "en")
    adapter = new(model, task)

    def grads(chosen, **values):
        ((of_adapter,), _) = gradients(monkeypatch, model, task, chosen, [adapter], **values)
        return of_adapter

    monkeypatch.setattr(JointWeights, "finish", lambda self, shared: None)
    begin = JointWeights.__init__

    def with_weights(self, *given):
        begin(self, *given)
        self.weights = [1.5, 0.5]

    monkeypatch.setattr(JointWeights, "__init__", with_weights)
    got = grads(rows, joint_weights="dro")
    german, english = grads(rows[:2]), grads(rows[2:])
    for ours, de, en in zip(got, german, english, strict=True):
        torch.testing.assert_close(ours, (1.5 * de + 0.5 * en) / 2, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dro", "proportional"])
@pytest.mark.parametrize("name", ["classification", "retrieval"])
def test_pieces_change_nothing(model, kind, name):
    task, rows = task_and_rows(name)
    rows = [replace(r, language=t) for r, t in zip(rows, ("de", "en", "de", "en"), strict=True)]
    made = []
    for pieces in (1, 2):
        adapter = new(model, task)
        made.append(
            train(model, task, rows, [adapter], BATCHES, joint_weights=kind, accumulation=pieces)
        )
    ((whole,), one), ((cut,), other) = made
    assert_same(whole, cut)
    assert one.notes == other.notes
    assert f"loss weights at the end ({kind}): de " in one.notes[0]


def test_a_run_that_was_stopped_goes_on_with_its_weights(model, monkeypatch, tmp_path):
    task, rows = rows_of(model, "de", "en", "fr", "de")
    every = {"joint_weights": "proportional"}
    (want,), whole = train(model, task, rows, [new(model, task)], BATCHES, **every)
    collate = type(task).collate

    def interrupted(self, chosen, backbone, seed=0):
        if seed == 3 * 100_003 + 3:
            signal.raise_signal(signal.SIGINT)
        return collate(self, chosen, backbone, seed=seed)

    with monkeypatch.context() as patch:
        patch.setattr(type(task), "collate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(model, task, rows, [new(model, task)], BATCHES, folder=tmp_path, **every)
    (got,), progress = train(
        model, task, rows, [new(model, task)], BATCHES, folder=tmp_path, **every
    )
    assert_same(got, want, atol=1e-6, rtol=1e-5)
    assert progress.notes == whole.notes
