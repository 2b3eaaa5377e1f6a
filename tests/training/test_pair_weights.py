"""The weight of a language adapter beside another one: measured, kept with that, and used."""

import json
import math
from dataclasses import replace

import pytest
from conftest import TEXTS
from helpers import in_threads

import adapters_hub as ah
from adapters_hub.cli import main
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError
from adapters_hub.library.adapter_file import AdapterInfo, read_adapter
from adapters_hub.library.composition import weight_beside
from adapters_hub.library.pair_weight import PairWeight
from adapters_hub.tasks.classification import Classification
from adapters_hub.training.pair_weights import WEIGHTS, measure_pair

LABELS = ("LABEL_0", "LABEL_1", "LABEL_2")
ROWS = [Row(f"{text} {n}", label=LABELS[n % 3], language="de") for n, text in enumerate(TEXTS * 2)]
PAIR = PairWeight(0.5, "sha256:1", "matching", "macro-F1", 0.4, 0.6, 99)


@pytest.fixture
def model(tiny, tmp_path, lora_folder):
    """A language adapter ``de`` and a domain adapter ``hotel`` with a head."""
    library = ah.Library(tmp_path / "library")
    backbone = str(tiny("bert"))
    library.add(lora_folder("bert", "de", lora_alpha=8), language="de", backbone=backbone)
    library.add(
        lora_folder("bert", "hotel", labels=3, lora_alpha=8), domain="hotel", backbone=backbone
    )
    return ah.load_backbone(backbone, library=library)


def loss(model, blend):
    probabilities = model.classify([row.text for row in ROWS], blend)
    return -sum(math.log(p[row.label]) for p, row in zip(probabilities, ROWS, strict=True))


def test_the_weight_is_the_one_with_the_least_loss(model):
    losses = {weight: loss(model, f"{weight}*de + hotel") for weight in WEIGHTS}
    best = min(losses, key=losses.get)
    measured = measure_pair(model, "de", "hotel", Classification(LABELS), ROWS)
    assert measured.weight == best
    assert measured.rows == len(ROWS)
    assert measured.hash == model.library["de"].hash


def test_an_adapter_that_only_hurts_has_weight_0(model):
    adapter = model.resident("de")
    pairs = {}
    for sign in (-1, 1):  # so small that the loss is linear: one way is up, the other one down
        info = replace(adapter.info, name=f"small{sign}")
        scaling = {site: sign * 0.01 * value for site, value in adapter.scaling.items()}
        model.add(replace(adapter, info=info, scaling=scaling))
        pairs[sign] = measure_pair(model, info.name, "hotel", Classification(LABELS), ROWS)
    assert {pair.weight for pair in pairs.values()} == {0.0, 1.0}
    hurts = min(pairs.values(), key=lambda pair: pair.weight)
    assert hurts.together == hurts.alone


def test_without_rows_nothing_is_measured(model):
    with pytest.raises(DataError, match="no rows to measure de beside hotel on"):
        measure_pair(model, "de", "hotel", Classification(LABELS), [])


def test_what_is_kept_is_used_by_load_and_by_languages(model, caplog):
    before = read_adapter(model.library.root / "hotel")
    info = model.library.keep_pair_weight(
        "hotel", "de", replace(PAIR, hash=model.library["de"].hash)
    )
    assert info.pair_weights["de"].weight == 0.5
    assert info.hash == before.info.hash
    assert "| de | 0.5 | macro-F1 | 0.4 | 0.6 | 99 |" in (
        model.library.root / "hotel" / "README.md"
    ).read_text(encoding="utf-8")

    loaded = ah.load("de", domain="hotel", library=model.library)
    assert loaded.active == ah.Blend([("de", 0.5), ("hotel", 1.0)], exact=True)
    assert "de has weight 0.5: measured with hotel: macro-F1 0.4 without it" in caplog.text
    texts = [row.text for row in ROWS[:3]]
    assert loaded.classify(texts) == loaded.classify(texts, "0.5*de + hotel")
    by_language = loaded.classify(texts, "hotel", languages=["de", None, "de"])
    mixed = loaded.classify(texts, ["0.5*de + hotel", "hotel", "0.5*de + hotel"])
    assert by_language == mixed
    assert loaded.classify(texts, "de + hotel") != loaded.classify(texts)  # as it is written


def test_pairs_that_are_kept_at_once_are_all_kept(model):
    pairs = {f"l{n}": replace(PAIR, weight=n / 4) for n in range(4)}
    for name in pairs:
        model.library.add(model.library.root / "de", name=name)

    def keep(name):
        ah.Library(model.library.root).keep_pair_weight("hotel", name, pairs[name])

    in_threads(keep, list(pairs))
    assert model.library["hotel"].pair_weights == pairs
    assert model.library.verify("hotel") == []


def test_weight_0_leaves_the_language_adapter_out(model):
    pair = replace(PAIR, weight=0.0, hash=model.library["de"].hash)
    model.library.keep_pair_weight("hotel", "de", pair)
    loaded = ah.load("de", domain="hotel", library=model.library)
    assert loaded.active == ah.Blend([("hotel", 1.0)], exact=True)
    assert [str(b) for b in loaded.blends(1, "hotel", "de")] == ["hotel"]


def test_a_blend_that_is_written_keeps_its_weights(model):
    model.library.keep_pair_weight("hotel", "de", replace(PAIR, hash=model.library["de"].hash))
    loaded = ah.load("0.25*de", domain="hotel", library=model.library)
    assert dict(loaded.active.weights) == {"de": 0.25, "hotel": 1.0}


def test_an_adapter_that_was_replaced_is_not_the_one_that_was_measured(model, lora_folder, tiny):
    model.library.keep_pair_weight("hotel", "de", replace(PAIR, hash=model.library["de"].hash))
    assert model.residents.weight_beside("de", model.resolve("hotel")) == 0.5
    model.library.add(
        lora_folder("bert", "other", lora_alpha=8),
        name="de",
        language="de",
        backbone=str(tiny("bert")),
        replace_existing=True,
    )
    assert model.residents.weight_beside("de", model.resolve("hotel")) == 1.0


def test_what_decides_in_which_order():
    de = AdapterInfo("de", language="de", task="matching", hash="sha256:1")
    hotel = AdapterInfo("hotel", domain="hotel", task="classification")

    def weight(language, **changes):
        return weight_beside(language, [replace(hotel, **changes)]).weight

    assert weight_beside(de, []).weight == 1
    assert weight(de) == 1
    assert weight(de, pair_weights={"de": PAIR}) == 0.5
    assert weight(de, pair_weights={"de": replace(PAIR, hash="sha256:2")}, over=("fr",)) == 1
    fr = replace(PAIR, weight=0.25, hash="sha256:3")
    assert weight(de, pair_weights={"fr": fr, "sv": PAIR}) == 0.375
    assert weight(de, pair_weights={"fr": replace(fr, task="retrieval")}) == 1
    pairs = replace(de, task="retrieval")
    assert weight(pairs) == 0
    assert weight(pairs, task="retrieval") == weight(pairs, task=None) == 1
    assert weight(pairs, over=("fr",)) == 1
    two = [hotel, replace(hotel, name="bank", pair_weights={"de": PAIR})]
    assert weight_beside(de, two).weight == 0.5


@pytest.mark.parametrize(
    "damage",
    [
        {"de": 3},
        {"de": {"weight": "0.5"}},
        {"de": {**vars(PAIR), "weight": math.inf}},
        {"de": {**vars(PAIR), "metric": 7}},
        {"de": {**vars(PAIR), "task": "a\nb"}},
        {"de": {key: value for key, value in vars(PAIR).items() if key != "rows"}},
        ["de"],
    ],
)
def test_damaged_pairs_are_refused(damage):
    with pytest.raises((TypeError, ValueError)):
        AdapterInfo.from_json({"name": "hotel", "pair_weights": damage})


def test_a_field_of_a_newer_version_is_left_out():
    data = {"name": "hotel", "pair_weights": {"de": {**vars(PAIR), "seen": "later"}}}
    info = AdapterInfo.from_json(data)
    assert info.pair_weights == {"de": PAIR}
    assert AdapterInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


def test_the_command_stores_what_it_measured(model, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in ROWS),
        encoding="utf-8",
    )
    library = ["--library", str(model.library.root)]
    command = ["fit", "de + hotel", "--store", "--data", str(data), *library]
    assert main(command) == 0
    kept = ah.Library(model.library.root)["hotel"].pair_weights["de"]
    said = capsys.readouterr().out
    assert f"de beside hotel: {kept}" in said
    assert main(["fit", "de", *command[2:]]) == 1
    assert "--store takes a language and another adapter" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "-o", str(tmp_path / "x.blend.json")])
