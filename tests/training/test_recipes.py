"""The recipes as a user runs them: whole runs, two processes, wrong input, an interruption."""

import json
import os
import re
import signal
import time

import pytest
import torch
from conftest import WORDS
from helpers.recipes import launch, run
from safetensors.torch import load_file

import adapters_hub as ah
from adapters_hub.errors import SettingsError
from adapters_hub.training.accelerator import make_accelerator
from adapters_hub.training.settings import TrainingSettings


@pytest.fixture
def feedback(tmp_path):
    """A labelled file in three languages, of words the tiny tokenizer knows."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, items in (("train", 12), ("dev", 4), ("test", 4)):
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for item in range(items):
                for language in ("en", "de", "da"):
                    good = item % 2 == 0
                    words = [WORDS[(item * 3 + k) % 4] for k in range(3 + item % 4)]
                    row = {
                        "id": f"{split}-{item}",
                        "text": " ".join([*words, "lovely quiet" if good else "rude slow"]),
                        "label": "positive" if good else "negative",
                        "language": language,
                        "domain": "hotel",
                    }
                    file.write(json.dumps(row) + "\n")
    return folder


def test_a_language_is_learnt_from_pairs_too(tiny, tmp_path, monkeypatch, capsys):
    """For sentence encoders, whose checkpoints have no language-model head."""
    pairs = [{"text": f"{a} {b}", "positive": f"{b} the", "language": language,
              "positive_language": other}
             for a in WORDS for b in WORDS[:6]
             for language, other in (("de", "en"), ("da", "de"))]  # fmt: skip
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    run(
        "lora_language.py", "--backbone", tiny("bert"), "--data", data, "--library", "library",
        "--language", "de", "da", "--task", "retrieval", "--steps", 3, "--batch-size", 8,
        "--rank", 2, "--cpu", monkeypatch=monkeypatch, cwd=tmp_path,
    )  # fmt: skip
    out = capsys.readouterr().out
    assert re.search(r"nDCG@10 on \d+ test texts \(higher is better\)", out)
    assert re.search(r"\| da +\| +[01]\.\d+ \| +[01]\.\d+ \|", out)
    info = ah.Library(tmp_path / "library").resolve("de").info
    assert (info.name, info.language, info.domain, info.task) == ("de", "de", None, "retrieval")
    assert set(info.metrics) == {"nDCG@10, bare", "nDCG@10, adapted"}


@pytest.mark.slow
def test_domain_recipe_over_language_adapters(tiny, feedback, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    backbone = str(tiny("qwen3"))
    library = tmp_path / "library"
    common = ["--backbone", backbone, "--data", feedback, "--library", library, "--cpu"]
    run(
        "lora_language.py", *common, "--language", "de", "da", "--steps", 6, "--rank", 2,
        monkeypatch=monkeypatch, cwd=tmp_path,
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "| language |" in out
    assert [i.name for i in ah.Library(library).list()] == ["da", "de"]

    (tmp_path / "run.yaml").write_text("rank: 3\nsteps: 8\n")
    run(
        "lora_domain.py", *common, "--config", "run.yaml", "--language", "en,de", "--steps", 10,
        "--task", "classification", "--domain", "hotel",
        "--tracker", "tensorboard", "--license", "cc0-1.0", monkeypatch=monkeypatch, cwd=tmp_path,
    )  # fmt: skip
    out = capsys.readouterr().out
    lines = {
        line.split()[0]: line.split()[-1] for line in out.splitlines() if line.startswith("  ")
    }
    assert lines["rank"] == "run.yaml"
    assert lines["seed"] == "default"
    assert "steps                   10" in out
    assert "| language" in out
    assert "head only" in out
    assert "language + hotel" in out
    assert "da (not trained on)" in out
    assert list((tmp_path / "runs").rglob("events.out.tfevents*"))

    info = ah.Library(library).get("hotel")
    assert (info.domain, info.over, info.labels) == ("hotel", ("de",), ("negative", "positive"))
    assert set(info.metrics) == {
        "macro-F1, bare backbone (head only)", "macro-F1, hotel", "macro-F1, language + hotel"
    }  # fmt: skip
    assert info.license == "cc0-1.0"
    assert not ah.Library(library).verify("hotel")
    model = ah.load("da", domain="hotel", library=library)
    assert str(model.active) == "da + hotel"
    assert set(model.classify("lovely quiet room")[0]) == {"negative", "positive"}


@pytest.mark.slow
def test_the_domain_recipe_measures_language_adapters_it_was_not_trained_over(
    tiny, feedback, tmp_path, lora_folder, monkeypatch, capsys
):
    backbone, library = str(tiny("bert")), ah.Library(tmp_path / "library")
    for tag in ("de", "fr"):  # no row is French, and Danish has no adapter
        library.add(lora_folder("bert", tag), language=tag, backbone=backbone)
    given = ["--backbone", backbone, "--data", feedback, "--library", library.root, "--cpu",
             "--task", "classification", "--language", "en", "--domain", "hotel", "--rank", 2,
             "--batch-size", 4]  # fmt: skip
    run("lora_domain.py", *given, "--steps", 4, monkeypatch=monkeypatch, cwd=tmp_path)
    (name, measured), *others = library["hotel"].pair_weights.items()
    assert (name, others) == ("de", [])
    assert measured.rows == 4
    assert measured.hash == library["de"].hash
    assert f"de beside hotel: {measured}" in capsys.readouterr().out

    run("lora_domain.py", *given, "--steps", 2, "--over", "none", "--name", "bare",
        monkeypatch=monkeypatch, cwd=tmp_path)  # fmt: skip
    assert library["bare"].pair_weights == {}
    run("lora_domain.py", *given, "--steps", 2, "--language", "de", "--name", "over",
        monkeypatch=monkeypatch, cwd=tmp_path)  # fmt: skip
    assert (library["over"].over, library["over"].pair_weights) == (("de",), {})


@pytest.mark.slow
def test_two_processes_give_the_adapter_of_one(tiny, feedback, tmp_path, lora_folder):
    factors = []
    for processes in (1, 2):
        needless = (
            processes == 2 and not torch.accelerator.is_available()
        )  # the CPU is all there is
        library = tmp_path / f"library{processes}"
        ah.Library(library).add(lora_folder("qwen3", "one"), name="de", language="de")
        running = launch(
            "lora_domain.py", "--backbone", tiny("qwen3"), "--data", feedback, "--library", library,
            "--steps", 6, "--batch-size", 6, "--rank", 2, *([] if needless else ["--cpu"]),
            processes=processes, cwd=tmp_path,
        )  # fmt: skip
        output, _ = running.communicate(timeout=300)
        assert running.returncode == 0, output
        assert f"processes: {processes} on cpu" in output
        assert "language adapters below: de" in output
        model = ah.load_backbone(str(tiny("qwen3")), library=library)
        factors.append(model.adapter("hotel").parameters())
    for one, two in zip(*factors, strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-3)


@pytest.mark.slow
def test_control_c_saves_and_the_same_command_goes_on(tiny, feedback, tmp_path):
    arguments = ["--backbone", tiny("qwen3"), "--data", feedback, "--library", "library"]
    arguments += ["--language", "da", "--steps", 100, "--eval-every", 50, "--rank", 2, "--cpu"]
    arguments += ["--batch-size", 8, "--threads", 1, "--save-every", 5]
    (tmp_path / "stopped").mkdir()
    (tmp_path / "whole").mkdir()

    def start(folder):
        options = {"processes": 1, "cwd": tmp_path / folder, "start_new_session": True}
        return launch("lora_language.py", *arguments, **options)

    running = start("stopped")
    checkpoint = tmp_path / "stopped" / "runs" / "da" / "checkpoint.safetensors"
    for _ in range(2400):
        if checkpoint.exists() or running.poll() is not None:
            break
        time.sleep(0.025)
    os.killpg(running.pid, signal.SIGINT)
    output, _ = running.communicate(timeout=120)
    assert running.returncode != 0
    assert "interrupted after step" in output, output
    assert "the same command goes on from there" in output
    assert checkpoint.exists()
    assert not (tmp_path / "stopped" / "library" / "da").exists()

    again = start("stopped")
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert "going on from step" in output
    assert not checkpoint.exists()
    whole = start("whole")  # not beside the other: two at once take many times as long
    output, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, output
    assert "going on from step" not in output
    went_on, at_once = (
        load_file(tmp_path / folder / "library" / "da" / "adapter_model.safetensors")
        for folder in ("stopped", "whole")
    )
    assert went_on.keys() == at_once.keys()
    for key, tensor in at_once.items():
        assert torch.equal(went_on[key], tensor), key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nothing/here.jsonl"], "no such file or folder"),
        (["--data", "empty.jsonl"], "empty"),
        (["--data", "no-text.jsonl"], r"no-text.jsonl:2: field 'text' is missing"),
        (["--language", "klingonese"], "Klingon|no train rows|not a language"),
        (["--language", "fr"], r"no train rows in fr \(have: da, de, en\)"),
        (["--domain", "zoo"], r"no rows of the domain zoo \(hotel\)"),
        (["--name", "../x"], "cannot name an adapter"),
        (["--bits", "7"], "choose one of 32, 16, 8, 4"),
        (["--over", "sw"], 'no adapter for "sw"'),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--targets", "nonsense"], "matches no linear layer"),
        (["--backbone", "no/such-hub-model"], "no such folder"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    arguments, message, tiny, feedback, tmp_path, monkeypatch
):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "no-text.jsonl").write_text('{"text": "a", "label": "b"}\n{"label": "c"}\n')
    common = ["--backbone", tiny("qwen3"), "--data", feedback, "--library", "library", "--cpu"]
    with pytest.raises(SystemExit, match=f"(?s)error: .*{message}"):
        run(
            "lora_domain.py", *common, "--language", "en", *arguments, "--steps", 2,
            monkeypatch=monkeypatch, cwd=tmp_path,
        )  # fmt: skip
    assert not list(tmp_path.glob("library/*"))


@pytest.mark.parametrize(
    ("task", "name", "metric", "call"),
    [
        ("question-answering", "my-hotel-questions", "F1", "answer"),
        ("token-classification", "my-hotel-entities", "span F1", "tag"),
    ],
)
def test_other_tasks_have_a_sample_of_their_own(
    tiny, tmp_path, monkeypatch, capsys, lora_folder, task, name, metric, call
):
    ah.Library(tmp_path / "library").add(lora_folder("bert", "one"), name="fr", language="fr")
    run(
        "lora_domain.py", "--task", task, "--backbone", tiny("bert"), "--library", "library",
        "--cpu", "--steps", 2, "--rank", 2, "--batch-size", 4, "--language", "en", "fr",
        monkeypatch=monkeypatch, cwd=tmp_path,
    )  # fmt: skip
    out = capsys.readouterr().out
    assert f"{metric} on" in out
    assert f"model.{call}(" in out
    assert "da (not trained on)" in out
    info = ah.Library(tmp_path / "library").get(name)
    assert (info.task, info.domain, info.over) == (task, "hotel", ("fr",))
    assert f"{metric}, language + {name}" in info.metrics


def test_an_adapter_of_that_name_is_not_overwritten_unasked(tiny, feedback, tmp_path, monkeypatch):
    common = ["--backbone", tiny("qwen3"), "--data", feedback, "--library", "library", "--cpu"]
    common += ["--language", "da", "--steps", 2, "--rank", 2]
    run("lora_language.py", *common, monkeypatch=monkeypatch, cwd=tmp_path)
    with pytest.raises(SystemExit, match="already has 'da'"):
        run("lora_language.py", *common, monkeypatch=monkeypatch, cwd=tmp_path)
    run("lora_language.py", *common, "--replace", monkeypatch=monkeypatch, cwd=tmp_path)


@pytest.mark.parametrize(
    ("flags", "shown"),
    [([], "bf16  accelerate"), (["--mixed-precision", "no"], "no  command line")],
)
def test_the_launchers_precision_holds_unless_another_is_chosen(
    tiny, feedback, tmp_path, monkeypatch, capsys, fresh_accelerate, flags, shown
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    common = ["--backbone", tiny("qwen3"), "--data", feedback, "--library", "library", "--cpu"]
    common += ["--language", "da", "--steps", 2, "--rank", 2, "--batch-size", 4, *flags]
    run("lora_language.py", *common, monkeypatch=monkeypatch, cwd=tmp_path)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("  mixed_precision")]
    assert " ".join(line.split()[1:]) == " ".join(shown.split())
    from accelerate.state import AcceleratorState

    assert AcceleratorState().mixed_precision == shown.split()[0]


@pytest.mark.parametrize(
    ("variables", "flags", "message"),
    [
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            [],
            "gradient_accumulation_steps=4.*--acc",
        ),
        ({}, ["--mixed-precision", "fp16"], "fp16.*choose bf16"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, [], "fp8"),
    ],
)
def test_what_the_launcher_asks_for_and_cannot_have(
    tiny, feedback, tmp_path, monkeypatch, fresh_accelerate, variables, flags, message
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    common = ["--backbone", tiny("qwen3"), "--data", feedback, "--library", "library", "--cpu"]
    with pytest.raises(SystemExit, match=f"(?s)error: .*{message}"):
        run(
            "lora_language.py", *common, "--language", "da", "--steps", 2, *flags,
            monkeypatch=monkeypatch, cwd=tmp_path,
        )  # fmt: skip
    assert not (tmp_path / "library").exists()


def test_one_process_where_several_were_asked_for_is_said(monkeypatch, caplog, fresh_accelerate):
    """``accelerate launch --cpu --num_processes 2`` leaves these traces, and starts one."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert make_accelerator(TrainingSettings(cpu=True)).num_processes == 1
    assert not caplog.records
    monkeypatch.setenv("MASTER_PORT", "29500")
    make_accelerator(TrainingSettings(cpu=True))
    assert "--multi_gpu --num_processes 2" in caplog.text


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch, fresh_accelerate):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(SettingsError, match="2 processes were started, and accelerate sees 1"):
        make_accelerator(TrainingSettings())


def test_a_domain_adapter_needs_a_domain_or_a_name(tiny, tmp_path, monkeypatch, capsys):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(f'{{"text": "the room was {w}"}}\n' for w in WORDS))
    common = ["--backbone", tiny("qwen3"), "--data", data, "--library", "library", "--cpu"]
    common += ["--steps", 2, "--rank", 2]
    with pytest.raises(SystemExit, match="say which domain"):
        run("lora_domain.py", *common, monkeypatch=monkeypatch, cwd=tmp_path)
    run("lora_domain.py", *common, "--name", "rooms", monkeypatch=monkeypatch, cwd=tmp_path)
    assert ah.Library(tmp_path / "library").get("rooms").domain == "rooms"
    with pytest.raises(SystemExit, match=r"train domain takes the others"):
        run(
            "lora_language.py", *common, "--language", "en", "--task", "classification",
            monkeypatch=monkeypatch, cwd=tmp_path,
        )  # fmt: skip
