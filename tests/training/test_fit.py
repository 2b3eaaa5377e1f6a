"""Found weights: the right ones, nothing left behind, the same wherever they are used."""

import gc
import json
import math
import sys
import weakref
from dataclasses import replace

import pytest
import torch
from conftest import TEXTS

import adapters_hub as ah
from adapters_hub.cli import main
from adapters_hub.data.rows import Row
from adapters_hub.errors import (
    BackboneMismatchError,
    BlendError,
    BlendFileError,
    DataError,
    HeadError,
    MissingExtraError,
    NotFoundError,
    SettingsError,
    TrainingError,
)
from adapters_hub.library.adapter_file import read_adapter
from adapters_hub.library.blend import Blend
from adapters_hub.library.blend_file import BlendFile, BlendTerm
from adapters_hub.library.layers import layers_of
from adapters_hub.tasks.classification import Classification
from adapters_hub.tasks.language_modeling import LanguageModeling
from adapters_hub.training.blend_weights import _resident

ROWS = [Row(f"{text} {n}") for n, text in enumerate(TEXTS * 2)]
LABELLED = [replace(row, label=f"LABEL_{n % 3}") for n, row in enumerate(ROWS)]


def fit(model, blend, rows=ROWS, **options):
    return ah.fit(model, blend, rows, progress=False, **options)


def scaled(lora_folder, kind, name, share):
    """A tiny adapter whose delta is a share of the usual one, so that losses stay smooth."""
    return lora_folder(kind, name, lora_alpha=8 * share)


@pytest.fixture
def model(tiny, tmp_path, lora_folder):
    library = ah.Library(tmp_path / "library")
    for name in ("one", "two"):
        library.add(
            scaled(lora_folder, "qwen3", name, 0.25), name=name, backbone=str(tiny("qwen3"))
        )
    return ah.load_backbone(str(tiny("qwen3")), library=library)


@pytest.fixture
def classifier(tiny, tmp_path, lora_folder):
    library = ah.Library(tmp_path / "library")
    library.add(scaled(lora_folder, "bert", "one", 0.25), name="one")
    library.add(lora_folder("bert", "two", labels=3, lora_alpha=2), name="two")
    return ah.load_backbone(str(tiny("bert")), library=library)


def logits(model, inputs, *adapters):
    """Under the adapters that are given, else under the active ones."""
    with torch.no_grad():
        return model(**inputs, **({"adapters": adapters[0]} if adapters else {})).logits


class Imitation(LanguageModeling):
    """The distance of the model's next tokens from those of a blend: nothing just at its weights."""

    def loss(self, model, batch, heads):
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad(), model.bank.using(model.plan([teacher[0]])):
            target = model.backbone.model(**inputs).logits.log_softmax(-1)
        own = model.backbone.model(**inputs).logits.log_softmax(-1)
        apart = (target.exp() * (target - own)).sum(-1)
        return (apart * (batch["labels"] != -100)).sum(1)


teacher: list[Blend] = [Blend()]


# ── the weights ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "bert", "modernbert", "mt5"])
def test_the_gradient_is_that_of_finite_differences(tiny, tmp_path, lora_folder, kind):
    model = ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")
    labelled = kind == "mt5"
    for name in ("one", "two"):
        labels = 3 if labelled and name == "two" else 0
        model.library.add(lora_folder(kind, name, labels=labels, lora_alpha=2), name=name)
    blend = model.resolve("one + two")
    task = Classification(("LABEL_0", "LABEL_1", "LABEL_2")) if labelled else LanguageModeling()
    examples = task.encode(LABELLED[:4], model.backbone)
    layers = layers_of(model.backbone.sites)
    assert len(layers) == (4 if kind == "mt5" else 2)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, len(layers), generator=generator)
    for given, names in ((weights, layers), (weights[:, :1], ())):
        with _resident(model, blend, task, names) as run:
            at = given.clone().requires_grad_()
            losses, counts = run.losses(at, examples)
            (gradient,) = torch.autograd.grad(losses.sum() / counts.sum(), at)
            assert (gradient != 0).all()
            for place in range(given.numel()):
                step = torch.zeros(given.numel())
                step[place] = 0.01
                step = step.view_as(given)
                slope = run.mean(given + step, examples) - run.mean(given - step, examples)
                assert slope / 0.02 == pytest.approx(
                    gradient.flatten()[place].item(), rel=0.03, abs=2e-3
                )


@pytest.mark.parametrize(
    ("method", "options", "close"),
    [
        pytest.param("gradient", {"steps": 150, "batch_size": 10}, 0.02, marks=pytest.mark.slow),
        ("lorahub", {"l1": 0.0}, 0.1),
    ],
)
def test_planted_weights_are_found(model, method, options, close):
    teacher[0] = model.resolve("0.3*one - 0.7*two")
    found = fit(model, "one + two", task=Imitation(), method=method, **options)
    assert found.weights == {
        "one": pytest.approx(0.3, abs=close),
        "two": pytest.approx(-0.7, abs=close),
    }
    assert found.after["rows"]["loss"] < 0.01 * found.before["rows"]["loss"]
    assert found.file.loss_before == found.before["rows"]["loss"]
    assert found.file.loss_after == found.after["rows"]["loss"]


@pytest.mark.slow
def test_planted_weights_of_layers_are_found(model):
    planted = {"one": (0.9, -0.4), "two": (0.1, 1.2)}
    terms = tuple(BlendTerm(name, None, weights) for name, weights in planted.items())
    backbone = model.backbone.name, model.backbone.fingerprint
    teacher[0] = model.load_blend(
        BlendFile(terms, *backbone, layers_of(model.backbone.sites), name="teacher")
    )
    options = {"task": Imitation(), "steps": 100, "batch_size": 10}
    each = fit(model, "one + two", per="layer", **options)
    one = fit(model, "one + two", **options)
    for name, weights in planted.items():
        assert each.weights[name] == pytest.approx(weights, abs=0.05)
    assert each.after["rows"]["loss"] < 0.02 * one.after["rows"]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"per": "layer"}, {"method": "lorahub", "l1": 0.0, "steps": 20}],
    ids=["adapter", "layer", "lorahub"],
)
def test_the_tasks_own_loss_falls(classifier, options):
    found = fit(classifier, "one + two", LABELLED, held_out=LABELLED[:3], **options)
    assert found.file.task == "classification"
    assert found.after["rows"]["loss"] < found.before["rows"]["loss"]
    assert found.after.keys() == {"rows", "held_out"}
    assert found.after["rows"].keys() == {"loss", "accuracy", "macro_f1"}


def test_the_start_is_the_blends_own_weights(model):
    found = fit(model, "0.5*one - 0.25*two", steps=1, learning_rate=1e-9)
    assert found.weights == {"one": pytest.approx(0.5), "two": pytest.approx(-0.25)}
    task = LanguageModeling()
    blend = model.resolve("0.5*one - 0.25*two")
    batch = task.collate(task.encode(ROWS, model.backbone), model.backbone)
    with torch.no_grad(), model.bank.using(model.plan([blend])):
        loss = task.loss(model, batch, []).sum() / task.count(batch).sum()
    assert found.before["rows"]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found.before["rows"]["bits_per_token"] * math.log(2) == pytest.approx(loss.item())


def test_the_seed_decides(model):
    options = {"steps": 6, "batch_size": 2}
    first = fit(model, "one + two", seed=1, **options)
    assert fit(model, "one + two", seed=1, **options) == first
    assert fit(model, "one + two", seed=2, **options).weights != first.weights


@pytest.mark.slow
def test_l1_makes_weights_small(model):
    free, bound = (fit(model, "one + two", steps=40, l1=l1) for l1 in (0.0, 3.0))
    size = lambda found: sum(map(abs, found.weights.values()))
    assert size(bound) < 0.5 * size(free)
    layers = fit(model, "one + two", steps=40, l1=3.0, per="layer").weights["one"]
    assert len(layers) == 2


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"learning_rate": 5.0}, {"method": "lorahub", "l1": 0.0}])
def test_dev_chooses_and_the_start_is_a_choice(model, options):
    teacher[0] = model.resolve("one + two")  # the start itself is best, and rows lead away from it
    loss = Imitation().loss

    class Divided(LanguageModeling):
        def loss(self, model, batch, heads):
            dev = batch["input_ids"].shape[0] == len(ROWS) - 1
            return loss(model, batch, heads) if dev else super().loss(model, batch, heads)

    found = fit(model, "one + two", task=Divided(), dev=ROWS[1:], steps=12, **options)
    assert found.weights == {"one": 1.0, "two": 1.0}
    assert found.before == found.after
    assert fit(model, "one + two", steps=12, **options).weights != found.weights


# ── what stays as it was ─────────────────────────────────────────────────────────────────────────


def state(model):
    tensors = [*model.backbone.model.state_dict().values()]
    for name in ("one", "two"):
        tensors += model.adapter(name).parameters()
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("method", ["gradient", "lorahub"])
def test_factors_and_backbone_do_not_change(model, method, monkeypatch):
    model.use("two")
    before, put, slots = state(model), model.bank.put, []

    def recorded(name, *values, **options):
        slot = put(name, *values, **options)
        slots.append(weakref.ref(slot))
        return slot

    monkeypatch.setattr(model.bank, "put", recorded)
    fit(model, "one + two", method=method, steps=8)
    gc.collect()
    assert len(slots) > 8
    assert not any(slot() for slot in slots)  # which a plan that was kept would keep
    assert all(map(torch.equal, state(model), before))
    assert sorted(model.bank.names()) == ["one", "two"]
    assert str(model.active) == "two"
    assert model.bank.current() is None
    assert all(p.grad is None for p in model.backbone.model.parameters())
    assert not any(t.requires_grad or t.grad is not None for t in model.adapter("one").parameters())


class Failing(LanguageModeling):
    def loss(self, model, batch, heads):
        calls.append(1)
        if len(calls) == 4:
            raise trouble[0]
        return super().loss(model, batch, heads)


calls: list[int] = []
trouble: list[BaseException] = []


@pytest.mark.parametrize("method", ["gradient", "lorahub"])
@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt()], ids=repr)
def test_nothing_is_left_of_a_run_that_fails(model, inputs, method, error):
    model.use("one")
    before, want = state(model), logits(model, inputs)
    names = sorted(model.bank.names())
    calls.clear()
    trouble[:] = [error]
    with pytest.raises(type(error)):
        fit(model, "one + two", task=Failing(), method=method)
    assert len(calls) == 4
    assert sorted(model.bank.names()) == names
    assert model.bank.current() is None
    assert all(map(torch.equal, state(model), before))
    assert torch.equal(logits(model, inputs), want)


def test_fits_in_the_callers_inference_mode(model):
    with torch.inference_mode():
        found = fit(model, "one + two", steps=2)
    assert found == fit(model, "one + two", steps=2)


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def under(model, blend, file, inputs):
    """Logits of the fitted weights, by the slots that they were found with."""
    weights = torch.tensor([[*t.weight] if file.layers else [t.weight] for t in file.terms])
    with (
        _resident(model, blend, LanguageModeling(), file.layers) as run,
        run.under(weights, ()),
        torch.no_grad(),
    ):
        return model.backbone.model(**inputs).logits


@pytest.mark.slow
@pytest.mark.parametrize("per", ["adapter", "layer"])
def test_a_loaded_file_is_what_was_found(model, inputs, tmp_path, per):
    found = fit(model, "one - 0.5*two", per=per, steps=10)
    want = under(model, model.resolve("one - 0.5*two"), found.file, inputs)
    path = found.file.write(tmp_path / "my-mix.blend.json")
    fresh = ah.load_backbone(model.backbone.name, library=model.library)
    blend = fresh.load_blend(path)
    got = logits(fresh, inputs, blend)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    assert (got - logits(fresh, inputs, "one - 0.5*two")).abs().max() > 1e-3
    fresh.use(blend)
    assert torch.equal(logits(fresh, inputs), got)
    mixed = logits(fresh, inputs, [blend, "one", None, f"{blend} + two"])
    torch.testing.assert_close(mixed[0], got[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(mixed[1], logits(fresh, inputs, "one")[1], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(mixed[2], logits(fresh, inputs, Blend())[2], atol=2e-5, rtol=1e-4)
    merged = fresh.merge(blend)
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).logits, got, atol=5e-5, rtol=1e-3)
    if per == "layer":
        digest = BlendFile.read(path).digest
        assert blend.terms == (f"my-mix.{digest}.one", f"my-mix.{digest}.two")
        assert all(
            ours is theirs
            for site, pair in fresh.resident(blend.terms[0]).factors.items()
            for ours, theirs in zip(pair, fresh.resident("one").factors[site], strict=True)
        )
    else:
        assert blend.terms == ("one", "two")


def test_an_export_of_layer_weights_loads_in_peft(model, inputs, tmp_path, tiny):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    blend = model.load_blend(fit(model, "one + two", per="layer", steps=10).file)
    folder = model.export(blend, tmp_path / "out", name="mix")
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny("qwen3")), folder
    ).eval()
    with torch.no_grad():
        got = plain(**inputs).logits
    torch.testing.assert_close(got, logits(model, inputs, blend), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("per", ["adapter", "layer"])
def test_the_head_goes_along(classifier, per):
    found = fit(classifier, "one + two", LABELLED, per=per, steps=10)
    blend = classifier.load_blend(found.file)
    scores = classifier.classify(TEXTS, adapters=blend)
    assert scores[0].keys() == {"LABEL_0", "LABEL_1", "LABEL_2"}
    nats = -sum(
        math.log(s[row.label])
        for s, row in zip(
            classifier.classify([row.text for row in LABELLED], adapters=blend),
            LABELLED,
            strict=True,
        )
    )
    assert nats / len(LABELLED) == pytest.approx(found.file.loss_after, rel=1e-4)


def test_a_head_of_weight_nothing_stays(classifier):
    file = fit(classifier, "one + two", LABELLED, steps=1).file
    file = replace(file, terms=(file.terms[0], replace(file.terms[1], weight=0.0)))
    blend = classifier.load_blend(file)
    assert len(blend.terms) == 2
    assert len(classifier.classify(TEXTS, adapters=blend)) == len(TEXTS)


def test_layers_of_an_encoder_decoder_are_counted_in_each_stack(
    tiny, tmp_path, lora_folder, inputs
):
    model = ah.load_backbone(str(tiny("mt5")), library=tmp_path / "library")
    model.library.add(lora_folder("mt5", "one"), name="one")
    layers = ("encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1")
    backbone = model.backbone.name, model.backbone.fingerprint
    file = BlendFile((BlendTerm("one", None, (1.0, 2.0, 3.0, 5.0)),), *backbone, layers)
    (name,) = model.load_blend(file).terms
    own, plain = model.resident(name).scaling, model.adapter("one").scaling
    assert {site: own[site] / plain[site] for site in own} == {
        site: pytest.approx(
            next((w for layer, w in zip(layers, (1, 2, 3, 5), strict=True) if layer in site), 2.75)
        )
        for site in own
    }


def test_another_backbone_adapter_or_library_is_refused(model, tmp_path, tiny, lora_folder):
    file = fit(model, "one + two", per="layer", steps=2).file
    before = sorted(model.bank.names())
    gone = replace(file, terms=(file.terms[0], replace(file.terms[1], name="gone")))
    with pytest.raises(NotFoundError, match='"gone"'):
        model.load_blend(gone)
    moved = replace(file, fingerprint="other-2L-32-0000000000000000")
    with pytest.raises(BackboneMismatchError, match="other-2L-32"):
        model.load_blend(moved)
    one = tuple(replace(term, weight=(1.0,)) for term in file.terms)
    with pytest.raises(BackboneMismatchError, match="1 layers"):
        model.load_blend(replace(file, layers=("layers.0",), terms=one))
    model.library.add(
        lora_folder("qwen3", "three"),
        name="two",
        backbone=model.backbone.name,
        replace_existing=True,
    )
    with pytest.raises(BlendFileError, match="'two' is not the one"):
        model.load_blend(file)
    assert sorted(model.bank.names()) == before
    assert model.load_blend(file, check_hashes=False)
    lenient = ah.load_backbone(model.backbone.name, library=model.library, check_backbone=False)
    assert lenient.load_blend(moved, check_hashes=False)


def test_two_files_of_one_name_do_not_mix(model, inputs):
    file = fit(model, "one", per="layer", steps=2).file
    first = model.load_blend(file)
    want = logits(model, inputs, first)
    term = replace(file.terms[0], weight=(3.0, -3.0))
    second = model.load_blend(replace(file, terms=(term,)))
    assert second != first
    assert torch.equal(logits(model, inputs, first), want)
    assert model.load_blend(file) == first


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"per": "site"}, SettingsError, "per='site'"),
        ({"method": "magic"}, SettingsError, "gradient, lorahub"),
        ({"method": "lorahub", "per": "layer"}, SettingsError, "use gradient"),
        ({"steps": 0}, SettingsError, "steps=0"),
        ({"batch_size": 0}, SettingsError, "batch_size=0"),
        ({"seed": -1}, SettingsError, "seed=-1"),
        ({"learning_rate": float("nan")}, SettingsError, "learning_rate=nan"),
        ({"l1": -1.0}, SettingsError, "l1=-1"),
        ({"task": "telepathy"}, SettingsError, "task='telepathy'"),
        ({"task": "classification"}, HeadError, "has a task head"),
        ({"blend": None}, BlendError, "empty"),
        ({"blend": "three"}, NotFoundError, "three"),
        ({"rows": []}, DataError, "no row"),
    ],
)
def test_wrong_arguments_are_refused(model, options, error, message):
    with pytest.raises(error, match=message):
        fit(model, **{"blend": "one + two", **options})


def test_rows_without_a_label_are_refused(classifier):
    with pytest.raises(DataError, match="'label' is missing"):
        fit(classifier, "one + two", [replace(ROWS[0], where="rows.jsonl:1")])


def test_a_loss_that_is_not_finite_ends_it(model):
    with pytest.raises(TrainingError, match=r"step \d+: lower the learning rate \(1e\+30\)"):
        fit(model, "one + two", learning_rate=1e30)
    assert sorted(model.bank.names()) == ["one", "two"]


def test_without_scipy_the_install_command_is_said(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'adapters-hub\[fit\]'"):
        fit(model, "one + two", method="lorahub")


# ── the command line ─────────────────────────────────────────────────────────────────────────────


def test_fit_and_compose_from_the_command_line(model, tmp_path, capsys, inputs):
    data = tmp_path / "data"
    data.mkdir()
    for split, rows in (("train", ROWS), ("dev", ROWS[:2]), ("test", ROWS[2:4])):
        text = "".join(json.dumps({"text": row.text}) + "\n" for row in rows)
        (data / f"{split}.jsonl").write_text(text)
    path = tmp_path / "mix.blend.json"
    library = ["--library", str(model.library.root)]
    command = ["fit", "one + two", "--data", str(data), "-o", str(path), "--per", "layer", *library]
    assert main([*command, "--steps", "5", "--rows", "4"]) == 0
    shown = capsys.readouterr().out
    assert [line.split("\t")[0] for line in shown.splitlines()[:2]] == ["one", "two"]
    assert all(len(line.split()) == 3 for line in shown.splitlines()[:2])
    assert {"rows", "dev", "held_out"} <= {line.split("\t")[0] for line in shown.splitlines()}
    assert " -> " in shown
    assert BlendFile.read(path).rows == 4
    assert main(["compose", str(path), "-o", str(tmp_path / "out"), *library]) == 0
    assert read_adapter(tmp_path / "out").info.name == "mix"
    model.library.add(tmp_path / "out", name="mix")
    want = logits(model, inputs, model.load_blend(path))
    torch.testing.assert_close(logits(model, inputs, "mix"), want, atol=2e-5, rtol=1e-4)
    capsys.readouterr()
    assert main([*command[:5], str(tmp_path / "mix.txt"), *library]) == 1
    assert "ends with .blend.json" in capsys.readouterr().err
    assert main(["compose", str(tmp_path / "no.blend.json"), "-o", "x", *library]) == 1
    assert "no.blend.json" in capsys.readouterr().err
    assert main(["fit", "one - one", "--data", str(data), "-o", str(path), *library]) == 1
    assert "cancels out" in capsys.readouterr().err
