"""What a user writes for a place is read as they mean it."""

from pathlib import Path

import pytest
from helpers.fake_hub import problems_of

from adapters_hub.errors import SettingsError
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.hub_fields import hub_id, language_fields, license_fields
from adapters_hub.library.model_card import write_card
from adapters_hub.library.origin import Origin
from adapters_hub.library.remote.address import HubAddress, StoreAddress, address_of
from adapters_hub.library.remote.transfer import same_source

PAGE = "https://huggingface.co/me/repo"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("me/repo", HubAddress("me/repo")),
        ("hf://me/repo", HubAddress("me/repo")),
        ("hf://models/me/repo@v1.2", HubAddress("me/repo", "v1.2")),
        ("hf://me/repo@refs/pr/3/a/b", HubAddress("me/repo", "refs/pr/3", "a/b")),
        ("hf://me/repo/a/b", HubAddress("me/repo", None, "a/b")),
        (PAGE, HubAddress("me/repo")),
        (f"{PAGE}/tree/v1/a/b.v2", HubAddress("me/repo", "v1", "a/b.v2")),
        (f"{PAGE}/blob/main/a/adapter_model.safetensors", HubAddress("me/repo", "main", "a")),
        (f"{PAGE}/discussions/2", HubAddress("me/repo")),
        ("s3://bucket/a", StoreAddress("s3://bucket/a")),
        ("https://example.org/a", StoreAddress("https://example.org/a")),
        ("./me/repo", Path("me/repo")),
        ("/me/repo", Path("/me/repo")),
        ("repo", Path("repo")),
        ("file:///a/b", Path("/a/b")),
    ],
)  # fmt: skip
def test_places(text, meant):
    address = address_of(text)
    assert address == meant
    if isinstance(address, HubAddress):
        assert address_of(address.text) == address


def test_a_folder_that_is_here_goes_first_but_for_sending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("me/repo").mkdir(parents=True)
    assert address_of("me/repo") == Path("me/repo")
    assert (
        address_of("me/repo", sending=True) == address_of("hf://me/repo") == HubAddress("me/repo")
    )


def test_secrets_of_a_url_are_not_kept():
    address = address_of("https://user:word@example.org/a/b.safetensors?X-Signature=abc")
    assert address.text == "https://example.org/a/b.safetensors"
    assert (address.name, address.lone) == ("b", True)
    folder = address_of("https://example.org/a?key=abc")
    assert folder.file("x.json") == "https://example.org/a/x.json?key=abc"


@pytest.mark.parametrize("text", ["hf://", "hf://me", "hf://me/re po", "hf://me/repo@", f"{PAGE}/tree/v1/../x"])  # fmt: skip
def test_what_is_none(text):
    with pytest.raises(SettingsError):
        address_of(text)


@pytest.mark.parametrize(
    ("source", "asked", "same"),
    [
        ("hf://me/repo", "me/repo", True),
        ("hf://me/repo", "hf://me/repo@0123456", True),
        ("hf://me/repo", "hf://me/repo@999999999", False),
        ("hf://me/repo", "hf://me/repo@v1", False),
        ("hf://me/repo@v1", "hf://me/repo@v1", True),
        ("hf://me/repo@v1", "me/repo", False),
    ],
)
def test_what_was_pulled_before(source, asked, same):
    origin = Origin(source, "0123456789012345678901234567890123456789")
    assert same_source(origin, address_of(asked)) is same


def test_the_fields_of_a_card_are_the_hubs(tmp_path):
    assert language_fields("zh-Hant") == {"language": "zh", "language_bcp47": ["zh-Hant"]}
    assert language_fields("de") == {"language": "de"}
    assert license_fields("CC-BY-4.0") == {"license": "cc-by-4.0"}
    assert license_fields("Mine 1.0") == {"license": "other", "license_name": "Mine 1.0"}
    assert [hub_id(n) for n in ("org/model", "gpt2", "starter", str(tmp_path), "a/b/c", None)] == [
        "org/model", "gpt2", None, None, None, None,
    ]  # fmt: skip
    for language in ("sr-Latn", "no", "yue", "zh-Hant-HK"):
        info = AdapterInfo("x", language=language, license="Mine", backbone="/a/model")
        assert problems_of(write_card(info)) == []
