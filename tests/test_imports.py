"""What importing brings in, and that modules import only downwards."""

import ast
import importlib
import json
from functools import cache

import pytest
from helpers import ROOT, run_python

import adapters_hub

PACKAGE = ROOT / "adapters_hub"
ORDER = [
    "errors",
    "languages",
    "blend",
    "tensorfile",
    "blendfile",
    "patterns",
    "info",
    "card",
    "tables",
    "fingerprint",
    "paths",
    "lookup",
    "library",
    "shell",
    "narrow",
    "backbone",
    "plan",
    "adapter",
    "window",
    "bank",
    "residency",
    "prompting",
    "corespace",
    "entries",
    "compose",
    "merging",
    "exporting",
    "tasks.base",
    "tasks.heads",
    "tasks.pairs",
    "tasks.classification",
    "tasks.language_modeling",
    "tasks.text_scores",
    "tasks.generation",
    "tasks.language_codes",
    "tasks.translation",
    "embedding",
    "ranking",
    "bootstrap",
    "tasks.retrieval",
    "tasks.squad",
    "tasks.question_answering",
    "tasks.tokens",
    "tasks",
    "model",
    "loading",
    "generation",
    "batches",
    "data",
    "fitting",
    "settings",
    "evaluation",
    "interpretability.geometry",
    "interpretability.comparison",
    "interpretability.correlation",
    "interpretability.inside",
    "interpretability.attribution",
    "interpretability.plotting",
    "interpretability",
    "checkpoint",
    "training",
    "experiment",
    "matrix_report",
    "matrix",
    "cli",
]
HEAVY = {"torch", "transformers", "peft", "numpy", "accelerate", "datasets", "pyarrow"}


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def modules():
    """Every module of the package by name; the package itself is the empty name."""
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def only_for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements_at_import(body):
    """The statements that run when a module is imported."""
    for node in body:
        if only_for_types(node) or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield node
        for block in ("body", "orelse", "finalbody", "handlers"):
            yield from statements_at_import(getattr(node, block, []))


@cache
def imported_at_import(path):
    """The package's modules that a module imports when it is imported itself."""
    known = set(modules())
    found = set()
    for node in statements_at_import(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            full = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        else:
            continue
        for name in full:
            package, _, rest = name.partition(".")
            if package == "adapters_hub" and rest in known:
                found.add(rest)
    return frozenset(found - {""})


def test_the_order_names_every_module():
    assert sorted(ORDER) == sorted(name for name in modules() if name and name != "__main__")


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_those_before_it(name):
    before = set(ORDER[: ORDER.index(name)])
    assert imported_at_import(modules()[name]) <= before


def test_the_check_sees_imports():
    assert imported_at_import(modules()["library"]) >= {"errors", "info", "lookup", "tensorfile"}
    assert imported_at_import(modules()["tasks.classification"]) >= {"tasks.base", "errors"}
    assert imported_at_import(modules()[""]) == frozenset()


def test_every_module_imports_by_itself_first():
    light = [*ORDER[: ORDER.index("shell")], "settings", "batches", "cli"]
    code = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module("adapters_hub." + name)
    assert not {"torch", "transformers", "peft"} & set(sys.modules), name
    for loaded in [m for m in sys.modules if m.startswith("adapters_hub")]:
        del sys.modules[loaded]
"""
    run_python(code, *light)


def loaded_after(code, *arguments):
    shown = "import json, sys\nprint(json.dumps([m for m in sys.modules if '.' not in m]))"
    return set(json.loads(run_python(f"{code}\n{shown}", *arguments).stdout.splitlines()[-1]))


def test_importing_the_package_brings_in_nothing_heavy():
    loaded = loaded_after("import adapters_hub")
    assert "adapters_hub" in loaded
    assert not loaded & (HEAVY | {"yaml", "langcodes", "filelock", "safetensors"})


def test_listing_and_adding_bring_in_no_torch(tmp_path):
    code = """
import sys
from pathlib import Path
import adapters_hub as ah
from helpers import write_peft_folder
library = ah.Library(Path(sys.argv[1]) / "library")
library.add(write_peft_folder(Path(sys.argv[1]) / "source"), language="de")
assert [info.name for info in library.list()] == ["de"]
assert library.find("German").name == library.resolve("de").info.name == "de"
assert library.verify("de") == []
"""
    loaded = loaded_after(code, tmp_path)
    assert "numpy" in loaded
    assert not loaded & {"torch", "transformers", "peft", "accelerate"}
    loaded = loaded_after(
        "import sys, adapters_hub\nassert len(adapters_hub.Library(sys.argv[1]).list()) == 1",
        tmp_path / "library",
    )
    assert not loaded & HEAVY


def test_all_is_what_can_be_reached():
    assert len(set(adapters_hub.__all__)) == len(adapters_hub.__all__)
    assert set(adapters_hub.__all__) <= set(dir(adapters_hub))
    for name, home in adapters_hub._HOME.items():
        source = ast.parse((PACKAGE / f"{home}.py").read_text(encoding="utf-8"))
        made = {getattr(node, "name", None) for node in source.body}
        assert name in made, f"{home}.py defines no {name}"
    for name, home in adapters_hub._HOME.items():
        if home not in ("fitting", "model", "training"):
            module = importlib.import_module(f"adapters_hub.{home}")
            assert getattr(adapters_hub, name) is getattr(module, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        adapters_hub.nothing  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if only_for_types(node)]
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"adapters_hub.{home}" for name, home in adapters_hub._HOME.items()}
    assert set(adapters_hub.__all__) == {*seen, "__version__"}


def test_modules_and_recipes_stay_small():
    def lines(path):
        return len(path.read_text(encoding="utf-8").splitlines())

    assert {path.name: lines(path) for path in modules().values() if lines(path) > 500} == {}
    recipes = sorted((ROOT / "recipes").glob("*.py"))
    assert len(recipes) >= 2
    assert {path.name: lines(path) for path in recipes if lines(path) > 200} == {}
