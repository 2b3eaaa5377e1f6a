"""Files and folders that are there whole or not at all: written beside, renamed into place."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name complete or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of ``target`` at the end, or is gone.

    What else is in a folder that is there already stays in it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    old = stage.with_name(f"{stage.name}.old")
    try:
        stage.mkdir()
        yield stage
        present = {file.name for file in target.iterdir()} if target.is_dir() else set()
        if present - {file.name for file in stage.iterdir()}:
            for file in stage.iterdir():
                os.replace(file, target / file.name)
            return
        if present:
            os.replace(target, old)
        elif target.is_dir():
            target.rmdir()  # an empty one, which Windows would not replace
        os.replace(stage, target)
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        shutil.rmtree(stage, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
