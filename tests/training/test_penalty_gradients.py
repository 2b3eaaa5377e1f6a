"""Each penalty's gradient and value against dense ones by autograd, on plain computations."""

from types import SimpleNamespace

import pytest
import torch
from conftest import TEXTS
from helpers.regularising import gradients, new, penalty_gradients, task_and_rows, value_in
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

import adapters_hub as ah
from adapters_hub.runtime import products


def close(one, other):
    """Whether gradients are equal to rounding, by the largest of a tensor."""
    assert (one - other).abs().max() <= 2e-5 + 1e-3 * other.abs().max()


@pytest.fixture
def load(tiny, tmp_path):
    return lambda kind: ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")


def live(model, adapter):
    """The adapter resident with gradients, as the loop has it."""
    return model.add(adapter.trainable(), trained=True)


def dense(adapter, site):
    a, b = adapter.factors[site]
    return adapter.scaling[site] * b @ a


def compare(got, note, method, adapter, value):
    """The gradients and the value of a run with those of a dense value of the live adapter."""
    parameters = adapter.parameters()
    expected = torch.autograd.grad(value, parameters, allow_unused=True)
    assert any(e is not None and e.abs().max() > 1e-4 for e in expected)
    for one, other in zip(got, expected, strict=True):
        close(one, torch.zeros_like(one) if other is None else other)
    assert value_in(note, method) == pytest.approx(value.item(), rel=1e-3)


@pytest.mark.parametrize("kind", ["bert", "qwen3", "gpt2", "mixtral"])
def test_l2_is_that_of_the_dense_delta(kind, load, monkeypatch):
    model = load(kind)
    task, rows = task_and_rows("language-modeling")
    parameters = {"target_parameters": ["experts.down_proj"]} if kind == "mixtral" else {}
    adapter = new(model, task, **parameters)
    got, note = penalty_gradients(monkeypatch, model, task, rows, adapter, "l2")
    adapter = live(model, adapter)
    value = torch.stack([dense(adapter, site).square().sum() for site in adapter.factors]).sum()
    compare(got, note, "l2", adapter, value)


def test_l2_of_an_adapter_with_a_start_is_of_their_difference(load, monkeypatch):
    model = load("qwen3")
    task, rows = task_and_rows("language-modeling")
    adapter = new(model, task, scale=0)
    got, note = penalty_gradients(monkeypatch, model, task, rows, adapter, "l2", init="olora")
    assert value_in(note, "l2") == 0
    assert all(gradient.abs().max() < 1e-6 for gradient in got)


def inputs_of_sites(model, texts):
    """Site → its inputs (tokens, in) on texts, one at a time, so that there is no padding."""
    seen = {}
    handles = [
        module.register_forward_hook(
            lambda _, x, y, site=site: seen.setdefault(site, []).append(x[0].flatten(0, -2))
        )
        for site, module in model.backbone.sites.items()
    ]
    for text in texts:
        ids = model.backbone.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            model.backbone.base(ids)
    for handle in handles:
        handle.remove()
    return {site: torch.cat(x).double() for site, x in seen.items()}


@pytest.mark.parametrize("kind", ["bert", "qwen3", "gpt2"])
def test_fisher_is_what_each_input_feature_adds_to_the_squared_change(
    kind, load, monkeypatch, tmp_path
):
    model, (task, rows) = load(kind), task_and_rows("classification")
    texts = [*TEXTS, "never slow again"]
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    adapter = new(model, task)
    got, note = penalty_gradients(
        monkeypatch, model, task, rows, adapter, "fisher",
        regularise_data=str(tmp_path / "text.jsonl"),
    )  # fmt: skip
    inputs, adapter = inputs_of_sites(model, texts), live(model, adapter)
    total = torch.zeros(())
    for site in adapter.factors:
        module, delta = model.backbone.sites[site], dense(adapter, site)
        change = delta.t() if isinstance(module, Conv1D) else delta  # as the layer's weight lies
        assert change.shape == module.weight.shape
        for feature, strength in enumerate(inputs[site].square().mean(0).float()):
            of_feature = change[feature] if isinstance(module, Conv1D) else change[:, feature]
            total = total + strength * of_feature.square().sum()
    compare(got, note, "fisher", adapter, total)


def test_fisher_is_by_default_of_the_rows_that_are_trained_on(load, monkeypatch):
    model, (task, rows) = load("bert"), task_and_rows("classification")
    adapter = new(model, task)
    got, note = penalty_gradients(monkeypatch, model, task, rows, adapter, "fisher")
    inputs = inputs_of_sites(model, [row.text for row in rows])
    adapter = live(model, adapter)
    values = [
        (inputs[site].square().mean(0).float() * dense(adapter, site).square()).sum()
        for site in adapter.factors
    ]
    compare(got, note, "fisher", adapter, torch.stack(values).sum())


def targets_of(model, batch):
    """The places (rows, tokens) whose logits predict a target."""
    labels = batch["labels"]
    if model.backbone.kind == "decoder":
        labels = functional.pad(labels[:, 1:], (0, 1), value=-100)
    return labels != -100


def batch_of(model, task, rows, seed=3):
    """What the run's only step is given."""
    examples = task.encode(rows, model.backbone)
    return task.collate(examples, model.backbone, seed=seed * 100_003)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "language-modeling"),
        ("qwen3", "language-modeling"),
        ("gpt2", "language-modeling"),
        ("gpt2", "generation"),
        ("mt5", "generation"),
    ],
)
def test_kl_is_that_of_all_logits(kind, name, load, monkeypatch):
    model, (task, rows) = load(kind), task_and_rows(name)
    adapter = new(model, task, scale=0.3)
    got, note = penalty_gradients(monkeypatch, model, task, rows, adapter, "kl")
    batch = batch_of(model, task, rows)
    at, adapter = targets_of(model, batch), live(model, adapter)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    adapted = model(**inputs, adapters="name:a").logits[at].log_softmax(-1)
    with torch.no_grad():
        bare = model(**inputs, adapters=None).logits[at].log_softmax(-1)
    compare(got, note, "kl", adapter, (bare.exp() * (bare - adapted)).sum(-1).mean())


def test_kl_is_from_what_the_language_adapter_below_says(load, monkeypatch, lora_folder):
    model, (task, rows) = load("qwen3"), task_and_rows("language-modeling")
    model.library.add(lora_folder("qwen3", "one"), name="en", language="en")
    english, adapter = model.resolve("en"), new(model, task, scale=0.3)
    got, note = penalty_gradients(
        monkeypatch, model, task, rows, adapter, "kl", over=lambda row: english
    )
    batch = batch_of(model, task, rows)
    at, adapter = targets_of(model, batch), live(model, adapter)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    adapted = model(**inputs, adapters="en + name:a").logits[at].log_softmax(-1)
    with torch.no_grad():
        below = model(**inputs, adapters="en").logits[at].log_softmax(-1)
    compare(got, note, "kl", adapter, (below.exp() * (below - adapted)).sum(-1).mean())


def relative(states, reference, mask):
    apart = (states - reference).square().sum(-1) / reference.square().sum(-1)
    return ((apart * mask).sum(1) / mask.sum(1)).mean()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "classification"),
        ("gpt2", "classification"),
        ("mt5", "classification"),
        ("bert", "question-answering"),
        ("qwen3", "token-classification"),
        ("bert", "matching"),
    ],
)
def test_kl_of_tasks_without_the_backbones_head_is_the_relative_distance_of_states(
    kind, name, load, monkeypatch
):
    model, (task, rows) = load(kind), task_and_rows(name)
    adapter = new(model, task)
    got, note = penalty_gradients(monkeypatch, model, task, rows, adapter, "kl")
    batch, adapter = batch_of(model, task, rows), live(model, adapter)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids") if k in batch}
    if kind == "mt5":  # as its class gives them to the decoder
        inputs["decoder_input_ids"] = functional.pad(batch["input_ids"][:, :-1], (1, 0), value=0)

    def states(blend):
        with model.adapted(len(rows), blend):
            return model.backbone.base(**inputs).last_hidden_state

    reference = states(None).detach()
    value = relative(states("name:a"), reference, batch["attention_mask"])
    compare(got, note, "kl", adapter, value)


def test_kl_of_retrieval_is_over_queries_and_documents(load, monkeypatch):
    model, (task, rows) = load("bert"), task_and_rows("retrieval")
    adapter = new(model, task)
    got, note = penalty_gradients(monkeypatch, model, task, rows, adapter, "kl")
    batch, adapter = batch_of(model, task, rows), live(model, adapter)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}

    def states(blend):
        with model.adapted(len(batch["input_ids"]), blend):
            return model.backbone.base(**inputs).last_hidden_state

    value = relative(states("name:a"), states(None).detach(), batch["attention_mask"])
    compare(got, note, "kl", adapter, value)


@pytest.mark.parametrize(("kind", "name"), [("bert", "classification"), ("qwen3", "retrieval")])
def test_kl_on_generic_text_is_that_of_its_tokens(kind, name, load, monkeypatch, tmp_path):
    model, (task, rows) = load(kind), task_and_rows(name)
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "{t}"}}\n' for t in TEXTS))
    adapter = new(model, task, scale=0.3)
    got, note = penalty_gradients(
        monkeypatch, model, task, rows, adapter, "kl", regularise_data=str(tmp_path / "text.jsonl")
    )
    lm, texts = task_and_rows("language-modeling")
    texts = [*texts, texts[0].__class__(TEXTS[4])]
    batch = batch_of(model, lm, texts)
    at, adapter = targets_of(model, batch), live(model, adapter)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    adapted = model(**inputs, adapters="name:a").logits[at].log_softmax(-1)
    with torch.no_grad():
        bare = model(**inputs, adapters=None).logits[at].log_softmax(-1)
    compare(got, note, "kl", adapter, (bare.exp() * (bare - adapted)).sum(-1).mean())


def scaled_by_view(x, p):
    """Stands for dropout: what the adapter sees is a tenth larger in the second pass."""
    return x * (1.1 if torch.initial_seed() >> 58 else 1.0)


def symmetric(p, q):
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(-1)


def apart(name, one, other, batch):
    """The sum of the symmetric KL over all targets, from the logits of two passes."""
    if name == "multi-label":
        pairs = [torch.stack((-x / 2, x / 2), -1) for x in (one, other)]
        return symmetric(*pairs).mean(1).sum()
    if name == "question-answering":
        parts = []
        for row, end in ((row, end) for row in range(len(one)) for end in range(2)):
            there = one[row, :, end].isfinite()
            parts.append(symmetric(one[row, there, end], other[row, there, end]) / 2)
        return torch.stack(parts).sum()
    at = batch["labels"] != -100 if name == "token-classification" else ...
    return symmetric(one[at], other[at]).sum()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "classification"),
        ("gpt2", "multi-label"),
        ("bert", "question-answering"),
        ("qwen3", "question-answering"),
        ("bert", "token-classification"),
        ("bert", "language-modeling"),
        ("gpt2", "language-modeling"),
        ("mt5", "generation"),
    ],
)
def test_rdrop_is_the_symmetric_kl_of_two_passes_beside_both_losses(kind, name, load, monkeypatch):
    model, (task, rows) = load(kind), task_and_rows(name)
    adapter = new(model, task, scale=0.3)
    patched = SimpleNamespace(dropout=scaled_by_view, linear=functional.linear)
    monkeypatch.setattr(products, "functional", patched)
    tiny_weight = {"regularise": {"rdrop": "1e-30"}, "dropout": 0.1}
    got, note = penalty_gradients(monkeypatch, model, task, rows, adapter, "rdrop", **tiny_weight)
    ((of_losses,), _) = gradients(monkeypatch, model, task, rows, [adapter], **tiny_weight)
    batch, adapter = batch_of(model, task, rows), live(model, adapter)
    count = task.count(batch).sum()

    def passed(weight):
        """Each row's loss and all logits where the adapter's delta counts so many times."""
        blends = [ah.Blend((("a", weight),), exact=True)] * len(rows)
        heads = model.heads(blends) if task.needs_head() else []
        with model.bank.using(model.plan(blends)):
            losses = task.loss(model, batch, heads)
            if heads:
                return losses, task.logits(model, batch, heads)
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            return losses, model.backbone.model(**inputs).logits[targets_of(model, batch)]

    (losses, one), (other_losses, other) = passed(1.0), passed(1.1)
    mean = (losses + other_losses).sum() / 2 / count
    expected = torch.autograd.grad(mean, adapter.parameters(), retain_graph=True)
    for ours, theirs in zip(of_losses, expected, strict=True):
        close(ours, theirs)
    compare(got, note, "rdrop", adapter, apart(name, one, other, batch) / count)
