"""Plain PEFT with a loop written by hand is the oracle: the same start, the same steps."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GptOssConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3MoeConfig,
)

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.runtime.stored import stored
from adapters_hub.tasks import make_task
from adapters_hub.training.loop import train_adapters

TEXT = "the room was clean quiet staff rude slow never again view station breakfast cold bed"
WORDS = TEXT.split()
LABELS = ("bad", "good", "mixed")
BATCHES = [[0, 5, 2, 7], [1, 3, 6, 4], [7, 2, 0, 1]]
RATE, CLIP = 1e-2, 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Qwen3."""
    return backbone(tmp_path_factory.mktemp("backbone"), Qwen3Config, tie_word_embeddings=True)


def backbone(path, config_class, **options):
    """The folder of a tiny decoder with a word-level tokenizer, padded on the right."""
    tokens = ["<pad>", "<unk>", "</s>", *WORDS]
    words = Tokenizer(models.WordLevel({t: n for n, t in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>",
        padding_side="right",
    )  # fmt: skip
    torch.manual_seed(0)
    config = config_class(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, pad_token_id=0, eos_token_id=2,
        initializer_range=0.2, **options,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def rows():
    """Eight texts of three to ten words."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for number in range(8):
        chosen = torch.randint(len(WORDS), (3 + number,), generator=generator).tolist()
        made.append(Row(" ".join(WORDS[i] for i in chosen), LABELS[number % 3]))
    return made


def start(task, backbone, **options):
    """An adapter whose B is not zero, so that A too moves from the first step."""
    lora = LoraConfig(r=4, lora_alpha=6, task_type=task.peft_task_type(backbone), **options)
    info = ah.AdapterInfo(name="one", task=task.name, labels=task.labels)
    adapter = task.new_adapter(info, backbone, lora, seed=1)
    generator = torch.Generator().manual_seed(2)
    for _, b in adapter.factors.values():
        b.normal_(std=0.1, generator=generator)
    return adapter


def ours(model, task, adapter, examples, accumulation):
    """The adapter after our training loop."""
    from accelerate import Accelerator

    settings = ah.TrainingSettings(
        steps=len(BATCHES), batch_size=4, learning_rate=RATE, schedule="linear", warmup=0.0,
        clip=CLIP, accumulation=accumulation, cpu=True,
    )  # fmt: skip
    owners = [0] * len(examples)
    (trained,), _ = train_adapters(
        model, task, [adapter], examples, owners, BATCHES, settings, Accelerator(cpu=True)
    )
    return trained


def theirs(peft, texts, targets, tokenizer):
    """PEFT's parameters after the loop anyone would write; ``targets`` None for the text itself."""
    parameters = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(BATCHES))
    losses = []
    for numbers in BATCHES:
        batch = tokenizer([texts[i] for i in numbers], padding=True, return_tensors="pt")
        if targets is None:
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            loss = peft(**batch, labels=labels).loss
        else:
            loss = functional.cross_entropy(
                peft(**batch).logits, torch.tensor([targets[i] for i in numbers])
            )
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert losses[0] != losses[-1]
    return {
        name.replace(".default", "").replace(".modules_to_save", ""): p.detach()
        for name, p in peft.named_parameters()
        if p.requires_grad
    }


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
    trained = ours(model, task, adapter, task.encode(data, model.backbone), accumulation)
    targets = [LABELS.index(row.label) for row in data]
    reference = theirs(peft, [row.text for row in data], targets, model.backbone.tokenizer)
    compare(trained, adapter, reference)


def test_language_model_trains_as_in_pefts_own_loop(folder, tmp_path):
    language_model_trains_alike(folder, tmp_path, target_modules="all-linear")


@pytest.mark.parametrize(
    ("config", "router"), [(GptOssConfig, "router"), (Qwen3MoeConfig, "gate")], ids=["gpt", "qwen"]
)
def test_experts_train_as_in_pefts_own_loop(config, router, tmp_path):
    folder = backbone(
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
    trained = ours(model, task, adapter, examples, accumulation=1)
    texts = [f"{row.text} </s>" for row in rows()]  # as `encode` ends a decoder's text
    reference = theirs(peft, texts, None, model.backbone.tokenizer)
    compare(trained, adapter, reference)
