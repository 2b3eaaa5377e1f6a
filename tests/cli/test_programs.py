"""How commands behave as programs: exit statuses, Ctrl-C, quiet, JSON, colour, completion."""

import argparse
import io
import json
import logging
import re
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT

import adapters_hub as ah
from adapters_hub import progress
from adapters_hub.cli import completion, main, parser
from adapters_hub.errors import LibraryError
from adapters_hub.extras import Once
from adapters_hub.recipes import demo
from adapters_hub.recipes.demo import Line
from adapters_hub.recipes.picture import draw_table
from adapters_hub.recipes.processes import run_in_processes
from adapters_hub.recipes.program import run_program


@pytest.fixture(autouse=True)
def _as_before():
    yield
    progress.be_quiet(False)


@pytest.fixture
def library(tmp_path, lora_folder, tiny):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "one"), language="pt-BR", backbone=str(tiny("qwen3")))
    library.add(lora_folder("qwen3", "two"), domain="hotel", backbone=str(tiny("qwen3")))
    return library


@pytest.fixture
def run(library, capsys):
    def command(name, *arguments):
        status = main([name, "--library", str(library.root), *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "status", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: 1, 1, ""),
        (raising(LibraryError("no such folder")), 1, "error: no such folder\n"),
        (raising(KeyboardInterrupt()), 130, "\ninterrupted; nothing half-written is left\n"),
        (raising(KeyboardInterrupt("stopped; kept in x")), 130, "\nstopped; kept in x\n"),
    ],
)
def test_exit_statuses_and_one_sentence(work, status, said, capsys):
    assert run_program(work) == status
    assert capsys.readouterr().err == said


def test_exit_statuses_are_those_of_the_page():
    page = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d+) \|", page, re.M) == ["0", "1", "2", "130"]
    with pytest.raises(SystemExit) as stop:
        main(["list", "--nonsense"])
    assert stop.value.code == 2


def test_commands_on_the_page_exist():
    page = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
    known = dict(completion._commands(parser(whole=True)))
    for words in re.findall(r"adapters-hub ((?:[a-z]+ ?)+)", page):
        path = tuple(word for word in words.split() if (word,) in known or word in (
            "language", "domain"))  # fmt: skip
        assert path in known or path == (), words


def test_a_library_says_the_same_once_and_we_as_often_as_we_like():
    said = logging.LogRecord("bitsandbytes.x", logging.WARNING, "", 0, "cast %s", ("a",), None)
    other = logging.LogRecord("bitsandbytes.x", logging.WARNING, "", 0, "cast %s", ("b",), None)
    once = Once()
    assert [once.filter(record) for record in (said, said, other, said)] == [
        True, False, True, False
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["before", "behind"])
def test_quiet_shows_no_warning_and_no_bar(where, run, caplog):
    arguments = ["resolve", "pt-PT", "--quiet"]
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    assert out.startswith("pt-BR\t")
    assert progress.is_quiet()
    with progress.bar(3, "working", "steps", at_once=True) as bar:
        assert bar.disable


def test_a_bar_says_how_much_time_is_left(capsys):
    with progress.bar(2, "working", "steps", at_once=True) as bar:
        bar.update()
    assert re.search(r"working +0%\|.*\| 0/2 steps, .* left", capsys.readouterr().err)
    assert [*progress.over("abc", "reading", "letters")] == ["a", "b", "c"]


def test_results_as_json(run, library, tmp_path):
    _, out, _ = run("resolve", "pt-PT", "--json")
    assert json.loads(out)["name"] == "pt-BR"
    _, out, _ = run("compose", "pt-BR + hotel", "-o", tmp_path / "both", "--json")
    assert json.loads(out)["written"] == [str(tmp_path / "both")]
    _, out, _ = run("add", tmp_path / "both", "--name", "both", "--json")
    assert json.loads(out)["name"] == "both"
    _, out, _ = run("export", "hotel", "-o", tmp_path / "out", "--verify", "--json")
    assert json.loads(out)["agrees"] is True
    _, out, _ = run("compare", "pt-BR", "hotel", "--json")
    assert json.loads(out)["first"] == "pt-BR"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--domain", "hotl"], 'domain "hotl" (there are: hotel; closest: hotel)'),
        (["--language", "yo"], 'language "yo" (there are: pt-BR; closest: none)'),
        (["--language", "pt-PT"], 'language "pt-PT" (there are: pt-BR; closest: pt-BR)'),
        (["--language", "pt-BR", "--domain", "hotel"], "none fits"),
    ],
)
def test_list_says_what_there_is(run, arguments, said):
    status, out, err = run("list", *arguments)
    assert (status, out) == (0, "")
    assert said in err


@pytest.mark.parametrize(
    ("terminal", "no_color", "coloured"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_the_demo_is_in_colour_where_there_is_a_terminal(terminal, no_color, coloured, monkeypatch):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    lines = [
        Line(tag, column, None, bits, "goes on")
        for tag in demo.SENTENCES
        for column, bits in (("bare backbone", 3.0), ("language + domain", 2.0))
    ]
    to = io.StringIO()
    monkeypatch.setattr(to, "isatty", lambda: terminal, raising=False)
    demo.show(lines, to)
    assert ("\x1b[32;1m2.00" in to.getvalue()) == coloured
    assert ("\x1b" in to.getvalue()) == coloured
    assert "\x1b[32;1m3.00" not in to.getvalue()


def test_signatures_are_short_enough_to_read():
    import inspect

    for name in ah.__all__:
        thing = getattr(ah, name)
        members = [thing] if inspect.isfunction(thing) else []
        if inspect.isclass(thing):
            members = [f for _, f in inspect.getmembers(thing, inspect.isfunction)]
        for function in members:
            for parameter in inspect.signature(function).parameters.values():
                shown = inspect.formatannotation(parameter.annotation)
                assert len(shown) <= 100, f"{name}.{function.__name__}({parameter.name}: {shown})"


def test_a_table_as_a_picture(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    results = {"bare": {"da": 4.0, "mean": 4.0}, "hotel": {"da": 3.0, "mean": 3.0}}
    path = tmp_path / "runs" / "table.png"
    assert draw_table(path, results, "bits", {"da": " (not trained on)"}) is None
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = draw_table(tmp_path / "none.png", results, "bits", {})
    assert "pip install 'adapters-hub[plot]'" in said
    assert not (tmp_path / "none.png").exists()


# ── completion ───────────────────────────────────────────────────────────────────────────────────


def complete(words):
    """What bash offers for the last of some words."""
    script = completion.script("bash", parser(whole=True))
    quoted = " ".join(f"'{word}'" for word in words)
    code = f"{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _adapters_hub\n"
    code += 'printf "%s\\n" "${COMPREPLY[@]}"'
    ran = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_flags_and_choices():
    assert complete(["adapters-hub", "trai"]) == ["train"]
    assert complete(["adapters-hub", "train", ""])[:2] == ["language", "domain"]
    assert complete(["adapters-hub", "train", "domain", "--rank"]) == ["--rank"]
    assert complete(["adapters-hub", "train", "domain", "--schedule", "c"]) == [
        "cosine", "constant"
    ]  # fmt: skip
    assert complete(["adapters-hub", "completion", ""])[-3:] == ["bash", "zsh", "fish"]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shell_gets_a_script(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("adapters-hub", "evaluate", "learning-rate", "fish"):
        assert word in script


def test_only_the_chosen_command_gets_its_many_flags():
    def flags(made):
        actions = [a for a in made._actions if isinstance(a, argparse._SubParsersAction)]
        return len(actions[0].choices["evaluate"]._actions)

    assert flags(parser("list")) == 1
    assert flags(parser("evaluate")) > 50


# ── several processes ────────────────────────────────────────────────────────────────────────────


def ranks(failing, seconds):
    """A command whose processes say who they are; one of them fails, the others take a while."""
    code = (
        "import os, sys, time\n"
        "rank = os.environ['RANK']\n"
        "print('rank', rank, 'of', os.environ['WORLD_SIZE'])\n"
        "print('said by', rank, file=sys.stderr)\n"
        f"sys.exit(3) if rank == '{failing}' else time.sleep({seconds})"
    )
    return [sys.executable, "-c", code]


def test_several_processes_end_together(capfd):
    assert run_in_processes(ranks(None, 0), 2) == 0
    assert capfd.readouterr().out == "rank 0 of 2\n"
    assert run_in_processes(ranks(1, 600), 2) == 3
    assert "said by 1" in capfd.readouterr().err
    assert run_in_processes(ranks(0, 600), 2) == 3
    assert "said by 1" not in capfd.readouterr().err
