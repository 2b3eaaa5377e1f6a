"""Debian packages and the translations of their descriptions, by apt, into a folder of our own.

Knows apt and files; does not know what is in a package.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from clean import LANGUAGES

APT_LANGUAGES = [*(code for code in LANGUAGES if code not in ("pt", "zh")), "pt", "pt_BR", "zh_CN"]


def prepare_apt(folder: Path) -> dict[str, str]:
    """Return an environment whose apt fetches the Translation indices into our own folder.

    System images often switch these indices off, so the system's configuration parts are left
    out; its sources and keys are used as they are.
    """
    for name in ("parts", "lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    languages = " ".join(f'"{code}";' for code in APT_LANGUAGES)
    (folder / "apt.conf").write_text(
        f'Dir::Etc::parts "{folder}/parts";\nDir::State::Lists "{folder}/lists";\n'
        f'Dir::Cache "{folder}/cache";\nAcquire::Languages {{ {languages} }};\n'
        'Acquire::Check-Valid-Until "false";\nAcquire::Check-Date "false";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(folder / "apt.conf"), "LC_ALL": "C.UTF-8"}
    subprocess.run(["apt-get", "-qq", "update"], env=environment, check=True)
    return environment


def download(names: list[str], folder: Path, environment: dict[str, str]) -> list[Path]:
    """Fetch the packages that are not in the folder yet and return all package files."""
    folder.mkdir(exist_ok=True)
    present = {path.name.split("_")[0] for path in folder.glob("*.deb")}
    missing = [name for name in names if name not in present]
    if missing:
        subprocess.run(["apt-get", "-qq", "download", *missing],
                       env=environment, cwd=folder, check=True)  # fmt: skip
    wanted = set(names)
    return sorted(path for path in folder.glob("*.deb") if path.name.split("_")[0] in wanted)
