"""The README is checked against the disk: its tree, its commands, its Python names."""

import re

from helpers import ROOT

import adapters_hub as ah

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tree_is_what_is_on_disk():
    tree = re.search(r"```\n(adapters_hub/\n.*?)```", README, re.S)[1]
    lines = tree.splitlines()
    inside = {line.split()[0] for line in lines if line.startswith("  ")}
    top = {line.split()[0] for line in lines if not line.startswith("  ")}
    package = ROOT / "adapters_hub"
    on_disk = {p.name for p in package.glob("*.py")}
    on_disk |= {f"{p.name}/" for p in package.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert inside == on_disk
    assert all((ROOT / name).is_dir() for name in top)


def test_commands_and_links_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.M) + re.findall(r"`make (\w+)`", README):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
    for program in re.findall(r"(?:recipes|benchmarks)/\w+\.py", README):
        assert (ROOT / program).is_file(), program


def test_python_names_in_the_readme_exist():
    for name in set(re.findall(r"\bah\.(\w+)", README)):
        assert hasattr(ah, name), name
    for name in set(re.findall(r"\bmodel\.(\w+)\(", README)):
        assert hasattr(ah.AdaptedModel, name), name
    for name in set(re.findall(r"\blibrary\.(\w+)\(", README)):
        assert hasattr(ah.Library, name), name


def test_flags_in_the_readme_are_settings():
    from dataclasses import fields

    known = {f.name for f in fields(ah.TrainingSettings)} | {"config", "help"}
    for block in re.findall(r"accelerate launch recipes/\w+\.py((?:[^\n`]|\\\n)*)", README):
        for flag in re.findall(r"--([\w-]+)", block):
            assert flag.replace("-", "_") in known, flag
