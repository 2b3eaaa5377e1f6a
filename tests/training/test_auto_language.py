"""`--language auto`: rows that name no language are in the one that their text is in."""

import json
from collections import Counter
from dataclasses import replace
from shutil import copytree

import pytest
from helpers.recipes import run

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.errors import NotFoundError, SettingsError
from adapters_hub.library.blend import Blend
from adapters_hub.library.paths import bundled_root
from adapters_hub.training.over import adapters_below, proxies_below
from adapters_hub.training.rows import RunRows, languages_of
from adapters_hub.training.run import Experiment
from adapters_hub.training.settings import Resolved, TrainingSettings

TEXTS = {
    "da": "Værelset nummer {} var rent, og morgenmaden var god.",
    "sv": "Rummet nummer {} var rent och frukosten var mycket god.",
    "uk": "Номер {} був чистий, і сніданок був дуже смачний.",
}
ROWS = [Row(text.format(n)) for text in TEXTS.values() for n in range(12)] + [Row("…"), Row("42")]


def chosen(*tags, rows=ROWS):
    settings, said = TrainingSettings(language=tags), []
    splits = RunRows(settings, languages_of(settings), None, False, said.append).of({"train": rows})
    return Counter(row.language for some in splits.values() for row in some), said


def test_rows_get_the_language_of_their_text():
    counts, said = chosen("auto")
    assert counts == {"da": 12, "sv": 12, "uk": 12, None: 2}
    assert said[0] == (
        "38 of 38 train rows name no language; found by their texts: da 12, sv 12, uk 12; "
        "2 undecided"
    )


def test_among_the_languages_asked_for():
    counts, said = chosen("auto", "da", "sv")
    assert counts == {"da": 12, "sv": 12, None: 14}  # those that fit any
    assert "da 12, sv 12; 14 undecided" in said[0]
    assert any("14 of" in line or "name no language: they fit any" in line for line in said[1:])


def test_a_language_that_a_row_names_stays():
    rows = [Row(row.text, language="de") for row in ROWS[:12]] + ROWS[12:24]
    counts, _ = chosen("auto", rows=rows)
    assert counts == {"de": 12, "sv": 12}
    counts, said = chosen("auto", rows=rows[:12])
    assert counts == {"de": 12}
    assert not said


def test_with_one_language_the_undecided_are_not_taken_as_it():
    counts, _ = chosen("auto", "da")
    assert counts == {"da": 12, None: 26}


def test_the_recipe_leaves_the_undecided_out(tiny, tmp_path, monkeypatch, capsys):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": row.text}) + "\n" for row in ROWS))
    common = ["--backbone", tiny("qwen3"), "--data", path, "--library", "library", "--cpu"]
    common += ["--steps", 2, "--rank", 2, "--batch-size", 4]
    run(
        "lora_language.py",
        *common,
        "--language",
        "auto",
        "da",
        "sv",
        monkeypatch=monkeypatch,
        cwd=tmp_path,
    )
    assert "whose language is empty or undetermined" in capsys.readouterr().out
    assert [info.language for info in ah.Library(tmp_path / "library")] == ["da", "sv"]
    with pytest.raises(SystemExit, match="among which"):
        run(
            "lora_language.py", *common, "--language", "auto", monkeypatch=monkeypatch, cwd=tmp_path
        )


def test_a_proxy_below_rows_of_a_language_without_an_adapter():
    model = ah.load_backbone("starter", library=bundled_root())
    said = []
    over = adapters_below(model, ("auto", "proxy"), ["da", "pl", "ja"])
    assert {tag: info.name for tag, info in over.items()} == {"da": "da"}
    below = proxies_below(model, ("auto", "proxy"), ["pl", "ja"], said.append)
    assert below.keys() == {"pl"}
    assert below["pl"] == model.resolve("proxy:pl")
    assert "pl has no adapter; below its rows are the languages nearest to Polish" in said[1]
    assert "no language with an adapter is related to ja" in said[0]
    assert not proxies_below(model, ("auto",), ["pl"], said.append)
    with pytest.raises(NotFoundError, match="--over: no adapter for"):
        adapters_below(model, ("pl",), [])


@pytest.mark.slow
def test_a_domain_adapter_over_proxies(tmp_path):
    rows = [Row(f"Pokój {n} był czysty i cichy.", language="pl") for n in range(12)]
    settings = TrainingSettings(
        domain=("rooms",), over=("auto", "proxy"), steps=2, rank=2, batch_size=4, cpu=True,
        library=str(copytree(bundled_root(), tmp_path / "library")),
    )  # fmt: skip
    rows = [replace(row, domain="rooms") for row in rows]
    experiment = Experiment(
        Resolved(settings, dict.fromkeys(settings.flat(), "test")), rows=rows, quiet=True
    )
    (adapter,), _ = experiment.train(
        [experiment.new_adapter("rooms", domain="rooms")], lambda row: 0
    )
    assert {"ru", "uk"} <= {*adapter.info.over}
    proxy = experiment.model.resolve("proxy:pl")
    assert experiment.in_use(rows[0], Blend()) == proxy


def test_a_corpus_that_is_packed_as_it_is_read(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": row.text}) + "\n" for row in ROWS))
    settings = TrainingSettings(language=("auto",), data=str(path), packing=True)
    with pytest.raises(SettingsError, match="packed as it is read"):
        RunRows(settings, (), None, False, print).read()
