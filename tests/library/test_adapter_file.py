import json
import math

import numpy as np
import pytest
import yaml
from helpers import CONFIG, SITES, WEIGHTS, lora_config, lora_tensors, write_peft_folder
from safetensors.numpy import save_file

from adapters_hub.errors import AdapterFileError, UnsupportedAdapterError
from adapters_hub.library.adapter_file import AdapterInfo, LoraSpec, metadata, read_adapter
from adapters_hub.library.library import Library
from adapters_hub.library.model_card import read_front_matter, write_card
from adapters_hub.library.origin import Origin
from adapters_hub.library.pair_weight import PairWeight
from adapters_hub.library.results import Result

STEMS = [f"base_model.model.{site}" for site in SITES]
FULL = AdapterInfo(
    name="de-hotel",
    language="de",
    domain="hotel",
    task="classification",
    labels=("schlecht", "gut"),
    problem_type="single_label_classification",
    pipeline_tag="text-classification",
    pooling="mean",
    prompts={"query": "q: "},
    backbone="org/model",
    revision="main",
    fingerprint="tiny-2L-8-0123456789abcdef",
    over=("de",),
    pair_weights={"de": PairWeight(0.5, "sha256:1", "matching", "macro-F1", 0.4, 0.6, 99)},
    license="cc-by-4.0",
    description="Hotel reviews: größer | besser.",
    metrics={"accuracy": 0.91, "macro_f1": 0.9},
    results=(Result("accuracy", 0.91, "org/data", "de", "hotel", "dev", 99, "de + hotel", "all"),),
    datasets=("org/data",),
    origin=Origin("hf://user/repo", "0" * 40),
    trained_with="accelerate launch recipes/lora_domain.py --domain hotel",
    rank=2,
    sites=2,
    parameters=40,
    bytes=320,
    hash="sha256:00",
)


def test_a_plain_peft_folder(tmp_path):
    config = lora_config(base_model_name_or_path="org/model", task_type="SEQ_CLS")
    files = read_adapter(write_peft_folder(tmp_path / "mine", config=config))
    info = files.info
    assert (info.name, info.backbone, info.task) == ("mine", "org/model", "classification")
    assert (info.language, info.domain, info.labels, info.hash) == (None, None, None, None)
    assert (info.rank, info.sites, info.parameters) == (2, 2, 2 * (2 * 6 + 4 * 2))
    assert info.bytes == (tmp_path / "mine" / WEIGHTS).stat().st_size
    assert info.path == str(tmp_path / "mine")
    assert set(files.modules) == set(SITES)
    assert files.modules[SITES[0]] == (f"{STEMS[0]}.lora_A.weight", f"{STEMS[0]}.lora_B.weight")
    assert files.head == {}
    assert read_adapter(tmp_path / "mine", "other").info.name == "other"


def test_the_rank_is_the_largest(tmp_path):
    tensors = lora_tensors(SITES[:1], rank=2) | lora_tensors(SITES[1:], rank=5)
    assert read_adapter(write_peft_folder(tmp_path / "x", tensors=tensors)).info.rank == 5


def test_an_older_peft_names_the_adapter_in_its_keys(tmp_path):
    tensors = {k.replace(".weight", ".default.weight"): v for k, v in lora_tensors().items()}
    files = read_adapter(write_peft_folder(tmp_path / "x", tensors=tensors))
    assert set(files.modules) == set(SITES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias='all'"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "bias on lora_B"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"layer_replication": [[0, 2]]}, "layer replication"),
        ({"trainable_token_indices": [1, 2]}, "token embeddings"),
        ({"alora_invocation_tokens": [5]}, "aLoRA"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_4"}, "not the delta"),
        ({"init_lora_weights": "olora"}, "not the delta"),
        ({"init_lora_weights": "corda"}, "not the delta"),
        ({"init_lora_weights": "loftq"}, "not the delta"),
        ({"peft_type": "LOHA"}, "'LOHA'"),
        ({"peft_type": None}, "only LORA"),
    ],
)
def test_what_is_not_a_plain_lora_is_refused(tmp_path, changes, message):
    folder = write_peft_folder(tmp_path / "x", config=lora_config(**changes))
    with pytest.raises(UnsupportedAdapterError) as caught:
        read_adapter(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_starts_that_leave_the_backbone_alone(tmp_path, start):
    config = lora_config(init_lora_weights=start)
    assert read_adapter(write_peft_folder(tmp_path / "x", config=config)).info.sites == 2


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("base_model.model.embed.lora_embedding_A", (2, 9), "embedding"),
        ("base_model.model.q_proj.lora_magnitude_vector", (4,), "DoRA"),
        ("base_model.model.q_proj.lora_magnitude_vector.weight", (4,), "DoRA"),
        ("base_model.model.conv.lora_A.weight", (2, 3, 1, 1), "not 2-D"),
        ("base_model.model.norm.weight", (4,), "neither a LoRA factor"),
        ("base_model.model.q_proj.lora_B.bias", (4,), "neither a LoRA factor"),
        ("something", (4,), "neither a LoRA factor"),
    ],
)
def test_tensors_that_do_not_belong(tmp_path, name, shape, message):
    tensors = lora_tensors() | {name: np.ones(shape, np.float32)}
    with pytest.raises(UnsupportedAdapterError, match=message):
        read_adapter(write_peft_folder(tmp_path / "x", tensors=tensors))


@pytest.mark.parametrize("side", "AB")
def test_a_missing_factor(tmp_path, side):
    tensors = lora_tensors()
    del tensors[f"{STEMS[1]}.lora_{side}.weight"]
    with pytest.raises(AdapterFileError, match=f"{SITES[1]} has lora_{'AB'[side == 'A']} but not"):
        read_adapter(write_peft_folder(tmp_path / "x", tensors=tensors))


def test_factors_of_different_ranks(tmp_path):
    tensors = lora_tensors()
    tensors[f"{STEMS[0]}.lora_B.weight"] = np.ones((4, 3), np.float32)
    with pytest.raises(AdapterFileError, match=r"A is \(2, 6\) and B is \(4, 3\)"):
        read_adapter(write_peft_folder(tmp_path / "x", tensors=tensors))


def test_heads_are_what_modules_to_save_names(tmp_path):
    head = {
        "base_model.model.score.weight": np.ones((2, 6), np.float32),
        "base_model.model.classifier.dense.modules_to_save.default.bias": np.ones(6, np.float32),
    }
    folder = tmp_path / "x"
    config = lora_config(modules_to_save=["classifier", "score"])
    files = read_adapter(write_peft_folder(folder, tensors=lora_tensors() | head, config=config))
    assert files.head == dict(zip(["score.weight", "classifier.dense.bias"], head, strict=True))
    assert files.info.sites == 2
    (folder / CONFIG).write_text(json.dumps(lora_config(modules_to_save=["score"])))
    with pytest.raises(UnsupportedAdapterError, match=r"modules_to_save \['score'\]"):
        read_adapter(folder)


def test_an_adapter_may_be_only_a_head(tmp_path):
    head = {"base_model.model.score.weight": np.ones((2, 6), np.float32)}
    config = lora_config(modules_to_save=["score"])
    files = read_adapter(write_peft_folder(tmp_path / "x", tensors=head, config=config))
    assert (files.info.sites, files.info.rank, files.info.parameters) == (0, 0, 12)


@pytest.mark.parametrize(
    ("config", "module", "rank", "scaling"),
    [
        ({"lora_alpha": 16}, "layers.0.q_proj", 8, 2.0),
        ({}, "layers.0.q_proj", 4, 2.0),
        ({"lora_alpha": 16, "use_rslora": True}, "layers.0.q_proj", 4, 8.0),
        ({"lora_alpha": 16, "use_rslora": True}, "layers.0.q_proj", 8, 16 / math.sqrt(8)),
        ({"lora_alpha": 16, "alpha_pattern": {"q_proj": 4}}, "layers.0.q_proj", 8, 0.5),
        ({"lora_alpha": 16, "alpha_pattern": {"q_proj": 4}}, "layers.0.v_proj", 8, 2.0),
        ({"lora_alpha": 16, "alpha_pattern": {"q_proj": 4}}, "layers.0.my_q_proj", 8, 2.0),
        ({"lora_alpha": 16, "alpha_pattern": {"0.q_proj": 4}}, "layers.10.q_proj", 8, 2.0),
        ({"lora_alpha": 16, "alpha_pattern": {"0.q_proj": 4}}, "layers.0.q_proj", 8, 0.5),
        ({"lora_alpha": 16, "alpha_pattern": {r"layers\.\d.q": 4}}, "layers.3.q", 8, 0.5),
        (
            {"lora_alpha": 16, "alpha_pattern": {"q": 4}, "use_rslora": True},
            "layers.0.q",
            4,
            2.0,
        ),
    ],
)
def test_scaling(config, module, rank, scaling):
    assert LoraSpec(config).scaling(module, rank) == pytest.approx(scaling, rel=1e-15)


@pytest.mark.parametrize(
    "pattern", ["(a|a)*b", "(a+)+", r"(a)\1", "(?=a)", "(", ")", "a++", "[z-a]", "*"]
)
def test_patterns_that_are_not_safe_to_match_are_refused_by_name(tmp_path, pattern):
    folder = write_peft_folder(tmp_path / "x", config=lora_config(alpha_pattern={pattern: 1}))
    with pytest.raises(UnsupportedAdapterError) as caught:
        read_adapter(folder)
    assert str(caught.value).startswith(f"{folder}: alpha_pattern: {pattern!r} is no pattern")


def test_json_there_and_back():
    data = json.loads(json.dumps(FULL.to_json()))
    assert "path" not in data
    bare = AdapterInfo("x").to_json()
    assert not [key for key, value in FULL.to_json().items() if value == bare[key]]  # all are set
    assert AdapterInfo.from_json(data) == FULL
    assert AdapterInfo.from_json(data | {"of_a_later_version": 1}) == FULL
    assert AdapterInfo.from_json({"name": "x"}) == AdapterInfo("x")


@pytest.mark.parametrize("change", [{"language": 5}, {"labels": [1]}, {"metrics": {"f1": "high"}}])
def test_values_of_the_wrong_type(change):
    with pytest.raises(TypeError, match=f"^{next(iter(change))}: "):
        AdapterInfo.from_json(FULL.to_json() | change)


def test_our_metadata_win_over_what_the_configuration_says(tmp_path):
    config = lora_config(base_model_name_or_path="elsewhere", task_type="SEQ_CLS")
    ours = metadata(AdapterInfo("x", language="de", task="language-modeling"), config)
    info = read_adapter(write_peft_folder(tmp_path / "x", config=config, metadata=ours)).info
    assert (info.language, info.task, info.backbone) == ("de", "language-modeling", None)


def test_a_lone_file_is_a_whole_adapter(tmp_path):
    config = lora_config(use_rslora=True, alpha_pattern={"q_proj": 3})
    lone = tmp_path / "sent.safetensors"
    save_file(lora_tensors(), lone, metadata(FULL, config))
    files = read_adapter(lone)
    kept = ("name", "language", "domain", "labels", "over", "metrics", "trained_with", "license")
    assert all(getattr(files.info, key) == getattr(FULL, key) for key in kept)
    assert files.spec.config == config
    assert files.spec.scaling(SITES[0], 2) == 3 / math.sqrt(2)


def test_a_lone_file_goes_from_library_to_library(tmp_path):
    first, second = Library(tmp_path / "first"), Library(tmp_path / "second")
    save_file(lora_tensors(), tmp_path / "x.safetensors", metadata(FULL, lora_config()))
    one = first.add(tmp_path / "x.safetensors")
    assert one.name == "de-hotel"
    other = second.add(first.root / "de-hotel" / WEIGHTS)
    assert other.name == "de-hotel"
    assert one.to_json() == other.to_json()
    for name in (WEIGHTS, CONFIG, "README.md"):
        files = [library.root / "de-hotel" / name for library in (first, second)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_lone_file_without_our_metadata(tmp_path):
    save_file(lora_tensors(), tmp_path / "x.safetensors")
    with pytest.raises(AdapterFileError, match=CONFIG):
        read_adapter(tmp_path / "x.safetensors")


def test_what_is_missing_is_named(tmp_path):
    folder = write_peft_folder(tmp_path / "x")
    (folder / WEIGHTS).unlink()
    with pytest.raises(AdapterFileError, match=rf"no {WEIGHTS} \(there: {CONFIG}\)"):
        read_adapter(folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(AdapterFileError, match="save_pretrained it as safetensors"):
        read_adapter(folder)


def test_a_card_says_what_the_info_says(tmp_path):
    (tmp_path / "README.md").write_text(write_card(FULL), encoding="utf-8")
    front = read_front_matter(tmp_path / "README.md")
    assert front == {
        "library_name": "peft",
        "base_model": "org/model",
        "base_model_relation": "adapter",
        "language": "de",
        "license": "cc-by-4.0",
        "pipeline_tag": "text-classification",
        "datasets": ["org/data"],
        "tags": ["lora", "adapters_hub", "domain:hotel"],
    }
    text = write_card(FULL)
    for part in ("# de-hotel", FULL.description, FULL.trained_with, "schlecht, gut", "0.91"):
        assert part in text
    assert 'ah.load_backbone("org/model")' in text


@pytest.mark.parametrize("tag", ["no", "yes", "on"])
def test_a_language_stays_text_in_a_card(tag):
    front = write_card(AdapterInfo("x", language=tag)).split("---")[1]
    assert yaml.safe_load(front)["language"] == tag


def test_a_card_of_nearly_nothing():
    text = write_card(AdapterInfo("x"))
    assert "None" not in text
    assert "language" not in text.split("---")[1]


@pytest.mark.parametrize(
    ("text", "front"),
    [
        ("---\nlanguage: de\n---\n# Title\n---\n", {"language": "de"}),
        ("# Title\n", {}),
        ("", {}),
        ("---\n- a\n---\n", {}),
        ("---\n---\n", {}),
        ("---\nlanguage: no\n---\n", {"language": "no"}),
        ("---\nlanguage: !!bool x\nlicense: !!int ''\n---\n", {"language": "x", "license": ""}),
    ],
)
def test_front_matter(tmp_path, text, front):
    (tmp_path / "README.md").write_text(text)
    assert read_front_matter(tmp_path / "README.md") == front


def test_front_matter_that_grows_or_is_huge_is_refused(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("---\na: &a {x: 1}\nb: {<<: [*a, *a]}\n---\n")
    with pytest.raises(AdapterFileError, match="has aliases"):
        read_front_matter(card)
    card.write_text("---\n" + "a" * 2_000_000)
    with pytest.raises(AdapterFileError, match="larger than"):
        read_front_matter(card)


def test_a_card_quotes_what_it_shows_as_code():
    text = write_card(AdapterInfo("x", backbone='m")\nimport os #'))
    assert 'load_backbone("m\\")\\nimport os #")' in text


@pytest.mark.parametrize(
    "value", [{"metrics": {"a": 10**400}}, {"metrics": {"a": math.nan}}, {"task": "\x1b[31m"},
              {"backbone": "a\nb"}]
)  # fmt: skip
def test_metadata_that_cannot_be_shown_are_refused(value):
    with pytest.raises(TypeError):
        AdapterInfo.from_json({"name": "x", **value})


def test_no_card_is_no_front_matter(tmp_path):
    assert read_front_matter(tmp_path / "README.md") == {}
