"""The notebooks are valid, keep no output, and run from the first cell to the last."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(path, kind):
    book = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


def test_there_are_four_and_the_page_names_them():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 4
    assert re.findall(r"\]\(([^)]+\.ipynb)\)", page) == [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_valid_and_keep_no_output(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["metadata"]["language_info"]["name"]) == (4, "python")
    ids = [cell["id"] for cell in book["cells"]]
    assert len({*ids}) == len(ids)
    for cell in book["cells"]:
        assert len(cell["source"]) <= 32, "cells are small"
        assert cell.get("outputs", []) == []
    for code in cells(path, "code"):
        compile(code, path.name, "exec")
    assert not re.search(r"/home/|/root/|/Users/", path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run(path, tmp_path):
    """In one process each, a cell after the other, as a kernel would: no kernel is installed."""
    program = tmp_path / f"{path.stem}.py"
    program.write_text("\n\n".join(cells(path, "code")), encoding="utf-8")
    before = {*FOLDER.iterdir()}
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, program], cwd=FOLDER, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert {*FOLDER.iterdir()} == before
