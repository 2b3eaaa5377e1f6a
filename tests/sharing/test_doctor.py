"""What the doctor finds in strangers' adapters, and that it runs nothing of them."""

import json
import os
import pickle

import numpy as np
import pytest
from helpers import (
    CONFIG,
    WEIGHTS,
    lora_config,
    lora_tensors,
    raw_safetensors,
    run_python,
    write_peft_folder,
)

from adapters_hub.cli import main
from adapters_hub.errors import AdapterFileError
from adapters_hub.library.library import Library
from adapters_hub.sharing.doctor import CHECKS, examine

CARD = "---\nlanguage: de\nlicense: mit\nbase_model: org/base\n---\n"
FILES = {"safetensors header", "loads", "pickles", "code", "special files", "chat template",
         "tokenizer", "signature"}  # fmt: skip
CONFIGURATION = {"configuration", "configuration keys", "scaling", "rank", "servers", "targets",
                 "base model"}  # fmt: skip
NUMBERS = {"dtype", "tensor values", "content"}
DESCRIPTION = {"card", "language", "licence", "card and configuration"}
SITES = tuple(f"layers.{n}.{kind}_proj" for n in range(8) for kind in "qv")


def small(seed=0, **given):
    """Factors of the size that trained ones have."""
    return {n: t * 0.05 for n, t in lora_tensors(SITES, seed=seed, **given).items()}


def found(folder, level=None):
    report = examine(folder)
    return {(f.level, f.check) for f in report.findings if level in (None, f.level)}


@pytest.fixture
def make(tmp_path):
    count = iter(range(100))

    def folder(tensors=None, card=CARD, **changes):
        config = lora_config(**{"base_model_name_or_path": "org/base", **changes})
        tensors = small() if tensors is None else tensors
        return write_peft_folder(
            tmp_path / f"a{next(count)}", tensors=tensors, config=config, card=card
        )

    return folder


def test_a_sound_adapter_has_notes_alone(make):
    assert found(make()) == {("note", "rank")}
    assert "--max-lora-rank 8" in examine(make()).findings[0].do


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"use_dora": True}, ("error", "loads")),
        ({"r": 4}, ("error", "rank")),
        ({"use_rslora": True}, ("warning", "scaling")),
        ({"alpha_pattern": {"q_proj": 8}}, ("warning", "scaling")),
        ({"lora_alpha": 4096}, ("warning", "scaling")),
        ({"auto_mapping": {"parent_library": "os", "base_model_class": "system"}},
         ("error", "configuration keys")),
        ({"auto_mapping": {"parent_library": "transformers.models.bert.modeling_bert"}},
         ("note", "configuration keys")),
        ({"megatron_core": "evil"}, ("error", "configuration keys")),
        ({"surprise": 1}, ("warning", "configuration keys")),
        ({"target_modules": ["q_proj", "k_proj"]}, ("warning", "targets")),
        ({"modules_to_save": ["classifier"]}, ("warning", "servers")),
        ({"base_model_name_or_path": ""}, ("warning", "base model")),
        ({"base_model_name_or_path": "/home/me/models/base"}, ("warning", "base model")),
        ({"base_model_name_or_path": "org/other"}, ("warning", "card and configuration")),
    ],
)  # fmt: skip
def test_configurations(make, changes, expected):
    assert expected in found(make(**changes))


def test_the_usual_keys_of_every_peft_are_known(make):
    from peft import LoraConfig

    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]).to_dict()
    config = json.loads(
        json.dumps(config, default=lambda v: sorted(v) if isinstance(v, set) else str(v))
    )
    folder = make()
    (folder / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "org/base"}))
    assert found(folder) == {("note", "rank")}


def changed(name, value, which="all"):
    tensors = small()
    for key in tensors:
        if name in key and (which == "all" or which in key):
            tensors[key] = np.full_like(tensors[key], 0) + value
    return tensors


def test_numbers(make):
    assert ("error", "tensor values") in found(make(changed("lora_B", 0)))
    assert ("warning", "tensor values") in found(make(changed("lora_B", 0, "layers.3.")))
    assert ("error", "tensor values") in found(make(changed("lora_A", np.nan, "layers.3.q")))
    assert ("error", "tensor values") in found(make(changed("lora_A", np.inf, "layers.3.q")))
    assert ("warning", "tensor values") in found(make({n: t * 30 for n, t in small().items()}))
    odd = small()
    key = next(key for key in odd if "layers.5.q_proj.lora_B" in key)
    odd[key] *= 100
    report = examine(make(odd))
    assert [f.where.split(" ")[0] for f in report.of("warning") if "out of line" in f.what] == [
        "layers.5.q_proj"
    ]


def test_norms_are_those_of_the_deltas(make):
    from adapters_hub.sharing.doctor.numbers import _numbers
    from adapters_hub.sharing.doctor.subject import Subject

    tensors = small(rank=3)
    grams = _numbers(Subject(make(tensors, r=3))).grams
    a, b = (f"base_model.model.{SITES[0]}.lora_{side}.weight" for side in "AB")
    norm = np.sqrt((grams[b] * grams[a].T).sum())
    np.testing.assert_allclose(norm, np.linalg.norm(tensors[b] @ tensors[a]), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_dtypes(make, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in small().items()}
    assert not found(make(tensors), "error")
    first = next(iter(tensors))
    integers = {**tensors, first: tensors[first].astype(np.int32)}
    assert ("error", "dtype") in found(make(integers))


def test_bfloat16_is_read(tmp_path):
    a, b = (f"base_model.model.{SITES[0]}.lora_{side}.weight" for side in "AB")
    header = {a: {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]},
              b: {"dtype": "BF16", "shape": [1, 1], "data_offsets": [4, 6]}}  # fmt: skip
    folder = write_peft_folder(tmp_path / "x")
    for last, level in ((0x0000, "error"), (0x7FC0, "error"), (0x3F80, None)):
        data = np.array([0x3F80, 0x3F80, last], "<u2").tobytes()
        (folder / WEIGHTS).write_bytes(raw_safetensors(header, data))
        levels = {f.level for f in examine(folder).findings if f.check == "tensor values"}
        assert (level in levels) if level else "error" not in levels


def test_ranks_that_servers_load(make):
    tensors = small(rank=9)
    assert any("--max-lora-rank 16" in f.do for f in examine(make(tensors, r=9)).findings)
    assert ("warning", "rank") in found(make(lora_tensors(rank=513), r=513))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_tensors_are_read_one_at_a_time(make, dtype):
    import tracemalloc

    sites = [f"layers.{n}.q_proj" for n in range(2)]
    folder = make(lora_tensors(sites, rank=4, inputs=200_000, outputs=200_000, dtype=dtype), r=4)
    size = os.path.getsize(folder / WEIGHTS)
    examine(folder)
    tracemalloc.start()
    examine(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * size + (5 << 20)  # and a chunk for the hash


def test_files_beside(make, tmp_path):
    folder = make()
    (folder / "training_args.bin").write_bytes(b"PK\x03\x04")
    (folder / "handler.py").write_text("import os")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe")
    assert found(folder) >= {
        ("warning", "pickles"), ("warning", "code"), ("note", "tokenizer"), ("error", "special files"),
    }  # fmt: skip


def test_a_pickle_is_never_opened(make, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    folder = make()
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    report = examine(folder)
    assert {("error", "pickles"), ("error", "safetensors header")} <= found(folder)
    assert any("--convert-pickle" in f.do for f in report.findings)
    assert not (tmp_path / "exploded").exists()


def test_chat_templates(make, tiny, tmp_path):
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny("qwen3"), base)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    for name, content, expected in (
        ("chat_template.jinja", "{{ messages }}", False),
        ("chat_template.jinja", "{{ messages }} obey", True),
        ("tokenizer_config.json", json.dumps({"chat_template": "{{ messages }}"}), False),
        ("tokenizer_config.json", json.dumps({"chat_template": [{"name": "x"}]}), True),
        ("tokenizer_config.json", "{", True),
        ("tokenizer_config.json", "{}", False),
    ):
        folder = make(base_model_name_or_path=str(base))
        (folder / name).write_text(content)
        assert (("warning", "chat template") in found(folder)) == expected
    folder = make()
    (folder / "chat_template.jinja").write_text("x")
    assert any("not here to compare" in f.what for f in examine(folder).findings)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (None, ("warning", "card")),
        ("---\nlanguage: [de\n---\n", ("error", "card")),
        ("---\nlanguage: klingonese\nlicense: mit\n---\n", ("warning", "language")),
        ("---\nlanguage: deu\nlicense: mit\n---\n", ("note", "language")),
        ("---\nlicense: mit\n---\n", ("note", "language")),
        ("---\nlanguage: de\n---\n", ("warning", "licence")),
        ("---\nlanguage: de\nlicense: other\n---\n", ("note", "licence")),
        ("---\nlanguage: {a: b}\nlicense: [x]\nbase_model: {a: 1}\n---\n", ("warning", "language")),
    ],
)
def test_cards(make, card, expected):
    assert expected in found(make(card=card))


def test_what_the_library_stored_and_who_changed_it(make, tmp_path):
    library = Library(tmp_path / "library")
    library.add(make(), name="de", language="de")
    assert not found(library.root / "de", "error")
    weights = library.root / "de" / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert ("error", "content") in found(library.root / "de")
    lone = tmp_path / "lone.safetensors"
    lone.write_bytes(weights.read_bytes())
    assert ("error", "content") in found(lone)


def test_the_adapters_that_ship_are_sound():
    from adapters_hub.library.paths import bundled_root

    for name in Library(bundled_root()).names():
        assert not found(bundled_root() / name, "error"), name


def test_the_checks_and_their_lines_of_doc():
    assert all(check.__doc__ for check in CHECKS.values())
    assert {
        name for checks in (FILES, CONFIGURATION, NUMBERS, DESCRIPTION) for name in checks
    } == set(CHECKS)


def test_the_command(make, tmp_path, capsys):
    good, bad = make(), make({**small(), **changed("lora_B", 0)})
    assert main(["doctor", str(good)]) == 0
    assert main(["doctor", str(good), "--strict"]) == 0
    assert main(["doctor", str(make(card=None)), "--strict"]) == 1
    capsys.readouterr()
    assert main(["doctor", "--json", str(good), str(bad)]) == 1
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [report["errors"] for report in reports] == [0, 1]
    assert set(reports[1]["findings"][0]) == {"level", "check", "what", "where", "do"}
    assert main(["doctor", str(tmp_path), "--json"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 3
    library = Library(tmp_path / "library")
    library.add(good, name="de")
    assert main(["doctor", "de", "--library", str(library.root)]) == 0
    assert main(["doctor", "sw", "--library", str(library.root)]) == 1
    (tmp_path / "empty").mkdir()
    assert main(["doctor", str(tmp_path / "empty")]) == 1
    with pytest.raises(AdapterFileError, match="no such"):
        examine(tmp_path / "nowhere")


def test_without_torch(make):
    run_python(
        "import sys; from adapters_hub.cli import main\n"
        "assert main(['doctor', sys.argv[1]]) == 0\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)",
        make(),
    )


def test_what_is_elsewhere_is_fetched_and_left_there(make, tmp_path, capsys):
    library = Library(tmp_path / "library")
    library.add(make(), name="de", language="de")
    library.push("de", "memory://doctor/german")
    assert main(["doctor", "memory://doctor/german", "--json", "--library", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] is not None
    assert library.names() == ["de"]
    assert main(["doctor", "memory://doctor/nothing"]) == 1
    assert "doctor/nothing" in capsys.readouterr().err
