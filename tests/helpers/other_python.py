"""Running code in an engine's own environment, and its arrays back."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import adapters_hub as ah


def engine(name):
    """The Python that $ADAPTERS_HUB_TEST_<NAME> names, and the marks of tests that need it."""
    variable = f"ADAPTERS_HUB_TEST_{name}"
    python = os.environ.get(variable)
    reason = f"${variable} names no Python"
    return python, [pytest.mark.engines, pytest.mark.skipif(python is None, reason=reason)]


def run(python, code, folder, tmp_path, given, **environment):
    """What ``code`` makes of arrays: it gets ``folder`` and ``given``, and sets ``result``."""
    np.savez(tmp_path / "given.npz", **given)
    whole = (
        "import sys\nimport numpy as np\n"
        "folder, given = sys.argv[1], dict(np.load(sys.argv[2]))\n"
        f"{code}\nnp.save(sys.argv[3], np.asarray(result))\n"
    )
    made = tmp_path / "result.npy"
    command = [python, "-c", whole, str(folder), str(tmp_path / "given.npz"), str(made)]
    root = str(Path(ah.__file__).parents[1])
    variables = {**os.environ, "PYTHONPATH": root, **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.tensor(np.load(made))
