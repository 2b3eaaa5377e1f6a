"""Runs the recipes: in this process, or by ``accelerate launch``."""

import contextlib
import io
import os
import runpy
import subprocess
import sys

from helpers import ROOT

RECIPES = ROOT / "recipes"


def run(recipe, *arguments, monkeypatch, cwd):
    """Run a recipe in this process, as ``accelerate launch`` would with one process.

    Where it refuses, what it said is in the `SystemExit`.
    """
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", [str(RECIPES / recipe), *map(str, arguments)])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            runpy.run_path(str(RECIPES / recipe), run_name="__main__")
    except SystemExit as stop:
        raise SystemExit(said.getvalue() if stop.code == 1 else stop.code) from stop
    finally:
        sys.stderr.write(said.getvalue())


def launch(recipe, *arguments, processes, cwd, sharded=False, **options):
    """Run a recipe by ``accelerate launch`` on the CPU.

    ``accelerate launch --cpu`` starts one process whatever ``--num_processes`` says; with
    ``--multi_gpu`` it starts as many as it is told, and the recipe's ``--cpu`` keeps them there.
    ``sharded``: with FSDP2, as a user asks for it.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    command += ["--num_processes", str(processes), "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
    several = ["--use_fsdp", "--fsdp_version", "2"] if sharded else ["--multi_gpu"]
    command += [*several, "--main_process_port", "0"] if processes > 1 else ["--cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(RECIPES / recipe), *map(str, arguments)],
        cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        **options,
    )  # fmt: skip
