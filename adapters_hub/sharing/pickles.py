"""An old adapter's pickle, made into safetensors by a process of its own that has no network.

This process never opens the file: `pickle_sandbox` does, with limits, and reads tensors alone. What
it writes is read as any stranger's file. Never imports torch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from adapters_hub.errors import AdapterFileError
from adapters_hub.sharing import pickle_sandbox

_SECONDS = 120  # and one for every 5 MB; most of it is to import torch


def convert_pickle(source: Path, target: Path) -> None:
    """Write the tensors of a file of ``torch.save`` as safetensors.

    Raises `AdapterFileError` for what holds other objects than tensors, needs too much, or cannot
    be opened safely on this machine.
    """
    folder = target.parent
    environment = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    program = str(Path(pickle_sandbox.__file__).absolute())
    try:
        done = subprocess.run(
            [sys.executable, "-I", program, str(source.absolute()), str(target.absolute())],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS + source.stat().st_size // 5_000_000,
        )
    except subprocess.TimeoutExpired:
        raise AdapterFileError(f"{source}: its conversion took too long and was stopped") from None
    except OSError as error:
        raise AdapterFileError(f"{source}: {error.strerror or error}") from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        answer = {"error": f"the process that opened it ended with {done.returncode}"}
    if "error" in answer or not target.is_file():
        target.unlink(missing_ok=True)
        raise AdapterFileError(f"{source}: not converted: {ascii(answer.get('error'))[1:-1]}")
