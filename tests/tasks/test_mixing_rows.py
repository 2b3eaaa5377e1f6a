"""Mixed rows of classification: their loss, and rows of unlike lengths."""

import pytest
import torch
from peft import LoraConfig

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.tasks.classification import Classification

TEXTS = ["the room was clean and quiet", "staff rude", "never again", "lovely view near station"]


def prepared(tiny, tmp_path, kind, multi_label):
    model = ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")
    task = Classification(("bad", "fine", "good"), multi_label=multi_label, label_smoothing=0.1)
    labels = (
        [("good",), (), ("bad", "fine"), ("fine",)]
        if multi_label
        else ["good", "bad", "bad", "fine"]
    )
    rows = [Row(text, label) for text, label in zip(TEXTS, labels, strict=True)]
    lora = LoraConfig(r=2, target_modules="all-linear")
    info = AdapterInfo(name="a", labels=task.labels, task=task.name)
    model.add(task.new_adapter(info, model.backbone, lora, 0))
    examples = task.encode(rows, model.backbone)
    return model, task, examples


def loss(model, task, batch):
    blends = [model.resolve("a")] * len(batch["input_ids"])
    with model.bank.using(model.plan(blends)), torch.no_grad():
        return task.loss(model, batch, model.heads(blends))


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "qwen3"])
def test_a_row_mixed_with_itself_is_the_row(kind, multi_label, tiny, tmp_path):
    model, task, examples = prepared(tiny, tmp_path, kind, multi_label)
    batch = task.collate(examples, model.backbone)
    mixed = task.mixed(batch, batch, torch.tensor([0.7, 0.5, 0.9, 1.0]), model.backbone)
    torch.testing.assert_close(
        loss(model, task, mixed), loss(model, task, batch), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "qwen3"])
def test_with_the_whole_share_a_row_is_itself_whatever_the_other_is(kind, tiny, tmp_path):
    model, task, examples = prepared(tiny, tmp_path, kind, False)
    longest = [examples[0], examples[0], examples[3]]  # where the other is longer, it is read too
    others = task.collate([examples[1], examples[2], examples[1]], model.backbone)
    batch = task.collate(longest, model.backbone)
    mixed = task.mixed(batch, others, torch.ones(3), model.backbone)
    torch.testing.assert_close(
        loss(model, task, mixed), loss(model, task, batch), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_mixed_loss_is_the_mixture_of_losses(multi_label, tiny, tmp_path):
    """Equation 2: the cross-entropy of mixed targets, at the logits of mixed inputs."""
    model, task, examples = prepared(tiny, tmp_path, "bert", multi_label)
    batch, others = (
        task.collate(examples, model.backbone),
        task.collate(examples[::-1], model.backbone),
    )
    shares = torch.tensor([0.9, 0.6, 0.5, 0.75])
    mixed = task.mixed(batch, others, shares, model.backbone)
    of_each = []
    for side in (batch, others):
        plain = task.mixed(side, side, torch.ones(4), model.backbone)["labels"]
        of_each.append(loss(model, task, {**mixed, "labels": plain}))
    expected = shares * of_each[0] + (1 - shares) * of_each[1]
    torch.testing.assert_close(loss(model, task, mixed), expected, atol=1e-5, rtol=1e-4)
    assert (of_each[0] - of_each[1]).abs().max() > 1e-3


def test_the_longer_text_says_where_a_mixed_row_ends(tiny, tmp_path):
    model, task, examples = prepared(tiny, tmp_path, "qwen3", False)
    batch, others = (
        task.collate(examples[:2], model.backbone),
        task.collate(examples[1::-1], model.backbone),
    )
    mixed = task.mixed(batch, others, torch.tensor([0.8, 0.8]), model.backbone)
    longest = max(len(example.input_ids) for example in examples[:2])
    assert mixed["attention_mask"].sum(1).tolist() == [longest, longest]
    assert mixed["input_ids"][0].tolist() == examples[0].input_ids
    short = len(examples[1].input_ids)
    assert mixed["input_ids"][1].tolist() == examples[1].input_ids + examples[0].input_ids[short:]
    assert mixed["shares"][:, 1, short].tolist() == pytest.approx([0.0, 0.2])
