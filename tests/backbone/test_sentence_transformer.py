"""A sentence-transformers folder: how it pools, its prompts and its length are followed."""

import json
from pathlib import Path

import pytest
import torch

import adapters_hub as ah
from adapters_hub.errors import BackboneError

TEXTS = ["lovely view near the station", "staff rude and slow"]


@pytest.fixture
def folder(tiny, tmp_path):
    """() → a BERT checkpoint with sentence-transformers' files beside it, as given."""

    def write(pooling, modules=(), **files):
        path = tmp_path / "sentences"
        path.mkdir()
        for file in tiny("bert").iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *modules]
        listed = [
            {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{kind}"}
            for i, (p, kind) in enumerate(kinds)
        ]
        (path / "modules.json").write_text(json.dumps(listed))
        (path / "1_Pooling").mkdir()
        (path / "1_Pooling/config.json").write_text(json.dumps(pooling))
        for name, content in files.items():
            (path / f"{name}.json").write_text(json.dumps(content))
        return ah.load_backbone(str(path), library=tmp_path / "library")

    return write


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_the_folders_pooling_is_the_default(config, pooling, folder):
    model = folder({"word_embedding_dimension": 32, **config}, [("2_Normalize", "Normalize")])
    torch.testing.assert_close(model.embed(TEXTS), model.embed(TEXTS, pooling=pooling))
    other = "mean" if pooling != "mean" else "cls"
    assert (model.embed(TEXTS) - model.embed(TEXTS, pooling=other)).abs().max() > 1e-3
    assert model.encoder().pooling == pooling


def test_prompts_and_length_are_those_of_the_folder(folder):
    model = folder(
        {"pooling_mode_mean_tokens": True},
        config_sentence_transformers={
            "prompts": {"query": "the room ", "document": ""},
            "default_prompt_name": "query",
        },
        sentence_bert_config={"max_seq_length": 7, "do_lower_case": False},
    )
    prompted = model.embed(["the room was clean"], prompt=" ")
    for same in (
        model.embed(["was clean"], prompt_name="query"),
        model.embed(["was clean"]),
        torch.as_tensor(model.encoder().encode_query(["was clean"])),
    ):
        torch.testing.assert_close(same, prompted)
    bare = model.embed(["was clean"], prompt_name="document")
    assert (bare - prompted).abs().max() > 1e-3
    long = " ".join(["quiet"] * 5)  # and two special tokens
    cut, longer = model.embed([long], prompt=" "), model.embed([long + " rude slow"], prompt=" ")
    torch.testing.assert_close(cut, longer)


@pytest.mark.parametrize(
    ("pooling", "modules", "reason"),
    [
        ({"pooling_mode_mean_tokens": True}, [("2_Dense", "Dense")], r"Dense \(2_Dense\)"),
        ({"pooling_mode_max_tokens": True}, [], "pools by pooling_mode_max_tokens"),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            [],
            "pooling_mode_cls_token and pooling_mode_mean_tokens",
        ),
    ],
)
def test_what_is_not_followed_is_refused_unless_a_pooling_is_given(
    pooling, modules, reason, folder
):
    model = folder(pooling, modules)
    with pytest.raises(BackboneError, match=reason):
        model.embed(TEXTS)
    assert model.embed(TEXTS, pooling="mean").shape == (2, 32)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode": 2},
            "pooling_mode: must be a name such as 'mean', or a list of names; it is 2",
        ),
        (
            "1_Pooling/config.json",
            {"pooling_mode": ["mean", ["cls"]]},
            "pooling_mode: must be a name such as 'mean', or a list of names; it is ['mean', ['cls']]",
        ),
        ("1_Pooling/config.json", [], "a JSON list, not a dict"),
        (
            "sentence_bert_config.json",
            {"max_seq_length": "7"},
            "max_seq_length: not a count; it is '7'",
        ),
        (
            "config_sentence_transformers.json",
            {"prompts": ["a"]},
            "prompts: must be an object; it is ['a']",
        ),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": ["query"]},
            "default_prompt_name: must be text; it is ['query']",
        ),
    ],
)
def test_a_field_that_cannot_be_is_named_with_its_file(file, content, said, folder):
    model = folder({"pooling_mode_mean_tokens": True})
    path = Path(model.backbone.name)
    (path / file).write_text(json.dumps(content))
    with pytest.raises(BackboneError) as caught:
        ah.load_backbone(path, library=model.library)
    assert str(caught.value) == f"{path / file}: {said}"


def test_several_modes_are_named(folder):
    model = folder({"pooling_mode": ["mean", "lasttoken"]})
    with pytest.raises(BackboneError, match="pools by mean and lasttoken"):
        model.embed(TEXTS)


def test_an_adapters_own_pooling_comes_before_the_folders(folder, lora_folder, tmp_path):
    from dataclasses import replace

    model = folder({"pooling_mode_cls_token": True})
    model.library.add(lora_folder("bert", "one"), name="one")
    adapter = model.adapter("one")
    trained = replace(adapter, info=replace(adapter.info, name="two", pooling="mean"))
    model.add(trained)
    torch.testing.assert_close(
        model.embed(TEXTS, ah.Blend("name:two")), model.embed(TEXTS, "one", pooling="mean")
    )
