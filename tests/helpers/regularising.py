"""Rows of every task, and the gradients of one step with and without penalties."""

import torch
from accelerate import Accelerator
from conftest import TEXTS
from peft import LoraConfig

from adapters_hub.data.rows import Row
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.tasks import make_task
from adapters_hub.tasks.matching import Matching
from adapters_hub.training import loop
from adapters_hub.training.settings import TrainingSettings
from helpers.retrieval import PAIRS, moved

LABELS = ("good", "bad")


def _question(text, number):
    answer = text.split()[-1]
    answers = {"text": [answer], "answer_start": [text.rindex(answer)]}
    return Row(text, language="en", fields={"question": "room ?", "answers": answers})


def _tagged(text, number):
    words = text.split()
    tags = ["B-X" if place % 2 else "O" for place in range(len(words))]
    return Row(text, language="en", fields={"words": words, "tags": tags})


def task_and_rows(name):
    """A task by name (``multi-label`` is one of classification), and some rows of it."""
    texts = TEXTS[:4]
    if name == "classification":
        rows = [Row(text, LABELS[n % 2], "en" if n % 2 else "de") for n, text in enumerate(texts)]
        return make_task(name, label_names=LABELS), rows
    if name == "multi-label":
        rows = [Row(text, LABELS[: n % 3], "en") for n, text in enumerate(texts)]
        return make_task("classification", label_names=LABELS, multi_label=True), rows
    if name == "question-answering":
        return make_task(name), [_question(text, n) for n, text in enumerate(texts)]
    if name == "token-classification":
        rows = [_tagged(text, n) for n, text in enumerate(texts)]
        return make_task(name, label_names=("O", "B-X", "I-X")), rows
    if name == "generation":
        return make_task(name), [Row(text, fields={"target": "lovely view"}) for text in texts]
    if name == "retrieval":
        return make_task(name), PAIRS[:4]
    if name == "matching":
        return Matching(words=0.0), PAIRS[:4]
    return make_task(name), [Row(text, language="en") for text in texts]


def new(model, task, name="a", scale=0.1, **options):
    """An adapter of a task that does something already, unless ``scale`` is 0."""
    options = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", **options}
    lora = LoraConfig(task_type=task.peft_task_type(model.backbone), **options)
    info = AdapterInfo(name=name, labels=task.labels, task=task.name)
    fresh = task.new_adapter(info, model.backbone, lora, seed=sum(map(ord, name)))
    return moved(fresh, scale) if scale else fresh


def settings(**values):
    base = {"steps": 1, "cpu": True, "seed": 3, "schedule": "constant", "warmup": 0.0}
    return TrainingSettings(**{**base, "learning_rate": 0.01, **values})


def train(model, task, rows, adapters, batches, owners=None, accelerator=None, **values):
    """The loop's result, with further settings, or arguments of `train_adapters`."""
    names = ("over", "folder", "dev", "dev_owners", "augmenter")
    given = {name: values.pop(name) for name in names if name in values}
    examples = task.encode(rows, model.backbone)
    return loop.train_adapters(
        model, task, adapters, examples, owners or [0] * len(examples), batches,
        settings(**values), accelerator or Accelerator(cpu=True), **given,
    )  # fmt: skip


def gradients(monkeypatch, model, task, rows, adapters, **values):
    """The gradients of each adapter in the one step of all rows, before they are clipped."""
    seen = {}

    def note(trainee, *more):
        parameters = trainee.adapter.parameters()
        seen[trainee.adapter.name] = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters
        ]
        trainee.optimizer.zero_grad()

    examples = len(task.encode(rows, model.backbone))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_update", note)
        _, progress = train(model, task, rows, adapters, [list(range(examples))], **values)
    return [seen[adapter.name] for adapter in adapters], progress


def penalty_gradients(monkeypatch, model, task, rows, adapter, method, **values):
    """The gradients of one penalty with weight 1, by the adapter's parameters, and its value.

    ``regularise`` in ``values`` is what there is in both of the steps that are compared.
    """
    both = values.pop("regularise", {})
    of_both = {name: values.pop(name) for name in ("regularise_data",) if name in values}
    (with_it,), progress = gradients(
        monkeypatch, model, task, rows, [adapter], regularise={**both, method: "1"},
        **of_both, **values,
    )  # fmt: skip
    (without,), _ = gradients(monkeypatch, model, task, rows, [adapter], regularise=both, **values)
    return [a - b for a, b in zip(with_it, without, strict=True)], progress.notes[0]


def value_in(note, method):
    """The value of a method in the line that a run ends with."""
    return float(note.partition(f"{method} ")[2].split()[0])
