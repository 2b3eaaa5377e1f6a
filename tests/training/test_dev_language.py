"""Dev rows of languages that are not trained on choose the best state and stop the run."""

import json

import pytest
from conftest import WORDS
from helpers.recipes import run

import adapters_hub as ah
from adapters_hub.errors import DataError
from adapters_hub.training.rows import STOPPING
from adapters_hub.training.run import Experiment
from adapters_hub.training.settings import Resolved, TrainingSettings


@pytest.fixture
def data(tmp_path):
    (tmp_path / "rows").mkdir()
    for split, items in (("train", 8), ("dev", 4), ("test", 4)):
        with open(tmp_path / "rows" / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for number in range(items):
                for language in ("en", "de", "fr"):
                    text = f"{WORDS[number]} {WORDS[number + 1]} {split}"
                    row = {"id": f"{split}{number}", "text": text, "language": language}
                    row |= {"label": "ab"[number % 2], "positive": WORDS[number + 2]}
                    file.write(json.dumps(row) + "\n")
    return tmp_path


def experiment(tiny, data, task="classification", **values):
    settings = TrainingSettings(
        task=task, backbone=str(tiny("bert")), data=str(data / "rows"), library=str(data / "library"),
        steps=3, batch_size=4, rank=2, cpu=True, name="x", run_folder=str(data / "runs"),
        eval_every=1, **values,
    )  # fmt: skip
    return Experiment(Resolved(settings, dict.fromkeys(settings.flat(), "test")), quiet=True)


@pytest.mark.parametrize("task", ["classification", "retrieval", "language-modeling"])
def test_the_run_stops_by_these_languages_and_keeps_the_others(tiny, data, task):
    made = experiment(tiny, data, task, language=("en",), dev_language=("de", "fra"))
    splits = {name: {row.language for row in rows} for name, rows in made.splits.items()}
    assert splits["train"] == splits["dev"] == splits["test"] == {"en"}
    assert splits[STOPPING] == {"de", "fr"}
    looked_at = []
    records = type(made.task).records

    def noted(self, model, batch, heads, examples):
        looked_at.extend(example.row.language for example in examples)
        return records(self, model, batch, heads, examples)

    type(made.task).records = noted
    try:
        _, progress = made.train([made.new_adapter("x")])
    finally:
        type(made.task).records = records
    assert {*looked_at} == {"de", "fr"}
    assert len(progress.history) == 3


def test_without_it_the_run_stops_by_what_it_is_trained_on(tiny, data):
    made = experiment(tiny, data, language=("en",))
    assert STOPPING not in made.splits


def test_a_frozen_language_adapter_is_below_these_rows_too(tiny, data, lora_folder):
    library = ah.Library(data / "library")
    library.add(lora_folder("bert", "one"), name="de", language="de")
    made = experiment(tiny, data, language=("en",), dev_language=("de",))
    assert made.languages_with_adapters() == ["de"]


def test_pairs_are_made_before_languages_are_chosen(tiny, data):
    made = experiment(tiny, data, "matching", language=("en",), dev_language=("fr",))
    assert {row.language for row in made.splits[STOPPING]} == {"fr"}
    assert all("positive" in row.fields for row in made.splits[STOPPING])


def test_a_language_without_dev_rows_is_named(tiny, data):
    with pytest.raises(DataError, match=r"no dev rows in sv \(have: de, en, fr\).*--dev-language"):
        experiment(tiny, data, language=("en",), dev_language=("sv",))


def test_language_adapters_have_dev_rows_of_their_own(tiny, data, monkeypatch):
    with pytest.raises(SystemExit, match=r"--dev-language: each adapter has.*give --name"):
        run(
            "lora_language.py", "--language", "en", "--dev-language", "de", "--data", data / "rows",
            "--backbone", tiny("bert"), "--cpu", monkeypatch=monkeypatch, cwd=data,
        )  # fmt: skip
