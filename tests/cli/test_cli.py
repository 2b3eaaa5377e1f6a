"""The command line, in process; one run as a subprocess for speed of start and exit codes."""

import json
import re
import subprocess
import sys

import pytest

import adapters_hub as ah
from adapters_hub.cli import main


@pytest.fixture
def library(tmp_path, lora_folder, tiny):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "one"), language="pt-BR", backbone=str(tiny("qwen3")))
    library.add(lora_folder("qwen3", "two"), domain="hotel", backbone=str(tiny("qwen3")))
    return library


@pytest.fixture
def run(library, capsys):
    def command(*arguments):
        status = main([arguments[0], "--library", str(library.root), *map(str, arguments[1:])])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def test_list_show_resolve(run):
    status, out, _ = run("list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["name", "hotel", "pt-BR"]
    _, out, _ = run("list", "--language", "Brazilian Portuguese", "--json")
    assert json.loads(out)["name"] == "pt-BR"
    _, out, _ = run("show", "hotel")
    assert json.loads(out)["domain"] == "hotel"
    _, out, err = run("resolve", "pt-PT")
    assert out.split("\t")[:2] == ["pt-BR", "5"]
    status, _, err = run("show", "hotle")
    assert status == 1
    assert "closest: hotel" in err


def test_add_verify_remove(run, library, lora_folder):
    status, out, _ = run("add", lora_folder("qwen3", "one"), "--name", "con", "--license", "mit")
    assert status == 0
    assert "added con" in out
    status, _, err = run("add", lora_folder("qwen3", "one"), "--name", "con")
    assert status == 1
    assert "already has 'con'" in err
    assert run("add", lora_folder("qwen3", "two"), "--name", "con", "--replace")[0] == 0
    assert run("verify")[0] == 0
    weights = next((library.root / "hotel").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    status, out, _ = run("verify", "hotel", "con")
    assert status == 1
    assert "hotel: the tensors changed" in out
    assert run("remove", "con")[0] == 0
    assert run("remove", "con")[0] == 1


def test_compose_writes_an_adapter_that_can_be_added(run, library, tmp_path):
    status, _, err = run("compose", "pt-BR + 0.5*hotel", "-o", tmp_path / "both", "--name", "both")
    assert status == 0, err
    assert library.add(tmp_path / "both").rank == 8
    assert run("compose", "hotel - hotel", "-o", tmp_path / "nothing")[0] == 1
    assert run("compose", "hotel", "-o", tmp_path / "x", "--method", "magic")[0] == 1
    assert not (tmp_path / "x").exists()


def test_compose_takes_methods_and_their_options(run, library, tmp_path):
    options = ["--method", "ties", "--rank", 3, "--density", 0.4, "--name", "both"]
    status, _, err = run("compose", "pt-BR + hotel", "-o", tmp_path / "both", *options)
    assert status == 0, err
    added = library.add(tmp_path / "both")
    assert added.rank == 3
    options = ["--method", "layer_swap", "--bottom", 1, "--top", 0, "--transition", 1]
    assert run("compose", "pt-BR + hotel", "-o", tmp_path / "swap", *options)[0] == 0
    options = ["--method", "core", "--inner", "dare", "--seed", 1, "--rank", 2]
    assert run("compose", "pt-BR + hotel", "-o", tmp_path / "core", *options)[0] == 0
    options = ["--method", "svd", "--energy", 0.5, "--name", "half"]
    status, out, _ = run("compose", "pt-BR + hotel", "-o", tmp_path / "half", *options)
    assert status == 0
    assert re.search(
        r"\(energy=0.5\)\. It keeps rank .* sites\), [5-9]\d\.\d\d% of the energy", out
    )
    assert library.add(tmp_path / "half").rank < 8
    options = ["--method", "subtract", "--lam", 0.5]
    assert run("compose", "pt-BR - hotel", "-o", tmp_path / "less", *options)[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", 4], "takes no rank: it takes no options; method='svd'"),
        (["--energy", 0.9], "takes no energy: it takes no options; method='svd'"),
        (["--method", "svd", "--energy", 95], "energy=95.0: give a share above 0, at most 1"),
        (["--method", "svd", "--seed", 1], "takes no seed: it takes rank"),
        (["--method", "svd", "--rank", 0], "rank=0: give a whole number, 1 or more"),
        (["--method", "ties", "--density", 2], "density=2.0: give a share above 0, at most 1"),
        (["--method", "subtract", "--lam", "nan"], "lam=nan: give a finite number"),
        (["--method", "core", "--inner", "iso"], "inner='iso' is method='iso'"),
        (["--method", "layer_swap", "--bottom", 9], "need 10 layers; layers has 2"),
        (["--method", "layer_swap", "--top", -1], "top=-1: give a whole number of layers"),
        (["--method", "layer_swap", "--transition", -1], "transition=-1"),
        (["--method", "sums"], "method='sums': choose one of sum, svd"),
    ],
)
def test_compose_refuses_options_that_cannot_be(options, message, run, tmp_path):
    status, _, err = run("compose", "pt-BR + hotel", "-o", tmp_path / "out", *options)
    assert status == 1
    assert message in err
    assert not (tmp_path / "out").exists()


def test_help_of_compose_lists_all_methods_and_options(run, capsys):
    from adapters_hub.cli.blends import OPTIONS
    from adapters_hub.compose.methods import METHODS, options_of

    with pytest.raises(SystemExit) as stop:
        run("compose", "--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    for name in METHODS:
        assert all(option in lines[name] for option in options_of(name))
    assert set(OPTIONS) == {option for name in METHODS for option in options_of(name)}
    with pytest.raises(SystemExit) as stop:
        run("compose", "de", "-o", "x", "--rank", "two")
    assert stop.value.code == 2


def test_help_shows_every_command_in_its_group(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    groups = {"library": "list show resolve add remove verify", "blends": "compose compare fit",
              "reports": "matrix"}  # fmt: skip
    for title, commands in groups.items():
        start = lines.index(f"{title}:") + 1
        end = lines.index("", start)
        assert [line.split()[0] for line in lines[start:end]] == commands.split()


@pytest.mark.parametrize("module", ["adapters_hub", "adapters_hub.cli"])
def test_as_a_program(module, library):
    command = [sys.executable, "-m", module]
    done = subprocess.run(
        [*command, "list", "--library", library.root], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "pt-BR" in done.stdout
    done = subprocess.run([*command, "list", "--color"], capture_output=True, text=True)
    assert done.returncode == 2
