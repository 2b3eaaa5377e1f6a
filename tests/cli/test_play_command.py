"""``adapters-hub play``: which backbone, what it prints, and what it refuses."""

import socket
import webbrowser

import pytest
from helpers import write_peft_folder

import adapters_hub as ah
from adapters_hub.cli import main
from adapters_hub.cli.playground import backbone_of
from adapters_hub.playground.server import Playground


def test_the_backbone_is_the_one_most_adapters_name(tmp_path):
    library = ah.Library(tmp_path / "library")
    assert backbone_of(library) == ("starter", None)
    for number, backbone in enumerate(("org/one", "org/two", "org/two")):
        folder = write_peft_folder(tmp_path / str(number))
        library.add(folder, name=f"a{number}", backbone=backbone)
    assert backbone_of(library) == ("org/two", None)


@pytest.mark.parametrize("quiet", [True, False])
def test_play_serves_until_it_is_ended(tiny, tmp_path, monkeypatch, capsys, quiet):
    opened = []

    def end(server):
        raise KeyboardInterrupt

    monkeypatch.setattr(Playground, "serve_forever", end)
    monkeypatch.setattr(webbrowser, "open", opened.append)
    given = ["--backbone", str(tiny("qwen3")), "--library", str(tmp_path / "none"), "--port", "0"]
    assert main(["play", *given, *(["--no-browser"] if quiet else [])]) == 130
    address = capsys.readouterr().out.split()[0]
    assert address.startswith("http://127.0.0.1:")
    assert opened == ([] if quiet else [address])


def test_what_cannot_be_shown(tiny, tmp_path, capsys):
    given = [
        "play",
        "--backbone",
        str(tiny("qwen3")),
        "--library",
        str(tmp_path / "none"),
        "--no-browser",
    ]
    assert main([*given, "--matrix", str(tmp_path)]) == 1
    assert "no cell of a matrix" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([*given, "--port", str(taken.getsockname()[1])]) == 1
    assert "give another, or 0 for any" in capsys.readouterr().err
    assert main([*given, "--port", "70000"]) == 1
