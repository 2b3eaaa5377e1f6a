"""What is written about the project beside it: the workflow, the page on its rooms, its numbers."""

import re
import sys
import tomllib

import yaml
from helpers import ROOT

sys.path.insert(0, str(ROOT / "docs"))
from import_graph import circles, layers, upward


def commands_of(target):
    """The commands of a target of the Makefile, without the virtual environment's path."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.M)[1]
    return [line.strip().replace("$(BIN)/", "") for line in recipe.splitlines()]


def test_the_workflow_runs_what_ci_runs():
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    job = yaml.safe_load(text)["jobs"]["check"]
    assert job["strategy"]["matrix"] == {
        "os": ["ubuntu-latest", "macos-latest", "windows-latest"],
        "python": ["3.11", "3.12", "3.13", "3.14"],
    }
    runs = {step["if"]: step["run"] for step in job["steps"] if "run" in step}
    assert runs["runner.os != 'Windows'"] == ".ci/run"
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)$", script, re.M)
    assert targets == ["check", "test"]
    by_hand = runs["runner.os == 'Windows'"].splitlines()
    (install,) = [c for c in commands_of(r"\$\(VENV\)/installed") if "pip install" in c]
    expected = [install.replace("pip ", "python -m pip ", 1)]
    expected += [command for target in targets for command in commands_of(target)]
    assert [line for line in by_hand if not line.startswith("$")] == expected


def test_the_page_names_every_room():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    tree = re.search(r"```\n(adapters_hub/\n.*?)```", page, re.S)[1]
    named = {line.split()[0] for line in tree.splitlines() if line.startswith("  ")}
    rooms = [path.parent.name for path in (ROOT / "adapters_hub").glob("*/__init__.py")]
    assert {name for name in named if name.endswith("/")} == {f"{room}/" for room in rooms}
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    floors = contracts["tool"]["importlinter"]["contracts"][0]["layers"]
    listed = {room.strip() for floor in floors for room in floor.split("|")}
    assert {name.rstrip("/").removesuffix(".py") for name in named} == listed


def test_the_import_graph_is_counted():
    graph = {"p.a": {"p.b"}, "p.b": {"p.c"}, "p.c": {"p.b", "p.d"}, "p.d": set()}
    assert sorted(map(sorted, circles(graph))) == [["p.a"], ["p.b", "p.c"], ["p.d"]]
    assert layers(graph) == 3
    assert upward(graph, ["a", "b | c", "d"]) == []
    assert upward(graph, ["a", "c", "b", "d"]) == [("p.b", "p.c")]
