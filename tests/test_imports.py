"""What importing brings in; which room may import which is in pyproject.toml, for lint-imports."""

import ast
import importlib
import json
import sys

import pytest
from helpers import ROOT, run_python

import adapters_hub

PACKAGE = ROOT / "adapters_hub"
HEAVY = {"torch", "transformers", "peft", "numpy", "accelerate", "datasets", "pyarrow"}


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def modules():
    """Every module of the package by name; the package itself is the empty name."""
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def only_for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


@pytest.mark.slow
def test_every_module_imports_by_itself_first():
    rooms = ("library", "data", "cli")
    light = [name for name in modules() if name.partition(".")[0] in rooms]
    assert len(light) > 15
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
library.push("de", "memory://x")
assert ah.Library(Path(sys.argv[1]) / "other").pull("memory://x").name == "de"
from huggingface_hub import HfApi
"""
    loaded = loaded_after(code, tmp_path)
    assert "numpy" in loaded
    assert not loaded & {"torch", "transformers", "peft", "accelerate"}
    loaded = loaded_after(
        "import sys, adapters_hub\nassert len(adapters_hub.Library(sys.argv[1]).list()) == 1",
        tmp_path / "library",
    )
    assert not loaded & HEAVY


@pytest.mark.parametrize("recipe", ["lora_language", "lora_domain", "evaluate_matrix"])
def test_a_recipe_shows_its_help_without_torch(recipe):
    code = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as done:
    assert done.code == 0
"""
    assert not loaded_after(code, ROOT / "recipes" / f"{recipe}.py") & {"torch", "transformers"}


def test_all_is_what_can_be_reached():
    assert len(set(adapters_hub.__all__)) == len(adapters_hub.__all__)
    assert set(adapters_hub.__all__) <= set(dir(adapters_hub))
    for name, home in adapters_hub._HOME.items():
        path = PACKAGE.joinpath(*home.split(".")).with_suffix(".py")
        source = ast.parse(path.read_text(encoding="utf-8"))
        made = {getattr(node, "name", None) for node in source.body}
        assert name in made, f"{home}.py defines no {name}"
    for name, home in adapters_hub._HOME.items():
        if not home.startswith(("model", "training")):
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


def test_what_keras_needs_brings_in_no_torch():
    assert not loaded_after("import adapters_hub.sharing.keras") & HEAVY


def test_no_modules_reach_each_other_in_a_circle():
    sys.path.insert(0, str(ROOT / "docs"))
    from import_graph import circles, imports

    assert [group for group in circles(imports()) if len(group) > 1] == []
