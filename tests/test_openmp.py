"""How torch's threads wait: the programs say it to OpenMP in time, an import never does."""

import json
import sys

import pytest
from helpers import ROOT, run_python

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
PROGRAMS = {
    "recipe": "from adapters_hub.recipes.program import run_program\nrun_program(run)",
    "command line": "from adapters_hub.cli import main\nmain(['list'])\nrun()",
}
SHOWN = f"""
import json, os
def run():
    print(json.dumps({{name: os.environ.get(name) for name in {WAITING}}}))
"""


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)


def waiting(code):
    """The variables at the end of some code, as a program of its own."""
    return json.loads(run_python(f"{SHOWN}\n{code}").stdout.splitlines()[-1])


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_has_its_threads_spin_for_a_moment_only(program):
    assert waiting(PROGRAMS[program]) == {**dict.fromkeys(WAITING), "GOMP_SPINCOUNT": "1000"}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", WAITING)
def test_what_a_user_sets_wins(program, name, monkeypatch):
    monkeypatch.setenv(name, "7")
    assert waiting(PROGRAMS[program]) == {**dict.fromkeys(WAITING), name: "7"}


@pytest.mark.slow
def test_an_import_sets_nothing():
    code = """
import os
before = dict(os.environ)
import adapters_hub as ah
assert dict(os.environ) == before
for name in ah.__all__:
    getattr(ah, name)
run()
"""
    assert waiting(code) == dict.fromkeys(WAITING)


@pytest.mark.slow
def test_nothing_is_set_once_torch_is_loaded():
    assert waiting(f"import torch\n{PROGRAMS['recipe']}") == dict.fromkeys(WAITING)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what GNU's OpenMP prints")
def test_openmp_reads_it_in_a_recipe(monkeypatch):
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")
    monkeypatch.chdir(ROOT)
    code = (
        "from adapters_hub.recipes.program import run_program\n"
        "{}run_program(lambda: __import__('torch') and 0)"
    )
    assert "GOMP_SPINCOUNT = '1000'" in run_python(code.format("")).stderr
    spins = run_python(code.format("import torch\n")).stderr
    assert "GOMP_SPINCOUNT = '" in spins
    assert "GOMP_SPINCOUNT = '1000'" not in spins
