"""Tasks: what they encode, lose and measure, against the plain formulas."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import TEXTS
from safetensors.torch import load_file

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.errors import BackboneError, DataError, HeadError, SettingsError
from adapters_hub.evaluation.scores import scores_by_language
from adapters_hub.library.adapter_file import read_adapter
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.tasks import make_task
from adapters_hub.tasks.classification import Classification
from adapters_hub.tasks.language_modeling import LanguageModeling
from adapters_hub.tasks.retrieval import Retrieval
from adapters_hub.tasks.token_classification import TokenClassification

ROWS = [Row(text, language="en") for text in TEXTS]


@pytest.fixture
def load(tiny, tmp_path):
    return lambda kind: ah.load_backbone(str(tiny(kind)), library=tmp_path)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "bert", "modernbert", "xlm-roberta"])
def test_language_loss_through_chosen_positions_equals_the_whole(kind, load):
    model, task = load(kind), LanguageModeling()
    batch = task.collate(task.encode(ROWS, model.backbone), model.backbone, seed=3)
    with torch.no_grad():
        got = task.loss(model, batch, [])
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        logits = model.backbone.model(**inputs).logits
        labels = batch["labels"]
        if model.backbone.kind == "decoder":
            logits, labels = logits[:, :-1], labels[:, 1:]
        nats = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, reduction="none", ignore_index=-100
        )
    torch.testing.assert_close(got, nats.sum(1), atol=1e-4, rtol=1e-5)


def test_an_adapted_language_model_head_is_not_skipped(load, lora_folder):
    model, task = load("qwen3"), LanguageModeling()
    model.library.add(
        lora_folder(
            "qwen3", "head", target_modules=["lm_head"], save={"save_embedding_layers": False}
        ),
        name="head",
    )
    batch = task.collate(task.encode(ROWS, model.backbone), model.backbone)
    with torch.no_grad():
        bare = task.loss(model, batch, [])
        with model.adapted(len(ROWS), [*["head"] * 4, None]):
            adapted = task.loss(model, batch, [])
    assert (adapted[:4] - bare[:4]).abs().min() > 1e-3
    torch.testing.assert_close(adapted[4], bare[4])


def test_windows_lose_no_token_and_count_each_byte_once(load):
    model = load("qwen3")
    long = Row(" ".join(TEXTS[:4] * 5))
    whole = LanguageModeling(max_length=500).encode([long], model.backbone)[0]
    windows = LanguageModeling(max_length=16).encode([long], model.backbone)
    assert sum(len(w.input_ids) - 1 for w in windows) == len(whole.input_ids) - 1
    assert sum(w.target for w in windows) == len(long.text.encode()) == whole.target
    rebuilt = windows[0].input_ids + [t for w in windows[1:] for t in w.input_ids[1:]]
    assert rebuilt == whole.input_ids


@pytest.mark.parametrize(("kind", "length"), [("qwen3", 1), ("bert", 2)])
def test_windows_without_room_for_a_target_are_refused(kind, length, load):
    with pytest.raises(SettingsError, match=f"max_length={length}: must be {length + 1} or more"):
        LanguageModeling(max_length=length).encode(ROWS, load(kind).backbone)


def test_masking_depends_on_row_and_seed_only(load):
    model, task = load("bert"), LanguageModeling()
    examples = task.encode(ROWS, model.backbone)
    both = task.collate(examples, model.backbone, seed=1)
    alone = task.collate(examples[2:3], model.backbone, seed=1)
    width = alone["labels"].shape[1]
    assert torch.equal(both["labels"][2, :width], alone["labels"][0])
    assert torch.equal(both["input_ids"][2, :width], alone["input_ids"][0])
    other = task.collate(examples, model.backbone, seed=2)
    assert not torch.equal(both["labels"], other["labels"])
    assert (task.count(both) >= 1).all()
    targets = both["labels"][both["labels"] != -100]
    assert not set(targets.tolist()) & set(model.backbone.tokenizer.all_special_ids) - {1}


def test_masking_follows_its_probabilities(load):
    model, task = load("bert"), LanguageModeling(mask_probability=0.3)
    rows = [Row(" ".join(TEXTS[:4]))] * 1
    examples = task.encode(rows, model.backbone)
    masked = chosen = total = 0
    for seed in range(300):
        batch = task.collate(examples, model.backbone, seed=seed)
        at = batch["labels"] != -100
        chosen += int(at.sum())
        masked += int((batch["input_ids"][at] == model.backbone.tokenizer.mask_token_id).sum())
        total += len(examples[0].input_ids) - 2
    assert chosen / total == pytest.approx(0.3, abs=0.03)
    assert masked / chosen == pytest.approx(0.8, abs=0.04)


def test_bits_per_byte_is_the_plain_formula(load):
    model, task = load("qwen3"), LanguageModeling()
    examples = task.encode(ROWS[:2], model.backbone)
    batch = task.collate(examples, model.backbone)
    with torch.no_grad():
        records = task.records(model, batch, [], examples)
        nats = float(task.loss(model, batch, []).sum())
    size = sum(len(row.text.encode()) for row in ROWS[:2])
    metrics = task.metrics(records)
    assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(
        math.exp(nats / sum(r["tokens"] for r in records))
    )


@pytest.mark.parametrize("kind", ["qwen3", "bert"])
def test_the_windows_of_a_text_are_drawn_together(load, kind):
    """A bootstrap's unit is a text: its bytes are counted with its first window."""
    model, task = load(kind), LanguageModeling(max_length=6)
    examples = task.encode(ROWS[:3], model.backbone)
    assert len(examples) > 3
    batch = task.collate(examples, model.backbone)
    with torch.no_grad():
        records = task.records(model, batch, [], examples)
    tallies = task.tallies(records)
    assert tallies.shape == (3, 2)
    assert task.score(tallies.sum(0)) == pytest.approx(task.metrics(records)["bits"])
    if kind == "qwen3":
        assert tallies[:, 1].tolist() == [len(row.text.encode()) for row in ROWS[:3]]


@pytest.mark.parametrize("name", ["classification", "token-classification", "retrieval"])
def test_a_length_without_room_for_text_is_refused(load, name):
    row = replace(ROWS[0], label="a", fields={"positive": "rude"})
    task = {
        "classification": Classification(("a", "b"), max_length=2),
        "token-classification": TokenClassification(("O", "B-X"), max_length=2),
        "retrieval": Retrieval(max_length=2),
    }[name]
    with pytest.raises(SettingsError, match="max_length=2: must be 3 or more"):
        task.encode([row], load("bert").backbone)


def test_an_end_token_named_in_a_text_is_text(load, lora_folder):
    """A class that reads its end token's state refuses rows that have two of them."""
    model = load("mt5")
    task = Classification(("a", "b"))
    rows = [replace(ROWS[0], text="the [SEP] room", label="a"), replace(ROWS[0], label="b")]
    for example in task.encode(rows, model.backbone):
        assert example.input_ids.count(model.backbone.tokenizer.eos_token_id) == 1


def test_language_objective_refuses_what_cannot_have_one(load, tiny, tmp_path):
    from transformers import AutoModel

    with pytest.raises(BackboneError, match="encoder-decoder"):
        LanguageModeling().encode(ROWS, load("mt5").backbone)
    bare = tmp_path / "bare"
    AutoModel.from_pretrained(tiny("bert")).save_pretrained(bare)
    load("bert").backbone.tokenizer.save_pretrained(bare)
    model = ah.load_backbone(str(bare), library=tmp_path)
    with pytest.raises(BackboneError, match="no language-model head"):
        LanguageModeling().encode(ROWS, model.backbone)


def test_classification_metrics_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics")
    gold = list("aabbbcca")
    predicted = list("abbbacca")
    records = [{"label": g, "predicted": p} for g, p in zip(gold, predicted, strict=True)]
    metrics = Classification(("a", "b", "c")).metrics(records)
    assert metrics["macro_f1"] == pytest.approx(sklearn.f1_score(gold, predicted, average="macro"))
    assert metrics["accuracy"] == pytest.approx(sklearn.accuracy_score(gold, predicted))


def test_unknown_label_names_file_line_and_field(load):
    row = Row("x", label="maybe", where="reviews.jsonl:7")
    with pytest.raises(
        DataError, match=r"reviews.jsonl:7: field 'label': 'maybe'.*\['no', 'yes'\]"
    ):
        Classification(("no", "yes")).encode([row], load("bert").backbone)


@pytest.mark.parametrize("kind", ["qwen3", "bert"])
def test_no_rows_are_no_examples(load, lora_folder, kind):
    model = load(kind)
    for task in (LanguageModeling(), Classification(("no", "yes"))):
        assert task.encode([], model.backbone) == []
        task.check([])
    files = read_adapter(lora_folder(kind, "cls", labels=2), "cls")
    model.add(Adapter.load(files, model.backbone))
    assert model.classify([], adapters="cls") == model.classify([]) == []


def test_there_is_nothing_to_compare_without_examples(load):
    with pytest.raises(DataError, match="no examples to compare on"):
        scores_by_language(load("qwen3"), LanguageModeling(), [], {"bare": lambda row: ah.Blend()})


def test_one_label_is_not_a_classification():
    with pytest.raises(SettingsError):
        make_task("classification", label_names=("yes",))
    with pytest.raises(SettingsError, match="classification, generation, language-modeling"):
        make_task("telepathy")


def test_a_head_of_another_shape_is_refused_by_name(load, lora_folder):
    model = load("bert")
    files = read_adapter(lora_folder("qwen3", "cls", labels=2), "cls")
    tensors = load_file(files.weights)
    model.add(Adapter(files.info, {}, {}, {p: tensors[key] for p, key in files.head.items()}))
    with pytest.raises(HeadError, match=r"'cls' has score.weight"):
        model.classify("the room", adapters="cls")
