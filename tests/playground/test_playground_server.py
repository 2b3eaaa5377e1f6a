"""What the page is told over HTTP is what the model's own methods say."""

import io
import json
import threading
import zipfile

import pytest
from helpers.playground import get, post, raw, served

import adapters_hub as ah
from adapters_hub.errors import SettingsError
from adapters_hub.interpretability import compare
from adapters_hub.playground.server import TOKEN_HEADER, Playground

TEXT = "the room was clean"
BLENDS = [{}, {"de": 1}, {"de": 1, "hotel": -0.5}]
WRITTEN = [None, "de", "de - 0.5*hotel"]


def test_what_there_is(playground, play_model):
    status, said = get(playground, "/api/library")
    assert status == 200
    assert [one["name"] for one in said["adapters"]] == play_model.library.names()
    kinds = {
        one["name"]: (one["kind"], one["language_name"], one["head"]) for one in said["adapters"]
    }
    assert kinds["de"] == ("language", "German", False)
    assert kinds["hotel"] == ("domain", None, False)
    assert kinds["stars"] == ("domain", None, True)
    assert set(said["views"]) == {"continue", "read", "nearest", "classify", "answer", "tag"}
    assert all(said["views"].values())
    assert said["matrix"] == []
    assert said["backbone"]["name"] == "qwen3"
    assert str(play_model.library.root.parent) not in json.dumps(said)


def test_views_follow_the_library(tiny, tmp_path):
    model = ah.load_backbone(str(tiny("bert")), library=tmp_path / "none")
    with served(model, matrix=[{"language": "de"}]) as server:
        _, said = get(server, "/api/library")
        status, error = post(server, "/api/read", {"text": TEXT, "blends": [{}]})
    views = said["views"]
    assert [view for view in views if views[view]] == ["nearest"]
    assert said["matrix"] == [{"language": "de"}]
    assert (status, "next token" in error["error"]) == (400, True)


def test_text_goes_on_as_the_model_writes_it(playground, play_model):
    asked = {"text": TEXT, "blends": BLENDS, "length": 8}
    status, said = post(playground, "/api/continue", asked)
    assert status == 200
    expected = play_model.generate([TEXT] * 3, adapters=WRITTEN, max_new_tokens=8)
    assert [column["text"] for column in said["columns"]] == expected
    assert all(
        piece["bits"] == pytest.approx(piece["bare"]) for piece in said["columns"][0]["pieces"]
    )
    assert any(abs(p["bits"] - p["bare"]) > 0.1 for p in said["columns"][1]["pieces"])
    _, unrepeated = post(playground, "/api/continue", {**asked, "no_repeats": True})
    expected = play_model.generate(
        [TEXT] * 3, adapters=WRITTEN, max_new_tokens=8, no_repeat_ngram_size=3
    )
    assert [column["text"] for column in unrepeated["columns"]] == expected


def test_what_is_drawn_hangs_on_the_seed_alone(playground):
    asked = {"text": TEXT, "length": 8, "temperature": 1.2, "seed": 3}
    _, three = post(playground, "/api/continue", {**asked, "blends": BLENDS})
    _, alone = post(playground, "/api/continue", {**asked, "blends": BLENDS[2:]})
    _, other = post(playground, "/api/continue", {**asked, "blends": BLENDS[2:], "seed": 4})
    assert three["columns"][2]["text"] == alone["columns"][0]["text"] != other["columns"][0]["text"]


def test_an_encoder_decoder_writes_without_colours(tiny, tmp_path):
    model = ah.load_backbone(str(tiny("mt5")), library=tmp_path / "none")
    with served(model) as server:
        _, said = post(server, "/api/continue", {"text": TEXT, "blends": [{}], "length": 5})
    (expected,) = model.generate([TEXT], adapters=[None], max_new_tokens=5)
    assert said["columns"] == [{"text": expected, "pieces": None}]


def test_heads(playground, play_model):
    blends = [{"stars": 1}, {"de": 1, "stars": 0.5}, {"de": 1}]
    _, said = post(playground, "/api/classify", {"text": TEXT, "blends": blends})
    *sound, broken = said["columns"]
    expected = play_model.classify([TEXT] * 2, adapters=["stars", "de + 0.5*stars"])
    for column, labels in zip(sound, expected, strict=True):
        assert {one["label"]: one["score"] for one in column["labels"]} == pytest.approx(
            labels, abs=1e-4
        )
        assert [one["label"] for one in column["labels"]] == list(labels)
    assert "no adapter of 'de' has a task head. In library these" in broken["error"]

    question = "was the room clean"
    asked = {"text": TEXT, "question": question, "blends": [{"asking": 1}], "always": True}
    _, said = post(playground, "/api/answer", asked)
    (found,) = play_model.answer([question], [TEXT], adapters=["asking"], no_answer=None)
    (span,) = said["columns"][0]["spans"]
    assert (span["start"], span["end"], said["columns"][0]["text"]) == (
        found.start,
        found.end,
        found.text,
    )

    _, said = post(playground, "/api/tag", {"text": TEXT, "blends": [{"names": 1}]})
    (entities,) = play_model.tag([TEXT], adapters=["names"])
    shown = [(s["start"], s["end"], s["label"]) for s in said["columns"][0]["spans"]]
    assert shown == [(e.start, e.end, e.label) for e in entities]


def test_nearest_texts(playground, play_model):
    others = ["staff rude and slow", "the room was quiet", "lovely view"]
    _, said = post(
        playground, "/api/nearest", {"text": TEXT, "texts": [*others, " "], "blends": [{"de": 1}]}
    )
    vectors = play_model.embed([TEXT, *others], adapters="de")
    expected = dict(zip(others, (vectors[1:] @ vectors[0]).tolist(), strict=True))
    ranked = said["columns"][0]["texts"]
    assert {one["text"]: one["cosine"] for one in ranked} == pytest.approx(expected, abs=1e-5)
    assert [one["text"] for one in ranked] == sorted(expected, key=lambda text: -expected[text])


def test_profile_is_that_of_compare(playground, play_model):
    _, said = post(playground, "/api/profile", {"first": "de", "second": "hotel"})
    report = compare(play_model, "de", "hotel")
    assert [depth["depth"] for depth in said["depths"]] == list(report.depths)
    assert said["total"]["cosine"] == pytest.approx(report.total.cosine, abs=1e-5)
    assert said["verdict"].startswith("de and hotel")


@pytest.mark.parametrize("form", ["folder", "file"])
def test_an_export_is_the_blend(playground, play_model, tmp_path, form):
    asked = json.dumps({"blend": {"de": 1, "hotel": 0.5}, "name": "both", "format": form})
    headers = {"Content-Type": "application/json", TOKEN_HEADER: playground.token}
    status, said, content = raw(playground, "POST", "/api/export", asked, headers)
    assert status == 200
    if form == "folder":
        assert said["Content-Disposition"] == "attachment; filename*=UTF-8''both.zip"
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert sorted(archive.namelist())[1:] == [
                "both/adapter_config.json",
                "both/adapter_model.safetensors",
            ]
            archive.extractall(tmp_path)
        source = tmp_path / "both"
    else:
        source = tmp_path / "both.safetensors"
        source.write_bytes(content)
    library = ah.Library(tmp_path / "library")
    library.add(source, name="both")
    model = ah.load_backbone(play_model.backbone.name, library=library)
    expected = play_model.embed([TEXT], adapters="de + 0.5*hotel")
    assert (model.embed([TEXT], adapters="both") - expected).abs().max() < 1e-5


def test_several_people_each_see_their_blend(playground, play_model):
    blends = [{"de": weight / 4} for weight in range(-4, 5)]
    found = [None] * len(blends)

    def ask(place):
        found[place] = post(playground, "/api/read", {"text": TEXT, "blends": [blends[place]]})[1]

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(blends))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for blend, said in zip(blends, found, strict=True):
        _, alone = post(playground, "/api/read", {"text": TEXT, "blends": [blend]})
        assert said["columns"][0]["bits"] == pytest.approx(alone["columns"][0]["bits"], rel=1e-5)
    assert not play_model.active


@pytest.mark.parametrize(
    ("path", "data", "status", "words"),
    [
        ("read", {"text": " ", "blends": [{}]}, 400, "it is empty"),
        ("read", {"text": "a" * 20_001, "blends": [{}]}, 400, "give 20000 at most"),
        ("read", {"text": TEXT, "blends": []}, 400, "1 to 8 blends"),
        ("read", {"text": TEXT, "blends": [{}] * 9}, 400, "1 to 8 blends"),
        ("read", {"text": TEXT, "blends": [{"fr": 1}]}, 404, "no adapter is called 'fr'"),
        ("read", {"text": TEXT, "blends": [{"de": "1"}]}, 400, "is not a number"),
        ("read", {"text": TEXT, "blends": [{"de": 11}]}, 400, "within ±10"),
        ("read", [1], 400, "a JSON object"),
        ("continue", {"text": TEXT, "blends": [{}], "length": 1000}, 400, "between 1 and 256"),
        ("continue", {"text": TEXT, "blends": [{}], "length": 1.5}, 400, "whole number"),
        ("continue", {"text": TEXT, "blends": [{}], "seed": True}, 400, "a number is needed"),
        ("continue", {"text": TEXT, "blends": [{}], "no_repeats": 1}, 400, "true or false"),
        ("nearest", {"text": TEXT, "texts": ["", " "], "blends": [{}]}, 400, "it is empty"),
        ("nearest", {"text": TEXT, "texts": ["a"] * 201, "blends": [{}]}, 400, "200 at most"),
        ("export", {"blend": {}, "name": "x"}, 400, "all weights are 0"),
        ("export", {"blend": {"de": 1}, "name": "x", "method": "pickle"}, 400, "choose one of"),
        ("nothing", {}, 404, "nothing at this address"),
    ],
)
def test_what_cannot_be_is_said(playground, path, data, status, words):
    found, said = post(playground, f"/api/{path}", data)
    assert (found, words in said["error"]) == (status, True), said


def test_a_bug_is_no_silence(playground, monkeypatch, caplog):
    def broken(model, request):
        raise ZeroDivisionError("by zero")

    monkeypatch.setitem(
        __import__("adapters_hub.playground.server").playground.server.VIEWS, "read", broken
    )
    status, said = post(playground, "/api/read", {})
    assert (status, said["error"]) == (500, "ZeroDivisionError: by zero")
    assert "Traceback" in caplog.text


def test_a_port_that_is_taken(playground, play_model):
    with pytest.raises(SettingsError, match="cannot be listened at"):
        Playground(play_model, port=playground.server_address[1])
