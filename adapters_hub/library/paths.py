"""Where the things that ship are found, in a checkout and in an installed wheel."""

import os
from pathlib import Path

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


def starter_folder() -> Path:
    """The checkpoint folder of the starter backbone."""
    return _PACKAGE / STARTER
