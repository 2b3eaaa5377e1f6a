"""Compiled forwards: the same numbers, and adapters that change without compiling again."""

import pytest
import torch
from helpers import in_threads
from torch._dynamo.testing import CompileCounter

import adapters_hub as ah
from adapters_hub.errors import BackboneError
from adapters_hub.runtime.compiled import CompiledSlots


@pytest.fixture
def library(tmp_path, lora_folder):
    library = ah.Library(tmp_path / "library")
    for number, name in enumerate(("one", "two", "three", "four")):
        library.add(lora_folder("qwen3", name, r=1 + number), name=name)
    return library


@pytest.fixture
def model(tiny, library):
    torch._dynamo.reset()
    return ah.load_backbone(str(tiny("qwen3")), library=library)


def logits(model, inputs, adapters):
    with torch.no_grad():
        return model(**inputs, adapters=adapters, use_cache=False).logits


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_and_never_compiles_again(model, inputs):
    batches = [
        ["one", "two", None, "one + two"],
        ["three", "one", "two - 0.5*three", None],
        ["four", "four", "four", "one"],
        ["two", None, None, None],
    ]
    want = [logits(model, inputs, rows) for rows in batches]
    same = logits(model, inputs, "one - three"), logits(model, inputs, None)
    counter = CompileCounter()
    model.compile(slots=3, rank=4, backend=counter)
    for rows, expected in zip(batches, want, strict=True):
        torch.testing.assert_close(logits(model, inputs, rows), expected, atol=1e-4, rtol=1e-4)
        assert counter.frame_count == 1, rows
    for adapters, expected in zip(("one - three", None), same, strict=True):
        torch.testing.assert_close(logits(model, inputs, adapters), expected, atol=1e-4, rtol=1e-4)
    count = counter.frame_count  # one more for a blend in all rows, one for none
    assert count == 3
    logits(model, inputs, "four")
    logits(model, inputs, None)
    logits(model, inputs, batches[1])
    assert counter.frame_count == count


@pytest.mark.slow
def test_what_the_slots_cannot_hold_is_refused_and_the_next_call_works(model, inputs):
    want = logits(model, inputs, ["one", None, "two", None])
    model.compile(slots=2, rank=3, backend="eager")
    with pytest.raises(BackboneError, match="3 adapters in one batch"):
        logits(model, inputs, ["one", "two", "three", None])
    with pytest.raises(BackboneError, match=r"compile\(rank=4\)"):
        logits(model, inputs, "four")
    live = model.adapter("one").trainable()
    model.add(live, trained=True)
    with pytest.raises(BackboneError, match="does not train"):
        model(**inputs, adapters="one")
    model.drop("one")
    got = logits(model, inputs, ["one", None, "two", None])
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert model.bank.current() is None


@pytest.mark.slow
def test_threads_take_turns_at_a_compiled_model(model, inputs):
    names = ("one", "two", "three")
    want = {name: logits(model, inputs, name) for name in names}
    model.compile(slots=1, rank=4, backend="eager")

    def work(name):
        for _ in range(10):
            torch.testing.assert_close(
                logits(model, inputs, name), want[name], atol=1e-4, rtol=1e-4
            )

    logits(model, inputs, "one")  # compiled once, before they start
    in_threads(work, names)


@pytest.mark.slow
def test_a_block_inside_a_block_is_shown_and_then_the_outer_one_again(model, inputs):
    want = logits(model, inputs, ["one"] * 2 + [None] * 2)
    model.compile(slots=1, rank=4, backend="eager")
    with torch.no_grad(), model.adapted(4, ["one"] * 2 + [None] * 2):
        logits(model, inputs, "two")
        got = model.backbone.model(**inputs, use_cache=False).logits
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_replaced_adapter_is_not_shown_from_its_old_place(model, inputs, library, lora_folder):
    model.compile(slots=2, rank=4, backend="eager")
    before = logits(model, inputs, "one")
    library.remove("one")
    library.add(lora_folder("qwen3", "again", r=1), name="one")
    after = logits(model, inputs, "one")
    assert (after - before).abs().max() > 1e-3
    other = ah.AdaptedModel(model.backbone, library)
    assert other.bank.compiled_slots is None


def test_no_slots_are_refused():
    with pytest.raises(BackboneError, match="hold nothing"):
        CompiledSlots({}, 0, 4, torch.device("cpu"), torch.float32)
