"""Plain PEFT with a loop written by hand is the oracle: the same start, the same steps."""

import pytest
import torch
from helpers.peft_loop import LABELS, RATE, ours, rows, theirs, tiny_decoder
from peft import LoraConfig, PeftModel
from peft.optimizers import create_loraplus_optimizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GptOssConfig,
    Qwen3MoeConfig,
)

import adapters_hub as ah
from adapters_hub.runtime.stored import stored
from adapters_hub.tasks import make_task
from adapters_hub.training.checkpoint import Trainee


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_decoder(tmp_path_factory.mktemp("backbone"))


def start(task, backbone, **options):
    """An adapter whose B is not zero, so that A too moves from the first step."""
    lora = LoraConfig(r=4, lora_alpha=6, task_type=task.peft_task_type(backbone), **options)
    info = ah.AdapterInfo(name="one", task=task.name, labels=task.labels)
    adapter = task.new_adapter(info, backbone, lora, seed=1)
    generator = torch.Generator().manual_seed(2)
    for _, b in adapter.factors.values():
        b.normal_(std=0.1, generator=generator)
    return adapter


def compare(trained, before, reference):
    """Every tensor of one is in the other, moved, and equal."""
    stem = "base_model.model."
    found, first = {}, {}
    for adapter, into in ((trained, found), (before, first)):
        for module in stored(adapter.factors, adapter.scaling, adapter.stacks, adapter.path):
            into[f"{stem}{module.path}.lora_A.weight"] = module.a.detach()
            into[f"{stem}{module.path}.lora_B.weight"] = module.b.detach()
        into |= {stem + path: tensor for path, tensor in adapter.head.items()}
    assert found.keys() == reference.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, reference[name], atol=1e-5, rtol=1e-5, msg=name)
        assert (tensor - first[name]).abs().max() > 1e-3, f"{name} did not move"


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    ],
    ids=["all-linear", "rslora"],
)
def test_classifier_trains_as_in_pefts_own_loop(folder, tmp_path, options, accumulation):
    task = make_task("classification", label_names=LABELS)
    model = ah.load_backbone(str(folder), library=tmp_path / "library", device="cpu")
    adapter = start(task, model.backbone, **options)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(LABELS))
    peft = PeftModel.from_pretrained(base, adapter.save(tmp_path / "start"), is_trainable=True)

    data = rows()
    trained = ours(
        model, task, adapter, task.encode(data, model.backbone), accumulation=accumulation
    )
    targets = [LABELS.index(row.label) for row in data]
    reference = theirs(peft, [row.text for row in data], targets, model.backbone.tokenizer)
    compare(trained, adapter, reference)


def test_language_model_trains_as_in_pefts_own_loop(folder, tmp_path):
    language_model_trains_alike(folder, tmp_path, target_modules="all-linear")


@pytest.mark.parametrize(
    ("config", "router"), [(GptOssConfig, "router"), (Qwen3MoeConfig, "gate")], ids=["gpt", "qwen"]
)
def test_experts_train_as_in_pefts_own_loop(config, router, tmp_path):
    folder = tiny_decoder(
        tmp_path / "backbone", config, num_local_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=24,
    )  # fmt: skip
    parameters = [f"{router}.weight", "experts.gate_up_proj", "experts.down_proj"]
    options = {"target_modules": ["q_proj"], "target_parameters": parameters}
    language_model_trains_alike(folder, tmp_path, **options, rank_pattern={"experts.down_proj": 2})


def language_model_trains_alike(folder, tmp_path, **options):
    task = make_task("language-modeling")
    model = ah.load_backbone(str(folder), library=tmp_path / "library", device="cpu")
    adapter = start(task, model.backbone, **options)
    base = AutoModelForCausalLM.from_pretrained(folder)
    peft = PeftModel.from_pretrained(base, adapter.save(tmp_path / "start"), is_trainable=True)

    examples = task.encode(rows(), model.backbone)
    trained = ours(model, task, adapter, examples)
    texts = [f"{row.text} </s>" for row in rows()]  # as `encode` ends a decoder's text
    reference = theirs(peft, texts, None, model.backbone.tokenizer)
    compare(trained, adapter, reference)


def test_with_lora_plus_it_trains_as_with_pefts_optimizer(folder, tmp_path):
    """Weight decay too; PEFT's learning rate of a head is another one, so there is none here."""
    task = make_task("language-modeling")
    model = ah.load_backbone(str(folder), library=tmp_path / "library", device="cpu")
    adapter = start(task, model.backbone, target_modules="all-linear")
    base = AutoModelForCausalLM.from_pretrained(folder)
    peft = PeftModel.from_pretrained(base, adapter.save(tmp_path / "start"), is_trainable=True)
    optimizer = create_loraplus_optimizer(
        peft, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=16, loraplus_weight_decay=0.3
    )
    settings = ah.TrainingSettings(learning_rate=RATE, lora_plus=16, weight_decay=0.3)
    expected = {
        (group["lr"], group["weight_decay"]): sorted(map(tuple, (p.shape for p in group["params"])))
        for group in optimizer.param_groups
        if group["params"]
    }
    assert expected == {
        (group["lr"], group["weight_decay"]): sorted(map(tuple, (p.shape for p in group["params"])))
        for group in Trainee.of(adapter.trainable(), settings).optimizer.param_groups
    }
    assert len(expected) == 2

    texts = [f"{row.text} </s>" for row in rows()]
    examples = task.encode(rows(), model.backbone)
    trained = ours(model, task, adapter, examples, lora_plus=16, weight_decay=0.3)
    reference = theirs(peft, texts, None, model.backbone.tokenizer, optimizer)
    compare(trained, adapter, reference)


def test_a_head_keeps_its_rate_with_lora_plus(folder, tmp_path):
    task = make_task("classification", label_names=LABELS)
    model = ah.load_backbone(str(folder), library=tmp_path / "library", device="cpu")
    adapter = start(task, model.backbone, target_modules="all-linear").trainable()
    settings = ah.TrainingSettings(learning_rate=1e-3, loraplus_lr_ratio=4, head_learning_rate=0.5)
    trainee = Trainee.of(adapter, settings)
    assert trainee.peaks == [1e-3, 4e-3, 0.5]
    groups = [group["params"] for group in trainee.optimizer.param_groups]
    rates = {id(p): rate for rate, group in zip(trainee.peaks, groups, strict=True) for p in group}
    for a, b in adapter.factors.values():
        assert (rates[id(a)], rates[id(b)]) == (1e-3, 4e-3)
    assert [rates[id(t)] for t in adapter.head.values()] == [0.5]
    assert len(rates) == len(adapter.parameters())
