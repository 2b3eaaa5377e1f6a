"""The snippet on an adapter's card, run as it stands: it gives what the model here gives."""

import re

import pytest
import torch
from conftest import WORDS
from peft import LoraConfig

import adapters_hub as ah
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.card_usage import usage
from adapters_hub.library.paths import bundled_root
from adapters_hub.tasks import task_class
from adapters_hub.tasks.registry import declaration_of


def snippets(folder):
    """The card's code after the heading of its last section, by language."""
    text = (folder / "README.md").read_text(encoding="utf-8").partition("## Use it elsewhere")[2]
    return dict(re.findall(r"```(\w+)\n(.*?)\n```", text, re.S))


def saved(model, name, labels, folder):
    """An adapter of a task, with random factors, saved as a PEFT folder."""
    options = declaration_of(name).options()
    task = task_class(name)(**vars(options), **({"label_names": labels} if labels else {}))
    kind = task.peft_task_type(model.backbone)
    info = AdapterInfo(
        name="mine", task=name, labels=labels or None, backbone=model.backbone.name,
        pipeline_tag=task.pipeline_tag(model.backbone), fingerprint=model.backbone.fingerprint,
    )  # fmt: skip
    lora = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type=kind)
    adapter = task.new_adapter(info, model.backbone, lora)
    torch.manual_seed(0)
    adapter = adapter.map(lambda tensor: torch.randn_like(tensor) * 0.2)
    model.add(adapter)
    return model.export("mine", folder, name="mine")


@pytest.mark.parametrize(
    ("kind", "task", "labels"),
    [
        ("qwen3", "language-modeling", ()),
        ("bert", "language-modeling", ()),
        ("qwen3", "classification", ("bad", "good", 'so "so"')),
        ("bert", "classification", ("bad", "good")),
        ("bert", "token-classification", ("O", "B-NAME", "I-NAME")),
        ("bert", "question-answering", ()),
        ("qwen3", "question-answering", ()),
        ("bert", "retrieval", ()),
        ("mt5", "generation", ()),
    ],
)
def test_the_snippet_runs_and_gives_the_same(tiny, tmp_path, monkeypatch, kind, task, labels):
    model = ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")
    folder = saved(model, task, labels, tmp_path / "mine")
    code = snippets(folder)
    assert code["sh"] == "adapters-hub add . --name mine"
    monkeypatch.chdir(folder)
    names = {}
    exec(code["python"], names)
    plain = names["model"]
    if labels:
        assert plain.config.id2label == dict(enumerate(labels))
        assert plain.config.num_labels == len(labels)
    inputs = names["tokenizer"]([" ".join(WORDS[:6])], return_tensors="pt")
    if kind == "mt5":
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :3]
    expected = model.merge("mine").eval()
    if task == "retrieval":  # which the class for its head has below that
        expected = getattr(expected, expected.base_model_prefix)
    with torch.no_grad():
        given, wanted = plain(**inputs), expected(**inputs)
    assert type(plain.base_model.model) is type(expected)
    key = "start_logits" if task == "question-answering" else "logits"
    key = "last_hidden_state" if task == "retrieval" else key
    torch.testing.assert_close(given[key], wanted[key], rtol=1e-4, atol=1e-4)


def test_the_starters_snippet_runs(tmp_path, monkeypatch):
    model = ah.load_backbone("starter", library=ah.Library(bundled_root()))
    folder = model.export("hotel", tmp_path / "mine")
    monkeypatch.chdir(folder)
    names = {}
    exec(snippets(folder)["python"], names)
    inputs = names["tokenizer"](["The room"], return_tensors="pt")
    with torch.no_grad():
        given = names["model"](**inputs).logits.float()  # 16 bits, as the checkpoint has them
        wanted, bare = (model(**inputs, adapters=blend).logits for blend in ("hotel", None))
    assert (given - wanted).abs().max() < 0.05 * (bare - wanted).abs().max()


def test_what_is_not_known_is_not_shown():
    assert "```python" not in usage(AdapterInfo("x"), {})
    assert "```python" not in usage(AdapterInfo("x", backbone="org/model"), {})
    shown = usage(
        AdapterInfo("x", backbone='m"\nimport os #', revision="abc"), {"task_type": "CAUSAL_LM"}
    )
    assert r'backbone = "m\"\nimport os #"' in shown
    assert 'revision="abc"' in shown
