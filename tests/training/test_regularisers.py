"""Penalties in the loop: off, cut into pieces and processes, stopped and resumed, several adapters."""

import json
import signal

import pytest
import torch
from accelerate import Accelerator
from conftest import TEXTS, in_double
from helpers.recipes import launch, run
from helpers.regularising import gradients, new, settings, task_and_rows, train, value_in
from helpers.training import assert_same

import adapters_hub as ah
from adapters_hub.errors import DataError, SettingsError, TrainingError
from adapters_hub.training.checkpoint import Checkpoint
from adapters_hub.training.regularisers.base import method_class
from adapters_hub.training.regularisers.control import Control, wanted_of
from adapters_hub.training.regularisers.passes import Passes
from adapters_hub.training.regularisers.registry import method_names
from adapters_hub.training.train import train as train_call

BATCHES = [[0, 3, 1, 2], [1, 2, 0], [3, 1], [0, 2, 3, 1], [2, 1, 3], [0, 1, 2, 3]]
ALL = {"l2": "0.01", "fisher": "0.001", "kl": "0.5"}
FOLLOWING = {"l2": "target:0.5", "fisher": "0.001", "kl": "target:0.05"}
TASKS = ("classification", "multi-label", "question-answering", "token-classification",
         "language-modeling", "generation")  # fmt: skip


@pytest.fixture
def load(tiny, tmp_path):
    return lambda kind: ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 3))
    return str(file)


def learn(model, name="classification", names=("a",), batches=BATCHES, scale=0, **options):
    task, rows = task_and_rows(name)
    dropped = {"lora_dropout": options["dropout"]} if "dropout" in options else {}
    adapters = [new(model, task, one, scale=scale, **dropped) for one in names]
    return train(model, task, rows, adapters, batches, **options)


# ── off ──────────────────────────────────────────────────────────────────────────────────────────


def test_without_penalties_nothing_is_asked_for_beside_the_loss(load, monkeypatch):
    model, calls = load("bert"), []
    monkeypatch.setattr(Passes, "__init__", None)
    model.backbone.base.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(5)
    (plain,), progress = learn(model)
    assert len(calls) == len(BATCHES)
    assert progress.notes == ()
    assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(5))
    assert "l2" not in str(progress.history)
    del plain


@pytest.mark.parametrize("name", ["classification", "language-modeling", "retrieval"])
def test_penalties_of_hardly_any_weight_change_nothing(load, name):
    model, weights = in_double(load("bert")), {"l2": "1e-12", "fisher": "1e-12", "kl": "1e-12"}
    (plain,), _ = learn(model, name, scale=0.1)
    (held,), progress = learn(model, name, scale=0.1, regularise=weights)
    assert_same(plain, held)
    assert all(method in progress.notes[0] for method in weights)


# ── what they do ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("bert", name) for name in TASKS[:5]),
        *(("gpt2", name) for name in TASKS),
        ("mt5", "generation"),
        ("qwen3", "retrieval"),
        ("bert", "matching"),
    ],
)
@pytest.mark.parametrize("method", ["l2", "fisher", "kl"])
def test_more_weight_holds_the_adapter_nearer_to_the_backbone(load, kind, name, method):
    model, values = load(kind), []
    for weight in ("1e-6", "300"):
        _, progress = learn(model, name, batches=BATCHES * 2, regularise={method: weight}, clip=0)
        values.append(value_in(progress.notes[0], method))
    assert 0 < values[1] < 0.5 * values[0]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("bert", name) for name in TASKS[:5]),
        *(("gpt2", name) for name in TASKS),
        ("mt5", "generation"),
    ],
)
def test_rdrop_sees_other_masks_in_the_second_pass(load, kind, name):
    options = {"regularise": {"rdrop": "1"}, "dropout": 0.3, "scale": 0.3}
    (adapter,), progress = learn(load(kind), name, batches=BATCHES[:2], **options)
    assert 1e-6 < value_in(progress.notes[0], "rdrop") < 100
    assert all(t.isfinite().all() for t in adapter.parameters())


def test_each_adapter_gets_its_own_penalty(load, text):
    model, owners = in_double(load("bert")), [0, 1, 0, 1]
    every = {"regularise": FOLLOWING, "regularise_data": text, "scale": 0.1}
    both_have = [batch for batch in BATCHES if len({owners[i] for i in batch}) == 2]
    together, both = learn(
        model, names=("first", "second"), owners=owners, batches=both_have, **every
    )
    for number, name in enumerate(("first", "second")):
        mine = [[i for i in batch if owners[i] == number] for batch in both_have]
        (alone,), one = learn(model, names=(name,), batches=mine, **every)
        assert_same(together[number], alone)
        part = next(p for p in both.notes[0].split("; ") if f"{name}: " in p)
        for method in FOLLOWING:
            assert value_in(part, method) == pytest.approx(value_in(one.notes[0], method), rel=1e-3)


def test_values_and_weights_are_in_the_history(load):
    model = load("bert")
    task, rows = task_and_rows("classification")
    dev = task.encode(rows, model.backbone)
    _, progress = learn(model, regularise=FOLLOWING, dev=dev, dev_owners=[0] * 4, eval_every=2)
    looks = progress.history
    assert len(looks) == 3
    assert all(look[f"{method}/a"] >= 0 for look in looks for method in FOLLOWING)
    assert looks[0]["kl_weight/a"] != looks[2]["kl_weight/a"]
    assert looks[0]["fisher_weight/a"] == looks[2]["fisher_weight/a"] == 0.001


# ── pieces, processes, scaling ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["classification", "language-modeling", "retrieval"])
@pytest.mark.parametrize("generic", [False, True])
def test_pieces_change_nothing(load, name, generic, text):
    model, data = in_double(load("bert")), {"regularise_data": text} if generic else {}
    (whole,), one = learn(model, name, scale=0.1, regularise=FOLLOWING, **data)
    (cut,), other = learn(model, name, scale=0.1, regularise=FOLLOWING, accumulation=3, **data)
    assert_same(whole, cut, atol=1e-4)  # Adam divides by gradients that are near zero
    for method in FOLLOWING:
        values = (value_in(progress.notes[0], method) for progress in (one, other))
        assert next(values) == pytest.approx(next(values), rel=1e-2)


@pytest.mark.slow
def test_two_processes_give_the_adapter_of_one(tiny, tmp_path, text):
    adapters = []
    rows = [{"text": f"{t} {n}", "label": "ab"[n % 2], "language": ("de", "en")[n // 2 % 2]}
            for n, t in enumerate(TEXTS * 8)]  # fmt: skip
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for processes in (1, 2):
        library = tmp_path / f"library{processes}"
        running = launch(
            "lora_domain.py", "--task", "classification", "--backbone", tiny("bert"),
            "--data", data, "--library", library, "--name", "both", "--steps", 6,
            "--batch-size", 6, "--rank", 2, "--regularise", "l2=target:0.1", "fisher=0.001",
            "kl=0.5", "--regularise-data", text, "--joint-weights", "dro", "--domain", "x",
            "--cpu", processes=processes, cwd=tmp_path,
        )  # fmt: skip
        output, _ = running.communicate(timeout=300)
        assert running.returncode == 0, output
        assert "penalties at the end: both: l2" in output
        assert "loss weights at the end (dro): de" in output
        model = ah.load_backbone(str(tiny("bert")), library=library)
        adapters.append(model.adapter("both"))
    assert_same(*adapters)


class Scaling:
    """An accelerator with the loss scaler that fp16 has on a GPU, here on the CPU."""

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)

    def __getattr__(self, name):
        return getattr(self.accelerator, name)

    def backward(self, loss):
        self.scaler.scale(loss).backward()


def test_a_loss_scaler_changes_nothing(load, text):
    model, both = load("bert"), {"regularise": FOLLOWING, "regularise_data": text}
    (plain,), _ = learn(model, **both)
    (scaled,), _ = learn(model, accelerator=Scaling(Accelerator(cpu=True)), **both)
    assert_same(plain, scaled)


def test_gradients_are_clipped_with_the_penalty(load, monkeypatch):
    model, (task, rows) = load("bert"), task_and_rows("classification")
    adapter = new(model, task)
    ((pushed,), _) = gradients(monkeypatch, model, task, rows, [adapter], regularise={"l2": "1000"})
    norm = torch.stack([g.norm() for g in pushed]).norm()
    assert norm > 100
    seen = []
    clip = torch.nn.utils.clip_grad_norm_
    note = lambda parameters, most: seen.append(clip(parameters, most))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", note)
    train(model, task, rows, [adapter], [[0, 1, 2, 3]], regularise={"l2": "1000"})
    assert seen[0].item() == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["classification", "language-modeling"])
def test_gradient_checkpointing_changes_nothing(tiny, tmp_path, name):
    made = []
    for checkpointing in (False, True):
        library = tmp_path / str(checkpointing)
        model = in_double(ah.load_backbone(str(tiny("qwen3")), library=library))
        if checkpointing:
            model.enable_gradient_checkpointing()
        made.append(learn(model, name, scale=0.1, regularise=FOLLOWING)[0][0])
    assert_same(*made)


@pytest.mark.parametrize("name", ["classification", "language-modeling", "retrieval"])
def test_mixed_precision(load, name, text, fresh_accelerate):
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    options = {"regularise": {**FOLLOWING}, "dropout": 0.1, "regularise_data": text}
    if name != "retrieval":
        options["regularise"]["rdrop"] = "1"
    (adapter,), progress = learn(load("bert"), name, accelerator=accelerator, **options)
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in adapter.parameters())
    assert value_in(progress.notes[0], "kl") > 0


@pytest.mark.parametrize("bits", [8, 4])
def test_over_a_quantised_backbone(tiny, tmp_path, bits, text):
    pytest.importorskip("bitsandbytes")
    model = ah.load_backbone(str(tiny("qwen3")), library=tmp_path / "library", bits=bits)
    options = {"regularise": FOLLOWING, "regularise_data": text}
    (adapter,), progress = learn(model, "language-modeling", **options)
    assert all(value_in(progress.notes[0], method) > 0 for method in FOLLOWING)
    assert all(t.isfinite().all() for t in adapter.parameters())


# ── stopped and resumed ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("generic", [False, True])
def test_a_run_that_was_stopped_goes_on_to_the_same_adapter(
    load, monkeypatch, tmp_path, generic, text
):
    model, folder = load("bert"), tmp_path / "run"
    every = {"regularise": {**FOLLOWING, "rdrop": "0.5"}, "dropout": 0.2, "joint_weights": "dro",
             "regularise_data": text if generic else None}  # fmt: skip
    (want,), whole = learn(model, **every)
    calls, collate = [], type(task_and_rows("classification")[0]).collate

    def interrupted(self, examples, backbone, seed=0):
        calls.append(seed)
        if seed == 3 * 100_003 + 3:
            signal.raise_signal(signal.SIGINT)
        return collate(self, examples, backbone, seed=seed)

    with monkeypatch.context() as patch:
        patch.setattr(type(task_and_rows("classification")[0]), "collate", interrupted)
        with pytest.raises(KeyboardInterrupt, match="after step 4"):
            learn(model, folder=folder, **every)
    kept = (folder / "fisher.safetensors").stat().st_mtime_ns
    (got,), progress = learn(model, folder=folder, **every)
    assert_same(got, want, atol=1e-6, rtol=1e-5)
    assert progress.notes == whole.notes
    assert (folder / "fisher.safetensors").stat().st_mtime_ns == kept
    assert not Checkpoint(folder, settings(**every), {}).file.exists()


def test_moments_of_other_texts_are_computed_anew(load, tmp_path, text):
    model, every = load("bert"), {"regularise": {"fisher": "1"}, "folder": tmp_path / "run"}
    learn(model, **every)
    before = (tmp_path / "run" / "fisher.safetensors").read_bytes()
    learn(model, regularise_data=text, **every)
    assert (tmp_path / "run" / "fisher.safetensors").read_bytes() != before


def test_a_checkpoint_on_other_generic_text_is_not_gone_on_from(load, monkeypatch, tmp_path, text):
    model, every = load("bert"), {"regularise": {"kl": "1"}, "regularise_data": text}
    collate = type(task_and_rows("classification")[0]).collate

    def interrupted(self, *given, **more):
        signal.raise_signal(signal.SIGINT)
        return collate(self, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(task_and_rows("classification")[0]), "collate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            learn(model, folder=tmp_path / "run", **every)
    with open(text, "a", encoding="utf-8") as file:
        file.write('{"text": "never again"}\n')
    with pytest.raises(SettingsError, match="generic text"):
        learn(model, folder=tmp_path / "run", **every)


# ── weights that follow ──────────────────────────────────────────────────────────────────────────


def test_a_weight_follows_its_target_as_ziegler_et_al_have_it():
    control = Control.of(wanted_of({"kl": "target:0.5"})["kl"])
    assert control.weight == pytest.approx(0.2)
    for value, factor in ((0.55, 1.01), (5.0, 1.02), (0.0, 0.98), (0.5, 1.0)):
        before = control.weight
        control.follow(value)
        assert control.weight == pytest.approx(before * factor)
    fixed = Control.of(wanted_of({"kl": 0.25})["kl"])
    fixed.follow(100.0)
    assert fixed.weight == 0.25


@pytest.mark.slow
def test_a_penalty_is_brought_to_its_target(load):
    (_,), progress = learn(
        load("bert"), batches=BATCHES * 60, regularise={"l2": "target:0.05"}, clip=0
    )
    assert value_in(progress.notes[0], "l2") == pytest.approx(0.05, rel=0.5)


# ── what does not work says so ───────────────────────────────────────────────────────────────────


def test_the_methods_are_found_by_looking():
    assert method_names() == ("consistency", "fisher", "kl", "l2", "rdrop")
    assert all(method_class(name).name == name for name in method_names())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"l3": "1"}, "'l3' is none of consistency, fisher, kl, l2, rdrop"),
        ({"l2": "much"}, "l2=much: give a weight above 0, such as l2=0.1, or a value"),
        ({"l2": "-1"}, "l2=-1: give a weight"),
        ({"l2": "0"}, "l2=0: give a weight"),
        ({"kl": "aim:0.1"}, "kl=aim:0.1: give a weight"),
        ({"kl": "target:"}, "kl=target:: give a weight"),
        ({"kl": "inf"}, "kl=inf: give a weight"),
    ],
)
def test_values_that_are_none(asked, message):
    with pytest.raises(SettingsError, match=message):
        settings(regularise=asked)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("retrieval", {"regularise": {"rdrop": "1"}, "dropout": 0.1}, "retrieval learns from vec"),
        ("matching", {"regularise": {"rdrop": "1"}, "dropout": 0.1}, "matching learns from vectors"),
        ("classification", {"regularise": {"rdrop": "1"}}, r"dropout is 0: give some \(--dropout"),
        ("classification", {"regularise_data": "x"}, r"asks for \(nothing\) none reads generic"),
        ("classification", {"regularise": {"l2": "1"}, "regularise_data": "x"}, r"\(l2\) none re"),
        ("retrieval", {"joint_weights": "dro"}, r"one language and domain \(en\), so there is"),
    ],
)  # fmt: skip
def test_what_does_not_work_is_refused_before_it_starts(load, name, options, message):
    model = load("bert")
    with pytest.raises(SettingsError, match=message):
        learn(model, name, **options)
    assert "a" not in model.bank


@pytest.mark.parametrize("method", ["l2", "fisher", "kl"])
def test_a_head_alone_has_no_delta_to_hold(load, method):
    model, (task, rows) = load("bert"), task_and_rows("classification")
    info = new(model, task).info
    head = task.new_adapter(info, model.backbone, None)
    with pytest.raises(SettingsError, match=f"{method} holds what an adapter adds.*only a head"):
        train(model, task, rows, [head], [[0, 1]], regularise={method: "1"})


def test_fisher_of_experts_is_refused(load):
    model, (task, rows) = load("mixtral"), task_and_rows("language-modeling")
    adapter = new(model, task, target_parameters=["experts.down_proj"])
    with pytest.raises(SettingsError, match="a matrix of a router or of experts"):
        train(model, task, rows, [adapter], [[0, 1]], regularise={"fisher": "1"})


def test_generic_text_and_an_encoder_decoder(load, text):
    model = load("mt5")
    for method, message in (("kl", "is an encoder-decoder"), ("fisher", "sees nothing of these")):
        with pytest.raises(SettingsError, match=message):
            learn(model, "generation", regularise={method: "1"}, regularise_data=text)


def test_generic_text_without_text(load, tmp_path):
    (tmp_path / "none.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(DataError, match=r"none\.jsonl"):
        learn(load("bert"), regularise={"kl": "1"}, regularise_data=str(tmp_path / "none.jsonl"))


def test_a_penalty_that_is_not_finite_stops_the_run(load, monkeypatch):
    nothing = lambda self, number, trainee: torch.tensor(float("inf"), requires_grad=True)
    monkeypatch.setattr(method_class("l2"), "value", nothing)
    with pytest.raises(TrainingError, match="the penalty l2 became inf at step 1"):
        learn(load("bert"), regularise={"l2": "1"})


# ── as users call it ─────────────────────────────────────────────────────────────────────────────


def test_a_call_takes_numbers_too(load, tmp_path, fresh_accelerate):
    model, rows = load("bert"), task_and_rows("classification")[1] * 8
    info = train_call(
        model, rows, domain="x", steps=2, batch_size=4, rank=2, regularise={"l2": 1e-3},
        run_folder=str(tmp_path / "runs"),
    )  # fmt: skip
    assert info.name == "x"
    with pytest.raises(SettingsError, match="dropout is 0"):
        train_call(model, rows, domain="y", regularise={"rdrop": 1}, run_folder=str(tmp_path))


def test_the_recipe_trains_its_head_without_penalties(tiny, tmp_path, monkeypatch, capsys):
    rows = [{"text": f"{t} {n}", "label": "ab"[n % 2], "language": "en"}
            for n, t in enumerate(TEXTS * 8)]  # fmt: skip
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(
        "lora_domain.py", "--task", "classification", "--backbone", tiny("bert"), "--data",
        "data.jsonl", "--library", "library", "--domain", "x", "--steps", 2, "--rank", 2,
        "--regularise", "l2=0.1", "kl=target:0.05", "--cpu", monkeypatch=monkeypatch, cwd=tmp_path,
    )  # fmt: skip
    out = capsys.readouterr().out
    assert out.count("penalties at the end: x: l2") == 1
    assert "kl" in out
    with pytest.raises(SystemExit, match="regularise: write NAME=VALUE"):
        run("lora_domain.py", "--regularise", "l2", monkeypatch=monkeypatch, cwd=tmp_path)
