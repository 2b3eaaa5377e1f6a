"""A signed adapter's folder, copied as it is: what `Library.add` does where it must be signed.

The files that a library writes by itself are not the ones that were signed. Knows files and keys.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from adapters_hub.errors import AdapterFileError, SignatureError
from adapters_hub.library.adapter_file import read_adapter
from adapters_hub.library.safetensors_file import inspect, open_regular
from adapters_hub.library.signatures import (
    SIGNATURE_FILE,
    PublicKey,
    check_signed,
    read_signature,
)

PICKLE_SUFFIXES = (".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")
"""Ends of names of files that their usual readers open as pickles, or may."""


def copy_signed(source: Path, target: Path, keys: Iterable[PublicKey]) -> None:
    """Copy a signed folder's files into an empty one, and check the copy.

    Raises `SignatureError` unless one of the keys signed just these files, and `AdapterFileError`
    for a lone file, pickles, and numbers that are none.
    """
    keys = list(keys)
    if not source.is_dir():
        raise SignatureError(
            f"{source}: this library demands signatures, and keeps a signed folder as it is; a "
            "lone file would be written anew: add it elsewhere, sign the folder there, add that"
        )
    _, signed = read_signature(source, keys)
    for name in sorted(signed):
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or "\\" in name or not place.parts:
            raise SignatureError(f"{source}: signed, but {name!r} is no path in a folder")
        if place.suffix.lower() in PICKLE_SUFFIXES:
            raise AdapterFileError(
                f"{source / name}: a pickle, which can run code when it is opened, never goes into "
                "a library; leave it out and sign again"
            )
    for name in (*sorted(signed), SIGNATURE_FILE):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            with open_regular(source / name) as old, open(target / name, "xb") as new:
                shutil.copyfileobj(old, new)
                new.flush()
                os.fsync(new.fileno())
        except FileNotFoundError:
            raise SignatureError(f"{source}: not as it was signed: missing: {name}") from None
    check_signed(target, keys)
    files = read_adapter(target)
    _, bad = inspect(files.weights, files.header)
    if bad:
        raise AdapterFileError(f"{source}: {bad} holds NaN or infinity")
