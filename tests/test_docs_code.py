"""Every block of code in README and docs: Python is run, commands are parsed, outputs compared."""

import argparse
import contextlib
import importlib.util
import io
import re
import shlex
import shutil
from itertools import pairwise

import pytest
from helpers import ROOT
from helpers.documents import PAGES, Block, blocks_of, commands_of

import adapters_hub as ah

NOT_RUN = {"docs/engines.md": 1, "docs/serving.md": 1, "docs/sharing.md": 1}
"""How many blocks of a page are marked as not run."""

TASKS = {
    "mood": ("classification", {"label_names": ("bad", "good")}),
    "hotel-qa": ("question-answering", {}),
    "hotel-names": ("token-classification", {"label_names": ("O", "B-NAME", "I-NAME")}),
    "law-search": ("retrieval", {}),
    "law": ("generation", {"prompt": "{text}\n\n{question}\n"}),
    "news": ("translation", {}),
}
"""Adapters that the pages speak of, with their tasks; here untrained."""

OTHERS = ("pip", "python", "torchrun", "pytest", "vllm", "hf", "eval", "serving/bin/pip")
"""Programs that are not of this project, at the start of a command."""


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def with_kinds(*kinds):
    """The pages that have a block of one of these kinds."""
    return [page for page in PAGES if any(block.kind in kinds for block in blocks_of(page))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that looks as the pages say: a checkout, a backbone, adapters, a PEFT folder."""
    from peft import LoraConfig

    from adapters_hub.tasks.registry import make_task

    folder = tmp_path_factory.mktemp("reader")
    for name in ("recipes", "benchmarks", "docs"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ah.Library(ROOT / "adapters").root, folder / "adapters", symlinks=True)
    (folder / "my").mkdir()
    (folder / "my/model").symlink_to(ROOT / "adapters_hub/starter")
    shutil.copytree(ROOT / "adapters/hotel", folder / "some/peft/folder")
    library = ah.Library(folder / "adapters")
    model = ah.load_backbone("starter", library=library)
    for name, (task_name, options) in TASKS.items():
        task = make_task(task_name, **options)
        info = ah.AdapterInfo(
            name=name, task=task_name, labels=task.labels, backbone="starter",
            fingerprint=model.backbone.fingerprint,
        )  # fmt: skip
        lora = LoraConfig(r=1, target_modules="all-linear")
        fresh = task.finished(task.new_adapter(info, model.backbone, lora))
        library.add(fresh.save(folder / "untrained" / name))
    return folder


@pytest.fixture
def tables():
    """The tables that a reader may add to, as they were afterwards."""
    from adapters_hub.compose.methods import METHODS
    from adapters_hub.sharing.engines import ENGINES

    kept = [(table, dict(table)) for table in (METHODS, ENGINES)]
    yield
    for table, before in kept:
        table.clear()
        table.update(before)


def agree(printed, expected):
    """Whether an output is what a page shows, where … stands for anything on its line."""
    pattern = re.escape(expected.strip()).replace("…", ".*")
    return re.fullmatch(pattern, printed.strip())


@pytest.mark.slow
@pytest.mark.parametrize("page", with_kinds("python"), ids=name_of)
def test_python_runs_and_prints_what_the_page_says(page, place, tables, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.delenv("ADAPTERS_HUB_LIBRARY", raising=False)
    names = {"__name__": "__main__"}
    for block, after in pairwise([*blocks_of(page), Block("", "", 0)]):
        if block.kind != "python" or block.reason:
            continue
        code = "\n" * (block.line - 1) + block.text  # so that a traceback has the page's line
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(code, str(page), "exec"), names)
        if after.kind == "text":
            assert agree(output.getvalue(), after.text), f"{page}:{after.line}"


def test_what_is_not_run_is_counted():
    marked = {name_of(page): sum(bool(b.reason) for b in blocks_of(page)) for page in PAGES}
    assert {name: count for name, count in marked.items() if count} == NOT_RUN


def programs(arguments):
    """A command's words without the variables that are set before it."""
    while re.match(r"\w+=", arguments[0]):
        arguments = arguments[1:]
    return arguments


def launched(arguments):
    """The recipe that accelerate or torchrun launches, and its arguments."""
    at = next(n for n, word in enumerate(arguments) if word.startswith("recipes/"))
    return arguments[at], arguments[at + 1 :]


class ParsedError(BaseException):
    """A command's arguments are right; it goes no further."""


@pytest.fixture
def parsed_only(monkeypatch):
    """No command does more than read its arguments."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse(*arguments):
        parse_args(*arguments)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)


def check_command(command):
    """Exit where a command of this project would be refused by its arguments."""
    from adapters_hub.cli import main
    from adapters_hub.evaluation.matrix_settings import MatrixSettings
    from adapters_hub.training.settings import TrainingSettings, parse_settings

    arguments = programs(shlex.split(command))
    program = arguments[0]
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{arguments[1]}:", makefile, re.M), command
    elif program == "adapters-hub":
        with contextlib.suppress(ParsedError):
            main(arguments[1:])
    elif program == "accelerate":
        if "-m" in arguments:
            assert importlib.util.find_spec(arguments[arguments.index("-m") + 1]), command
            return
        recipe, rest = launched(arguments)
        kind = MatrixSettings if recipe.endswith("evaluate_matrix.py") else TrainingSettings
        with contextlib.suppress(ParsedError):
            parse_settings(rest, kind=kind)
    else:
        assert program in OTHERS, f"{command}: what is {program}?"
    for word in arguments:
        if re.match(r"(recipes|benchmarks|tests|docs|adapters_hub)/\S+\.(py|md|sh)$", word):
            assert (ROOT / word).is_file(), f"{command}: there is no {word}"


@pytest.mark.parametrize("page", with_kinds("sh", "bash"), ids=name_of)
def test_commands_parse(page, parsed_only, capsys):
    for block in blocks_of(page):
        if block.kind not in ("sh", "bash") or block.reason:
            continue
        for command in commands_of(block):
            try:
                check_command(command)
            except SystemExit as refused:
                if refused.code:
                    pytest.fail(f"{page.name}: {command}\n{capsys.readouterr().err}")


@pytest.mark.parametrize(
    "command",
    ["adapters-hub list --colour", "accelerate launch recipes/lora_domain.py --ranks 8"],
)
def test_a_wrong_flag_is_seen(command, parsed_only):
    with pytest.raises(SystemExit):
        check_command(command)
