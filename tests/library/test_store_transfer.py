"""Pushing and pulling by fsspec: memory, a web server on loopback, folders and lone files."""

import json
from types import SimpleNamespace

import fsspec
import pytest
from helpers import CONFIG, WEIGHTS, adder, lora_config, lora_tensors, snapshot, write_peft_folder
from helpers.fake_hub import Answering, send_file, serving

from adapters_hub.errors import (
    AccessError,
    LibraryError,
    MissingExtraError,
    RemoteNotFoundError,
    SettingsError,
    TransferError,
)
from adapters_hub.library.library import Library
from adapters_hub.library.remote import store


@pytest.fixture
def library(tmp_path):
    library = Library(tmp_path / "library")
    add = adder(library, tmp_path / "sources")
    add("de", language="de", license="mit")
    add("hotel", seed=1, domain="hotel")
    return library


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of its own, small requests, an empty store in memory."""
    monkeypatch.setenv("ADAPTERS_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_PAUSE", 0.0)
    fsspec.filesystem("memory").store.clear()
    return tmp_path


@pytest.fixture
def other(home):
    return Library(home / "other")


class Web(Answering):
    """Files of a mapping, with ranges unless ``plain``; nothing for anybody where ``closed``."""

    def do_GET(self):
        state = self.server.hub
        state.requests.append((self.command, self.path, self.headers.get("Range")))
        if state.closed:
            self.answer(403)
            return
        data = state.files.get(self.path.partition("?")[0])
        if data is None:
            self.answer(404)
            return
        if state.plain:
            del self.headers["Range"]
        send_file(self, data, state)

    do_HEAD = do_GET


@pytest.fixture
def web():
    state = SimpleNamespace(files={}, requests=[], break_after=None, plain=False, closed=False)
    with serving(Web, state):
        yield state


def spread(web, folder, under="/a/"):
    web.files |= {under + path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("place", ["memory://bucket/german", "./out/german", "memory://de.safetensors",
                                   "./lone/de.safetensors"])  # fmt: skip
def test_what_is_pushed_is_what_is_pulled(library, other, home, monkeypatch, place):
    monkeypatch.chdir(home)
    pushed = library.push("de", place)
    assert pushed.revision is None
    info = other.pull(pushed.source)
    assert (info.name, info.language, info.hash) == ("de", "de", library["de"].hash)
    assert other.verify("de") == []
    assert other.pull(pushed.source) == info
    with pytest.raises(LibraryError, match="has an adapter already"):
        library.push("hotel", place)
    assert other.outdated() == []
    library.push("hotel", place, replace_existing=True)
    (row,) = other.outdated()
    assert (row.name, row.pinned) == ("de", info.origin.revision)
    assert other.pulled(pushed.source) == info
    assert other.pull(pushed.source).name == "hotel"
    assert not [*(home / "cache").rglob("*.part")]


def test_a_lone_file_by_mail(library, other, home):
    library.push("de", str(home / "sent.safetensors"))
    assert [path.name for path in home.glob("*.safetensors")] == ["sent.safetensors"]
    assert other.pull(home / "sent.safetensors").name == "de"


def test_a_web_server(web, library, other):
    spread(web, library.root / "de")
    del web.files["/a/README.md"]
    info = other.pull(f"{web.url}/a")
    assert (info.name, info.hash) == ("de", library["de"].hash)
    assert info.origin.source == f"{web.url}/a"
    lone = other.pull(f"{web.url}/a/{WEIGHTS}?signature=secret", name="lone")
    assert (lone.hash, lone.origin.source) == (info.hash, f"{web.url}/a/{WEIGHTS}")
    spread(web, library.root / "hotel")
    assert [row.name for row in other.outdated()] == ["de", "lone"]


def large(folder):
    tensors = lora_tensors(rank=64, inputs=256, outputs=128, seed=3)
    return write_peft_folder(folder, tensors=tensors, config=lora_config(r=64))


def test_a_download_goes_on_where_it_stopped(web, other, home, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 40_000)
    monkeypatch.setattr(store, "_ATTEMPTS", 1)
    source = large(home / "large")
    spread(web, source)
    size = len(web.files[f"/a/{WEIGHTS}"])
    served, real = [], store._bytes

    def breaking(fs, path, start, end):
        if path.endswith(WEIGHTS) and end is not None and end - start == 40_000:
            served.append(start)
            web.break_after = 1000 if start == 80_000 and served.count(80_000) == 1 else None
        return real(fs, path, start, end)

    monkeypatch.setattr(store, "_bytes", breaking)
    with pytest.raises(TransferError, match="goes on where it stopped"):
        other.pull(f"{web.url}/a", name="large")
    assert other.names() == []
    assert served == [0, 40_000, 80_000]
    other.pull(f"{web.url}/a", name="large")
    assert served[3:] == [at for at in range(80_000, size, 40_000) if at + 40_000 <= size]
    assert other.verify("large") == []
    assert [*(home / "cache").rglob("*.*")] == []


def test_a_broken_connection_is_tried_again(web, other, home):
    spread(web, large(home / "large"))
    pull = store._download

    def breaking(fs, path, target):
        web.break_after = 5000
        return pull(fs, path, target)

    store_download, store._download = store._download, breaking
    try:
        other.pull(f"{web.url}/a", name="large")
    finally:
        store._download = store_download
    assert other.verify("large") == []


def test_a_server_without_ranges(web, other, home, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 40_000)
    web.plain = True
    spread(web, large(home / "large"))
    other.pull(f"{web.url}/a", name="large")
    assert other.verify("large") == []


def test_errors_say_what_to_do(web, library, other, home):
    with pytest.raises(RemoteNotFoundError, match="no adapter there"):
        other.pull(f"{web.url}/nothing")
    with pytest.raises(RemoteNotFoundError, match="no adapter there"):
        other.pull("memory://nothing")
    with pytest.raises(RemoteNotFoundError, match="give a PEFT folder"):
        other.pull(home / "nothing")
    with pytest.raises(SettingsError, match="can only be pulled from"):
        library.push("de", f"{web.url}/a")
    with pytest.raises(SettingsError, match="nonsense"):
        other.pull("nonsense://a/b")
    with pytest.raises(MissingExtraError, match=r"adapters-hub\[s3\]"):
        other.pull("s3://bucket/a")
    spread(web, library.root / "de")
    web.closed = True
    with pytest.raises(AccessError, match="may not be read"):
        other.pull(f"{web.url}/a")
    assert not other.root.exists()


def test_a_push_that_fails_leaves_nothing(library, home, monkeypatch):
    memory = fsspec.filesystem("memory")
    real = type(memory).put_file

    def full(self, source, target, **options):
        if target.endswith(CONFIG):
            raise OSError("no space left")
        return real(self, source, target, **options)

    monkeypatch.setattr(type(memory), "put_file", full)
    with pytest.raises(TransferError, match="no space left"):
        library.push("de", "memory://bucket/german")
    assert memory.find("/bucket") == []


def test_what_comes_in_is_checked(web, other, home):
    other.add(write_peft_folder(home / "kept"), name="kept")
    before = snapshot(other.root)
    spread(web, write_peft_folder(home / "x"))
    web.files["/a/adapter_config.json"] = json.dumps(
        {"peft_type": "LORA", "use_dora": True}
    ).encode()
    with pytest.raises(Exception, match="use_dora"):
        other.pull(f"{web.url}/a")
    assert snapshot(other.root) == before


def test_what_is_pushed_does_not_say_where_it_was_pulled_from(library, other):
    library.push("de", "memory://bucket/german")
    other.pull("memory://bucket/german")
    other.push("de", "memory://bucket/again")
    sent = fsspec.filesystem("memory").cat(f"/bucket/again/{WEIGHTS}")
    assert b"bucket/german" not in sent
    assert other["de"].origin.source == "memory://bucket/german"
    third = Library(other.root.parent / "third")
    assert third.add(other.root / "de").origin is None  # what files say of it is not believed
