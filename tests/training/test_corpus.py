"""Packed corpora: made once, read from disk, drawn and resumed like rows in memory."""

import json
import os
import random
import signal
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import TEXTS, WORDS
from helpers.recipes import launch, run
from helpers.training import assert_same

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, SettingsError
from adapters_hub.tasks.language_modeling import LanguageModeling
from adapters_hub.training.corpus import packs
from adapters_hub.training.run import Experiment
from adapters_hub.training.settings import Resolved, TrainingSettings, parse_settings

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where what is made of texts is kept, for this process and for others."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder))
    return folder


def text(draw):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(3, 40)))


@pytest.fixture
def corpus(tmp_path):
    """A folder with 300 texts in German, 60 in Yoruba, 40 that name no language."""
    draw = random.Random(0)
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, count in (("de", 300), ("yo", 60), ("texts", 40)):
        empty = {"language": ""} if name == "texts" else {}
        lines = [json.dumps({"text": text(draw), **empty}) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def given(tiny, corpus, **more):
    base = {
        "task": "language-modeling", "backbone": str(tiny("qwen3")), "data": str(corpus),
        "packing": True, "max_length": 32, "batch_size": 8, "rank": 2, "over": ("none",),
        "language": ("de", "yo"), "steps": 4, "cpu": True, "eval_every": 100,
    }  # fmt: skip
    settings = TrainingSettings(**{**base, **more})
    return Resolved(settings, dict.fromkeys(settings.flat(), "test"))


def flags(tiny, corpus, *more):
    return [
        "--backbone", tiny("qwen3"), "--data", corpus, "--packing", "--max-length", 32,
        "--batch-size", 8, "--rank", 2, "--cpu", "--eval-every", 100, *more,
    ]  # fmt: skip


def test_every_text_that_is_not_held_out_is_in_one_row(tiny, corpus):
    experiment = Experiment(given(tiny, corpus), quiet=True)
    train = experiment.examples["train"]
    tokenizer = experiment.model.backbone.tokenizer
    seen = Counter()
    for example in train:
        assert 0 < len(example.input_ids) <= 32
        assert sum(example.documents) == len(example.input_ids)
        at = 0
        for length in example.documents:
            document = example.input_ids[at : at + length]
            seen[example.row.language, tokenizer.decode(document, skip_special_tokens=True)] += 1
            at += length
    held = [row for split in ("dev", "test") for row in experiment.splits[split]]
    held = {(row.language, row.text) for row in held}
    lines = [
        (tag, json.loads(line)["text"])
        for tag in ("de", "yo")
        for line in (corpus / f"{tag}.jsonl").read_text().splitlines()
    ]
    short = {entry for entry in lines if len(entry[1].split()) < 30}  # the others are cut
    assert short - held <= seen.keys()
    assert not held & seen.keys()
    assert len(train[:3]) == 3
    assert [e.input_ids for e in train[:3]] == [train[n].input_ids for n in range(3)]


@pytest.mark.slow
def test_what_is_made_once_is_used_again(tiny, corpus, cache, tmp_path, monkeypatch, capsys):
    stamps = []
    for library in ("one", "two"):
        more = ("--language", "de", "yo", "--steps", 3, "--library", tmp_path / library)
        run("lora_language.py", *flags(tiny, corpus, *more), monkeypatch=monkeypatch, cwd=tmp_path)
        out = capsys.readouterr().out
        assert "rows of 32" in out
        assert "see only themselves" in out
        (made,) = cache.rglob("*.arrow")
        stamps.append(made.stat().st_mtime_ns)
    assert stamps[0] == stamps[1]
    model = ah.load_backbone(str(tiny("qwen3")), library=tmp_path / "one")
    other = ah.load_backbone(str(tiny("qwen3")), library=tmp_path / "two")
    for name in ("de", "yo"):
        assert_same(model.adapter(name), other.adapter(name), atol=0, rtol=0)

    list(Experiment(given(tiny, corpus, max_length=16), quiet=True).examples)
    assert len(list(cache.rglob("*.arrow"))) == 2
    with open(corpus / "de.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"text": TEXTS[0] + " and more of it"}) + "\n")
    changed = Experiment(given(tiny, corpus), quiet=True)
    assert changed.examples["train"]
    assert len(list(cache.rglob("*.arrow"))) == 3


def test_a_text_without_a_language_is_in_the_one_asked_for(tiny, corpus, capsys):
    experiment = Experiment(given(tiny, corpus, language=("yo",)))
    out = capsys.readouterr().out
    assert "40 of 400 train rows name no language: taken as yo" in out
    rows = {example.row.language for example in experiment.examples["train"]}
    assert rows == {"yo"}
    train = experiment.examples["train"]
    owners, members = train.owned(lambda row: 0)
    assert set(owners) == {0}
    assert {part: sorted(places) for part, places in members.items()} == {
        ((0, "yo"), None): list(range(len(train)))
    }
    both = Experiment(given(tiny, corpus, language=("yo", "de")))
    both.require_languages()
    assert "left out: 40 of 400 train rows" in capsys.readouterr().out
    tokens = [sum(len(e.input_ids) for e in run.examples["train"]) for run in (experiment, both)]
    assert tokens[0] < tokens[1]


def test_languages_are_drawn_by_their_rows_to_the_power_of_alpha(tiny, corpus):
    experiment = Experiment(given(tiny, corpus, sampling_alpha=0.5), quiet=True)
    corpus = experiment.examples["train"]
    owners, members = corpus.owned(lambda row: 0 if row.language == "de" else None)
    assert {part for part, _ in members} == {(0, "de")}
    assert [owner == 0 for owner in owners] == [e.row.language == "de" for e in corpus]
    owners, members = corpus.owned(lambda row: {"de": 0, "yo": 1}.get(row.language))
    assert {part: len(rows) for (part, _), rows in members.items()} == {
        (number, tag): sum(e.row.language == tag for e in corpus)
        for number, tag in enumerate(("de", "yo"))
    }


def trained(tiny, corpus, tmp_path, name, **more):
    resolved = given(tiny, corpus, run_folder=str(tmp_path / name), **more)
    experiment = Experiment(resolved, quiet=True)
    fresh = [experiment.new_adapter(tag, language=tag) for tag in ("de", "yo")]
    (adapters, progress) = experiment.train(fresh, lambda row: {"de": 0, "yo": 1}.get(row.language))
    assert progress.steps == resolved.settings.steps
    return adapters


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_interrupted(tiny, corpus, tmp_path, monkeypatch):
    whole = trained(tiny, corpus, tmp_path, "whole", steps=6, dropout=0.1)
    collate, calls = LanguageModeling.collate, []

    def interrupted(self, *given, **more):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return collate(self, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModeling, "collate", interrupted)
        with pytest.raises(KeyboardInterrupt, match="interrupted after step 3"):
            trained(tiny, corpus, tmp_path, "stopped", steps=6, dropout=0.1)
    went_on = trained(tiny, corpus, tmp_path, "stopped", steps=6, dropout=0.1)
    for one, other in zip(whole, went_on, strict=True):
        assert_same(one, other, atol=0, rtol=0)


def test_a_checkpoint_of_other_texts_is_not_gone_on_from(tiny, corpus, tmp_path, monkeypatch):
    collate = LanguageModeling.collate

    def interrupted(self, *given, **more):
        signal.raise_signal(signal.SIGINT)
        return collate(self, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModeling, "collate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(tiny, corpus, tmp_path, "run")
    (corpus / "yo.jsonl").write_text((corpus / "yo.jsonl").read_text().replace("room", "view"))
    with pytest.raises(SettingsError, match="examples"):
        trained(tiny, corpus, tmp_path, "run")


@pytest.mark.slow
def test_two_processes_give_the_adapters_of_one(tiny, corpus, tmp_path):
    adapters = []
    for processes in (1, 2):
        library = tmp_path / f"library{processes}"
        more = ("--language", "de", "yo", "--steps", 4, "--library", library)
        running = launch(
            "lora_language.py", *flags(tiny, corpus, *more), processes=processes, cwd=tmp_path
        )
        output, _ = running.communicate(timeout=300)
        assert running.returncode == 0, output
        model = ah.load_backbone(str(tiny("qwen3")), library=library)
        adapters.append([model.adapter(name) for name in ("de", "yo")])
    for one, other in zip(*adapters, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_other_kinds_of_backbones(kind, tiny, corpus, tmp_path):
    resolved = given(tiny, corpus, backbone=str(tiny(kind)), run_folder=str(tmp_path))
    experiment = Experiment(resolved, quiet=True)
    fresh = experiment.new_adapter("both", language="de")
    ((adapter,), progress) = experiment.train([fresh])
    assert progress.steps == 4
    assert any(b.abs().max() > 0 for _, b in adapter.factors.values())


def test_a_domain_adapter_is_trained_on_packed_texts_over_language_adapters(
    tiny, corpus, tmp_path, lora_folder
):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "one"), name="de", language="de")
    resolved = given(
        tiny, corpus, library=str(library.root), over=("auto",), run_folder=str(tmp_path)
    )
    experiment = Experiment(resolved, quiet=True)
    fresh = experiment.new_adapter("law", domain="law")
    assert fresh.info.over == ("de",)
    ((adapter,), _) = experiment.train([fresh])
    alone = Experiment(given(tiny, corpus, run_folder=str(tmp_path / "alone")), quiet=True)
    ((other,), _) = alone.train([alone.new_adapter("law", domain="law")])
    different = zip(adapter.parameters(), other.parameters(), strict=True)
    assert any(not torch.allclose(one, two) for one, two in different)


def test_a_hub_data_set_is_streamed(tiny, monkeypatch):
    draw = random.Random(1)
    table = datasets.Dataset.from_dict(
        {"text": [text(draw) for _ in range(60)], "language": ["de"] * 60}
    )
    asked = []

    def load_dataset(name, streaming):
        asked.append((name, streaming))
        return {"train": table.to_iterable_dataset()}

    builder = SimpleNamespace(config=SimpleNamespace(name="default"), hash="abc")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: builder)
    experiment = Experiment(given(tiny, "owner/texts", language=("de",)), quiet=True)
    assert len(experiment.splits["dev"]) == len(experiment.splits["test"]) == 6
    assert experiment.examples["train"]
    assert set(asked) == {("owner/texts", True)}


def test_large_files_are_packed_unless_that_is_not_wanted(tmp_path):
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl"
    for file in (small, large):
        file.write_text('{"text": "a", "language": "de"}\n')
    os.truncate(large, 256 * 2**20)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"text": "a", "positive": "b"}\n')
    os.truncate(pairs, 256 * 2**20)

    def decided(file, *more):
        asked = ["--task", "language-modeling", "--data", str(file), *more]
        return packs(parse_settings(asked).settings)

    assert [decided(file) for file in (small, large, pairs)] == [False, True, False]
    assert not decided(large, "--no-packing")
    assert decided(small, "--packing")
    assert not decided(large, "--objective", "match")
    assert not decided(large, "--task", "classification")


def test_rows_in_memory_are_not_packed(tiny, corpus):
    """They would not be what is trained on: that is read from the data that settings name."""
    rows = [Row(text, language="de", key=f"{n}") for n, text in enumerate(TEXTS)]
    experiment = Experiment(given(tiny, corpus, language=("de",)), rows=rows, quiet=True)
    with pytest.raises(SettingsError, match="packing=True: rows that are given are in memory"):
        _ = experiment.examples


def test_no_text_long_enough(tiny, tmp_path):
    (tmp_path / "de.txt").write_text("a\n")
    with pytest.raises(DataError, match="no text long enough"):
        _ = Experiment(given(tiny, tmp_path / "de.txt", language=("de",)), quiet=True).examples


@pytest.mark.parametrize("kind", ["qwen3", "bert"])
def test_penalties_and_joint_weights_are_of_packed_rows_too(kind, tiny, corpus, tmp_path):
    resolved = given(
        tiny, corpus, backbone=str(tiny(kind)), run_folder=str(tmp_path), dropout=0.1,
        regularise={"l2": "0.1", "fisher": "0.01", "kl": "0.5", "rdrop": "0.5"},
        joint_weights="dro",
    )  # fmt: skip
    experiment = Experiment(resolved, quiet=True)
    ((adapter,), progress) = experiment.train([experiment.new_adapter("both", language="de")])
    penalties, weights = progress.notes
    assert all(f"{name} " in penalties for name in ("l2", "fisher", "kl", "rdrop"))
    assert " de " in weights
    assert " yo " in weights
    assert all(t.isfinite().all() for t in adapter.parameters())
