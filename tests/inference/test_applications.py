"""All five applications on one resident backbone, in one process, and what that takes in bytes."""

import gc

import pytest
import torch
from helpers.task_adapters import TASKS, adapters
from torch._subclasses.fake_tensor import FakeTensor

import adapters_hub as ah
from adapters_hub.library.paths import bundled_root

TEXTS = ["Værelset var rent.", "The room was clean.", "Das Zimmer war sauber."]
BLENDS = ["da + {}", "en + {}", "de + {}"]
QUESTION = "What was clean?"


def live_bytes():
    """Bytes of every tensor that is alive, a storage that several share counted once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, torch.Tensor) and not issubclass(kind, FakeTensor):  # has no bytes
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def use(model, task, blends):
    """A mixed batch of one application."""
    return {
        "classification": lambda: model.classify(TEXTS, blends),
        "question-answering": lambda: model.answer(QUESTION, TEXTS, blends),
        "token-classification": lambda: model.tag(TEXTS, blends),
        "retrieval": lambda: model.embed(TEXTS, blends),
        "generation": lambda: model.generate(TEXTS, blends, max_new_tokens=5),
        "translation": lambda: model.translate(
            TEXTS, ["da", "en", "de"], "fr", blends, max_new_tokens=5
        ),
    }[task]()


def one(results, row):
    return results[row : row + 1]


@pytest.fixture(scope="module")
def measured():
    """A model with all tasks resident, what each application gave, and bytes at three moments."""
    empty = live_bytes()
    model = ah.load_backbone("starter", library=bundled_root())
    backbone = live_bytes() - empty
    made = adapters(model)
    for adapter in made.values():
        model.add(adapter)
    model.residents.load({"da", "en", "de"})
    resident = live_bytes() - empty
    for _ in range(2):  # what the second round keeps on top would be a leak
        given = {task: use(model, task, [b.format(task) for b in BLENDS]) for task in TASKS}
        used = live_bytes() - empty
    return model, made, given, (backbone, resident, used)


def test_one_backbone_serves_all(measured):
    """Beside the backbone there are adapters and what calls stack of them; no second backbone."""
    _, made, _, (backbone, resident, used) = measured
    tensors = [tensor for adapter in made.values() for tensor in adapter.parameters()]
    added = sum(tensor.nbytes for tensor in tensors)
    shipped = 3 * 2 * 480 * 2**10  # three of the library's, at most float32
    assert backbone > 20 * 2**20
    assert resident - backbone <= added + shipped
    assert used - resident <= added + len(TASKS) * shipped  # what each task's calls stacked
    assert sum(p.nbytes for p in measured[0].backbone.model.parameters()) <= backbone


@pytest.mark.parametrize("task", TASKS)
def test_a_row_of_each_application_is_that_row_alone(measured, task):
    model, _, given, _ = measured
    for row, (text, blend) in enumerate(zip(TEXTS, BLENDS, strict=True)):
        blends = [blend.format(task)]
        alone = {
            "classification": lambda text=text, b=blends: model.classify([text], b),
            "question-answering": lambda text=text, b=blends: model.answer(QUESTION, [text], b),
            "token-classification": lambda text=text, b=blends: model.tag([text], b),
            "retrieval": lambda text=text, b=blends: model.embed([text], b),
            "generation": lambda text=text, b=blends: model.generate([text], b, max_new_tokens=5),
            "translation": lambda text=text, b=blends, row=row: model.translate(
                [text], ("da", "en", "de")[row], "fr", b, max_new_tokens=5
            ),
        }[task]()
        mixed = one(given[task], row)
        if task == "retrieval":
            torch.testing.assert_close(mixed, alone, atol=1e-4, rtol=1e-3)
        elif task == "classification":
            assert mixed[0] == pytest.approx(alone[0], abs=1e-4)
        elif task == "question-answering":
            assert (mixed[0].text, mixed[0].start) == (alone[0].text, alone[0].start)
            assert mixed[0].score == pytest.approx(alone[0].score, abs=1e-4)
        elif task == "token-classification":
            assert [(e.text, e.label) for e in mixed[0]] == [(e.text, e.label) for e in alone[0]]
        else:
            assert mixed == alone


def test_heads_of_different_tasks_stay_apart(measured):
    model, *_ = measured
    with pytest.raises(ah.AdaptersHubError, match="question-answering"):
        model.classify(TEXTS[:1], ["da + question-answering"])
    with pytest.raises(ah.AdaptersHubError, match="head"):
        model.classify(TEXTS[:1], ["classification + question-answering"])
