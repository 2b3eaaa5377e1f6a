"""Heads that learn alone: the body sees each text once, and the heads are as if it saw it always."""

import signal

import pytest
import torch
from accelerate import Accelerator
from conftest import TEXTS
from helpers.recipes import launch
from helpers.training import assert_same, settings
from peft import LoraConfig
from safetensors.torch import load_file

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.library.blend import Blend
from adapters_hub.tasks import features
from adapters_hub.tasks.classification import Classification
from adapters_hub.tasks.question_answering import QuestionAnswering
from adapters_hub.tasks.token_classification import TokenClassification
from adapters_hub.training import loop

TASKS = {
    "classification": Classification(("no", "yes")),
    "multi-label": Classification(("no", "yes"), multi_label=True),
    "token-classification": TokenClassification(("O", "B-X", "I-X")),
    "question-answering": QuestionAnswering(max_length=24, stride=2),
}
BATCHES = [[0, 3, 5, 7], [1, 2, 4, 6], [8, 9, 10], [0, 2, 4, 8], [1, 3, 9, 10], [5, 6, 7, 10]]
BATCHES += BATCHES[::-1]


def rows_of(name):
    """Eleven rows of unlike length in two languages."""
    rows = []
    for n in range(11):
        text = " ".join([*TEXTS[:3], *TEXTS[:3]][n % 3 : n % 3 + 1 + n % 2])
        words = text.split()
        label = "yes" if n % 2 else "no"
        fields = {
            "words": words,
            "tags": ["B-X" if (place + n) % 3 else "O" for place in range(len(words))],
            "question": "what was it",
            "answer": words[n % 2],
            "answer_start": text.index(words[n % 2]),
        }
        several = ("no", "yes")[: n % 3]
        kept = several if name == "multi-label" else label
        rows.append(Row(text, kept, language=("en", "de", "fr")[n % 3], fields=fields))
    return rows


@pytest.fixture
def load(tiny, tmp_path, lora_folder):
    """kind → a model whose library has a German adapter, and how many rows its body saw."""

    def made(kind):
        model = ah.load_backbone(str(tiny(kind)), library=tmp_path / f"{kind}-library")
        if "de" not in model.library:
            model.library.add(lora_folder(kind, "one"), name="de", language="de")
        seen = []
        model.backbone.base.register_forward_hook(
            lambda module, given, named, out: seen.append(len(out.last_hidden_state)),
            with_kwargs=True,
        )
        return model, seen

    return made


def fit(model, name, *, heads=1, head_only=True, precision="no", batches=BATCHES, **options):
    """Train heads alone over the German adapter, each on the rows of its number."""
    task = TASKS[name]
    examples = task.encode(rows_of(name), model.backbone)
    lora = LoraConfig(r=2, target_modules="all-linear")
    adapters = [
        task.new_adapter(
            ah.AdapterInfo(name=f"head{number}", labels=task.labels, task=task.name),
            model.backbone, None if head_only else lora, number,
        )
        for number in range(heads)
    ]  # fmt: skip
    german = model.resolve("de")
    owners = [number % heads for number in range(len(examples))]
    values = options.pop("settings", None) or settings(eval_every=2)
    return loop.train_adapters(
        model, task, adapters, examples, owners, batches, values,
        Accelerator(cpu=True, mixed_precision=precision),
        over=lambda row: german if row.language == "de" else Blend(),
        dev=examples[:4], dev_owners=owners[:4], **options,
    )  # fmt: skip


def every_step(monkeypatch):
    monkeypatch.setattr(loop, "_heads_alone", lambda task, adapters: False)


CASES = [
    ("bert", "classification"),
    ("xlm-roberta", "multi-label"),
    ("qwen3", "classification"),
    ("gpt2", "classification"),
    ("mt5", "classification"),
    ("bart", "classification"),
    ("modernbert", "classification"),
    ("bert", "token-classification"),
    ("qwen3", "token-classification"),
    ("bert", "question-answering"),
    ("qwen3", "question-answering"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_the_body_sees_each_text_once_and_the_head_is_the_same(load, kind, task, monkeypatch):
    model, seen = load(kind)
    (once,), progress = fit(model, task)
    assert sum(seen) == len(rows_of(task))
    seen.clear()
    every_step(monkeypatch)
    (always,), reference = fit(model, task)
    assert sum(seen) == sum(map(len, BATCHES)) + len(progress.history) * 4
    assert_same(once, always, atol=1e-4)
    for one, other in zip(progress.history, reference.history, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    fresh = TASKS[task].new_head(model.backbone, 0)
    assert any((t - fresh[name]).abs().max() > 1e-3 for name, t in once.head.items())


def test_several_heads_in_one_batch(load, monkeypatch):
    model, seen = load("bert")
    once, _ = fit(model, "classification", heads=2)
    assert sum(seen) == len(rows_of("classification"))
    every_step(monkeypatch)
    always, _ = fit(model, "classification", heads=2)
    for one, other in zip(once, always, strict=True):
        assert_same(one, other, atol=1e-4)


@pytest.mark.parametrize("texts", [0, 4])
def test_what_does_not_fit_is_computed_each_time(load, monkeypatch, texts):
    model, seen = load("qwen3")
    (whole,), _ = fit(model, "classification")
    kept = sum(seen)
    task = TASKS["classification"]
    first = [example for batch in BATCHES for example in batch][:texts]
    lengths = [len(e.input_ids) for e in task.encode(rows_of("classification"), model.backbone)]
    room = sum(lengths[example] for example in first) * model.backbone.width * 4
    monkeypatch.setattr(features.Features.__init__, "__defaults__", (room,))
    seen.clear()
    (part,), progress = fit(model, "classification")
    uses = [example for batch in BATCHES for example in batch]
    uses += list(range(4)) * len(progress.history)
    assert kept < sum(seen) == sum(use not in first for use in uses) + len(first)
    assert_same(whole, part, atol=1e-4)


def test_an_adapter_with_factors_has_the_body_at_every_step(load):
    model, seen = load("bert")
    _, progress = fit(model, "classification", head_only=False)
    assert sum(seen) == sum(map(len, BATCHES)) + len(progress.history) * 4


def test_it_learns_the_same_at_mixed_precision(load, monkeypatch, fresh_accelerate):
    model, _ = load("qwen3")
    (once,), _ = fit(model, "classification", precision="bf16")
    every_step(monkeypatch)
    (always,), _ = fit(model, "classification", precision="bf16")
    assert_same(once, always, atol=1e-2, rtol=1e-2)
    fresh = TASKS["classification"].new_head(model.backbone, 0)
    assert all((t - fresh[name]).abs().max() > 3e-2 for name, t in once.head.items())


def test_pieces_and_a_stop_change_nothing(load, monkeypatch, tmp_path):
    model, seen = load("bert")
    (whole,), _ = fit(model, "classification")
    (pieces,), _ = fit(model, "classification", settings=settings(accumulation=2, eval_every=2))
    assert_same(whole, pieces, atol=1e-4)

    step, calls = loop._Run.step, []

    def stopping(*given):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return step(*given)

    monkeypatch.setattr(loop._Run, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(model, "classification", folder=tmp_path / "run")
    seen.clear()
    (resumed,), progress = fit(model, "classification", folder=tmp_path / "run")
    assert (len(calls), progress.steps) == (len(BATCHES), len(BATCHES))
    assert sum(seen) == len(rows_of("classification"))
    assert_same(whole, resumed, atol=1e-4)


PROGRAM = """
import sys
from accelerate import Accelerator
from safetensors.torch import save_file
import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.tasks.classification import Classification
from adapters_hub.training.loop import train_adapters

accelerator = Accelerator(cpu=True)
model = ah.load_backbone(sys.argv[1], library=sys.argv[2])
task = Classification(("no", "yes"))
rows = [Row("the room " * (1 + n % 4), ("no", "yes")[n % 2]) for n in range(8)]
examples = task.encode(rows, model.backbone)
info = ah.AdapterInfo(name="head", labels=task.labels, task=task.name)
head = task.new_adapter(info, model.backbone, None, 0)
values = ah.TrainingSettings(task=task.name, learning_rate=0.01, resume=False, cpu=True)
batches = [[0, 1, 2, 3], [4, 5, 6, 7], [0, 2, 5, 7], [1, 3, 4], [2, 6], [0, 7, 3, 1]]
(trained,), _ = train_adapters(
    model, task, [head], examples, [0] * 8, batches, values, accelerator,
    dev=examples, dev_owners=[0] * 8,
)
if accelerator.is_main_process:
    save_file({k: v.contiguous() for k, v in trained.head.items()}, sys.argv[3])
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_give_the_head_of_one(tiny, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    heads = []
    for processes in (1, 2):
        path = tmp_path / f"{processes}.safetensors"
        running = launch(
            program, tiny("bert"), tmp_path / "library", path, processes=processes, cwd=tmp_path
        )
        output, _ = running.communicate(timeout=300)
        assert running.returncode == 0, output
        heads.append(load_file(path))
    for name, tensor in heads[0].items():
        torch.testing.assert_close(tensor, heads[1][name], atol=1e-4, rtol=1e-3)
