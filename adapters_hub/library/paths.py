"""Where the things that ship lie, in a checkout and in an installed wheel."""

import os
from pathlib import Path

from adapters_hub.errors import LibraryError

STARTER = "starter"
_PACKAGE = Path(__file__).parent.parent


def default_root() -> Path:
    """``$ADAPTERS_HUB_LIBRARY``, else ``./adapters``, else the adapters that ship."""
    if chosen := os.environ.get("ADAPTERS_HUB_LIBRARY"):
        return Path(chosen)
    return Path("adapters") if Path("adapters").is_dir() else bundled_root()


def bundled_root() -> Path:
    """The library that ships: inside the package in a wheel, beside it in a checkout."""
    inside = _PACKAGE / "adapters"
    return inside if inside.is_dir() else _PACKAGE.parent / "adapters"


def is_bundled(root: Path, *, by_default: bool) -> bool:
    """Whether a library is the one that ships, and so is never changed.

    In a wheel that folder is; in a checkout only for who named no folder and is somewhere else.
    """
    bundled = bundled_root()
    if not bundled.is_dir() or not root.is_dir() or not root.samefile(bundled):
        return False
    return root == bundled if by_default else bundled.is_relative_to(_PACKAGE)


def starter_folder() -> Path:
    """The checkpoint folder of the starter backbone."""
    return _PACKAGE / STARTER


def sample_folder(name: str) -> Path:
    """Sample text that ships: inside the package in a wheel, among the recipes in a checkout."""
    inside = _PACKAGE / "samples" / name
    folder = inside if inside.is_dir() else _PACKAGE.parent / "recipes" / name
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def check_writable(root: Path) -> None:
    """Raise `LibraryError` for a folder in which nothing can be put, or that cannot be made."""
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return
    why = "is no folder" if not there.is_dir() else "cannot be written"
    raise LibraryError(
        f"{root}: no adapter can be stored there, because {there} {why}; choose another --library"
    )
