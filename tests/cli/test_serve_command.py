"""``adapters-hub serve``: what it would run, and what it says where vLLM is missing."""

import os
import shlex
import sys

import pytest
from helpers import write_peft_folder

import adapters_hub as ah
from adapters_hub.cli import main
from adapters_hub.cli import serving as commands
from adapters_hub.library.paths import starter_folder

MIDDLEWARE = "adapters_hub.serving.vllm_middleware.LibraryMiddleware"


@pytest.fixture
def library(tmp_path):
    library = ah.Library(tmp_path / "a library")
    library.add(write_peft_folder(tmp_path / "1"), name="one")
    return library


def test_print_shows_a_command_that_a_shell_reads(library, capsys, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "lora_filesystem_resolver")
    arguments = ["serve", "--backbone", "starter", "--library", str(library.root), "--print"]
    assert main([*arguments, "--max-loras", "8", "--", "--port", "8001"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words == [
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", f"ADAPTERS_HUB_LIBRARY={library.root.absolute()}",
        "VLLM_PLUGINS=lora_filesystem_resolver,adapters_hub",
        "vllm", "serve", str(starter_folder()), "--enable-lora", "--max-loras", "8",
        "--max-lora-rank", "8", "--middleware", MIDDLEWARE, "--port", "8001",
    ]  # fmt: skip


def test_a_rank_that_is_given_and_a_hub_id_stay(library, capsys, monkeypatch):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    arguments = ["serve", "--backbone", "org/model", "--library", str(library.root), "--print"]
    assert main([*arguments, "--max-lora-rank", "64"]) == 0
    out = capsys.readouterr().out
    assert "vllm serve org/model --enable-lora --max-loras 4 --max-lora-rank 64" in out
    assert "VLLM_PLUGINS" not in out
    with pytest.raises(SystemExit):
        main([*arguments, "--max-lora-rank", "48"])
    assert main([*arguments, "--max-loras", "0"]) == 1


def test_vllm_takes_the_process_over(library, monkeypatch):
    ran = []
    monkeypatch.setattr(os, "execve", lambda *given: ran.append(given))
    monkeypatch.setattr(commands.importlib.util, "find_spec", lambda name: name)
    main(["serve", "--backbone", "starter", "--library", str(library.root)])
    ((program, command, environment),) = ran
    assert program == sys.executable
    assert command[1:4] == ["-m", "vllm.entrypoints.cli.main", "serve"]
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert environment["PATH"] == os.environ["PATH"]


def test_where_vllm_is_missing_it_says_how_to_install_it(library, monkeypatch, capsys):
    monkeypatch.setattr(commands.importlib.util, "find_spec", lambda name: None)
    assert main(["serve", "--backbone", "starter", "--library", str(library.root)]) == 1
    assert "pip install vllm adapters-hub" in capsys.readouterr().err
