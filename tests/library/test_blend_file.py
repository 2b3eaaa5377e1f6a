"""Blend files: what is written is read again, and nothing else is."""

import json
import os
from dataclasses import replace

import pytest

from adapters_hub.errors import BackboneMismatchError, BlendError, BlendFileError
from adapters_hub.library.blend_file import MAX_WEIGHT, BlendFile, BlendTerm
from adapters_hub.library.layers import layer_of, layers_of

HASH = "sha256:" + "0" * 64
FILE = BlendFile(
    terms=(BlendTerm("da", HASH, 0.9), BlendTerm("hotel", None, (1.1, -0.25))),
    backbone="starter",
    fingerprint="qwen3-2L-32-0123456789abcdef",
    layers=("layers.0", "layers.1"),
    method="gradient",
    task="language-modeling",
    rows=8,
    seed=0,
    loss_before=2.5,
    loss_after=2.25,
)


def test_what_is_written_is_read_again(tmp_path):
    path = FILE.write(tmp_path / "new" / "hotel-da.blend.json")
    found = BlendFile.read(path)
    assert found == replace(FILE, name="hotel-da")
    assert found.digest == FILE.digest != replace(FILE, seed=1).digest
    assert os.listdir(path.parent) == ["hotel-da.blend.json"]
    text = json.loads(path.read_text())
    assert (text["format"], text["version"]) == ("adapters_hub.blend", 1)
    assert text["terms"][1] == {"name": "hotel", "hash": None, "weight": [1.1, -0.25]}
    path.write_text(json.dumps({**text, "of a later version": [1]}))
    assert BlendFile.read(path) == found


@pytest.mark.parametrize(
    ("file", "name"),
    [("a.blend.json", "a"), ("my blend (2).json", "my-blend-2"), ("…", "blend"), ("å", "å")],
)
def test_its_name_can_be_a_part_of_a_term(tmp_path, file, name):
    (tmp_path / file).write_bytes(FILE.write(tmp_path / "x.blend.json").read_bytes())
    assert BlendFile.read(tmp_path / file).name == name


def test_where_it_cannot_be_written(tmp_path):
    with pytest.raises(BlendFileError, match=r"ends with \.blend\.json"):
        FILE.write(tmp_path / "blend.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(BlendFileError, match="cannot be written"):
        FILE.write(tmp_path / "file" / "a.blend.json")
    (tmp_path / "taken.blend.json").mkdir()
    with pytest.raises(BlendFileError, match="cannot be written"):
        FILE.write(tmp_path / "taken.blend.json")
    assert sorted(os.listdir(tmp_path)) == ["file", "taken.blend.json"]


def test_layers_are_counted_in_each_stack():
    sites = [
        "encoder.block.0.layer.0.q",
        "encoder.block.10.layer.1.wi",
        "decoder.block.0.layer.2.k",
    ]
    assert layers_of([*sites, "lm_head", *sites]) == (
        "encoder.block.0", "encoder.block.10", "decoder.block.0",
    )  # fmt: skip
    assert layer_of("pooler.dense") is None
    assert FILE.weight_at(FILE.terms[1], "layers.1.mlp.up") == -0.25
    assert FILE.weight_at(FILE.terms[1], "pooler.dense") == pytest.approx(0.425)
    assert FILE.weight_at(FILE.terms[0], "layers.1.mlp.up") == 0.9


def test_another_backbone_or_adapter_is_said():
    with pytest.raises(BackboneMismatchError, match="0123456789abcdef"):
        FILE.check_backbone("other", "qwen3-2L-32-fedcba9876543210")
    with pytest.raises(BackboneMismatchError, match=r"for 2 layers, to layers\.1.*has 0, to none"):
        FILE.check_layers(())
    with pytest.raises(BlendFileError, match="'da' is not the one"):
        FILE.check_hash(FILE.terms[0], "sha256:" + "1" * 64)
    with pytest.raises(BlendFileError, match="check_hashes=False"):
        FILE.check_hash(FILE.terms[0], None)
    FILE.check_hash(FILE.terms[1], HASH)


def changed(**fields):
    return json.dumps({**FILE.to_json(), **fields})


def with_term(**fields):
    return changed(terms=[{"name": "da", "hash": HASH, "weight": 1.0, **fields}])


TEXT = changed()
HOSTILE = {
    "empty": ("", "not JSON"),
    "a list": ("[]", "one JSON object"),
    "not UTF-8": (b"\xff\xfe", "not JSON"),
    "deep": ("[" * 200_000, "not JSON"),
    "deep field": (TEXT[:-1] + ', "layers": ' + "[" * 500 + "]" * 500 + "}", "'layers' occurs twice"),
    "deep layer": (changed(layers=["L"]).replace('"L"', "[" * 500 + "]" * 500), r"layers\[0\]"),
    "large": (TEXT + " " * 5_000_000, "larger than"),
    "a field twice": (TEXT.replace('"seed": 0', '"seed": 0, "seed": 1'), "'seed' occurs twice"),
    "no format": (changed(format=None), "'format'"),
    "another format": (changed(format="safetensors"), "'format': 'safetensors'"),
    "no version": (changed(version="1"), "'version'"),
    "a truth as version": (changed(version=True), "'version'"),
    "a newer version": (changed(version=2), "'version': 2 is newer"),
    "a huge version": (changed(version=10**300), "'version': a huge number"),
    "no terms": (changed(terms=[]), "'terms'"),
    "terms as text": (changed(terms="da"), "'terms'"),
    "too many terms": (changed(terms=[{}] * 1001), "'terms': a list of 1001"),
    "a term as text": (changed(terms=["da"]), r"'terms\[0\]'"),
    "a term without weight": (changed(terms=[{"name": "da", "hash": HASH}]), r"'terms\[0\]'"),
    "a name as number": (with_term(name=1), r"'terms\[0\]\.name'"),
    "a name as path": (with_term(name="../da"), r"'terms\[0\]\.name': '\.\./da'"),
    "a name of two terms": (with_term(name="da + de"), r"'terms\[0\]\.name'"),
    "a control character": (with_term(name="da\x1b[2J"), r"'terms\[0\]\.name': 'da\\x1b"),
    "half a surrogate": (with_term(name="da").replace('"da"', '"\\ud800"'), r"'terms\[0\]\.name'"),
    "a long name": (with_term(name="d" * 5000), r"'terms\[0\]\.name'"),
    "a name twice": (changed(terms=[FILE.to_json()["terms"][0]] * 2), "'terms'.*twice"),
    "a hash as number": (with_term(hash=1), r"'terms\[0\]\.hash'"),
    "a short hash": (with_term(hash="sha256:00"), r"'terms\[0\]\.hash'"),
    "a weight as text": (with_term(weight="1"), r"'terms\[0\]\.weight'"),
    "a weight as truth": (with_term(weight=True), r"'terms\[0\]\.weight'"),
    "no weight": (with_term(weight=None), r"'terms\[0\]\.weight'"),
    "NaN": (with_term(weight=float("nan")), "NaN is no JSON number"),
    "infinity": (with_term(weight=float("-inf")), "-Infinity is no JSON number"),
    "1e999": (with_term(weight=1.0).replace("1.0", "1e999"), r"'terms\[0\]\.weight'"),
    "a large weight": (with_term(weight=MAX_WEIGHT * 2), r"'terms\[0\]\.weight': 2000\.0"),
    "a huge weight": (with_term(weight=10**400), r"'terms\[0\]\.weight': a huge number"),
    "digits without end": (with_term(weight=1.0).replace("1.0", "9" * 10_000), "not JSON"),
    "too few weights": (with_term(weight=[1.0]), r"'terms\[0\]\.weight': 1 weights for 2"),
    "no weights": (with_term(weight=[]), r"'terms\[0\]\.weight': 0 weights"),
    "a list in a list": (with_term(weight=[1.0, [2.0]]), r"'terms\[0\]\.weight\[1\]'"),
    "layers as text": (changed(layers="layers"), "'layers'"),
    "a layer as number": (changed(layers=[0, 1]), r"'layers\[0\]'"),
    "a layer twice": (changed(layers=["a", "a"]), "'layers': a layer occurs twice"),
    "no backbone": (changed(backbone=None), "'backbone'"),
    "a fingerprint as list": (changed(fingerprint=["x"]), "'fingerprint': a list of 1"),
    "a method as number": (changed(method=5), "'method'"),
    "an empty task": (changed(task=""), "'task'"),
    "rows below nothing": (changed(rows=-1), "'rows'"),
    "rows as fraction": (changed(rows=1.5), "'rows'"),
    "a huge seed": (changed(seed=10**30), "'seed': a huge number"),
    "a loss as text": (changed(loss_after="2"), "'loss_after'"),
    "a loss too large": (changed(loss_before=1).replace('before": 1', 'before": 1e999'), "'loss_b"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused(tmp_path, content, message):
    path = tmp_path / "bad.blend.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BlendFileError, match=message) as caught:
        BlendFile.read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))
    assert str(caught.value).isprintable()
    assert isinstance(caught.value, BlendError)


@pytest.mark.parametrize("field", ["terms", "backbone", "fingerprint", "format", "version"])
def test_a_missing_field_is_named(tmp_path, field):
    data = FILE.to_json()
    del data[field]
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(BlendFileError, match=f"'{field}'"):
        BlendFile.read(tmp_path / "a.json")


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.blend.json", "a\0b"):
        with pytest.raises(BlendFileError):
            BlendFile.read(path)
    os.mkfifo(tmp_path / "pipe.blend.json")
    with pytest.raises(BlendFileError, match="not a regular file"):
        BlendFile.read(tmp_path / "pipe.blend.json")


def test_a_value_is_checked_like_a_file():
    assert replace(FILE, terms=(BlendTerm("da", None, 1),)).terms[0].weight == 1.0
    for fields in ({"name": "a b"}, {"terms": ("da",)}, {"loss_after": float("nan")}, {"rows": -1}):
        with pytest.raises(BlendFileError):
            replace(FILE, **fields)
