"""Name the licence families of a package from its copyright file."""

from __future__ import annotations

import re
import subprocess
import tarfile
from pathlib import Path

FAMILIES = (
    ("GFDL", r"GFDL|Free Documentation Licen"),
    ("LGPL", r"LGPL|Lesser General Public|Library General Public"),
    ("GPL", r"(?<![AL])GPL|GNU General Public|common-licenses/GPL"),
    ("AGPL", r"AGPL|Affero"),
    ("MPL", r"MPL|Mozilla Public"),
    ("Apache-2.0", r"Apache"),
    ("MIT", r"\bMIT\b|Expat|Permission is hereby granted"),
    ("BSD", r"BSD|Redistribution and use"),
    ("CC-BY-SA", r"CC[- ]BY[- ]SA|Attribution-Share"),
    ("CC-BY", r"CC[- ]BY(?![- ]SA)|Attribution [34]"),
    ("CC0", r"CC0"),
    ("Artistic", r"Artistic"),
    ("public-domain", r"[Pp]ublic[- ][Dd]omain"),
    ("verbatim-copyleft", r"verbatim\s+copies\s+of\s+this"),
    ("per-page", r"varieties of licenses"),
)


def classify(text: str) -> list[str]:
    """Return the families named in the License fields, or in the whole text without fields."""
    fields = "\n".join(re.findall(r"^License:\s*(.+)$", text, re.MULTILINE))
    for part in (fields, text):
        names = [name for name, pattern in FAMILIES if re.search(pattern, part)]
        if names:
            return names
    return ["other"]


def read_licences(path: Path) -> tuple[list[str], str]:
    """Return the licences of a package file, and the package that holds them if it is another.

    Packages built from one source often only link to the documentation folder of a sibling.
    """
    package = path.name.split("_")[0]
    folder = f"./usr/share/doc/{package}"
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            licences, sibling = [], ""
            for member in archive:
                if member.name == f"{folder}/copyright" and member.isfile():
                    text = archive.extractfile(member).read().decode(errors="replace")
                    licences = classify(text)
                elif member.name in (folder, f"{folder}/copyright") and member.issym():
                    target = re.sub(r"/copyright$|/$", "", member.linkname)
                    sibling = target.rsplit("/", 1)[-1]
        process.stdout.read()
    return licences, sibling


def resolve(about: list[dict], folder: Path, environment: dict[str, str]) -> None:
    """Fill in the licences of packages that keep them in a sibling package."""
    folder.mkdir(exist_ok=True)
    for info in about:
        if info["licences"]:
            continue
        paths = list(folder.parent.glob(f"*/{info['package']}_*.deb"))
        sibling = read_licences(paths[0])[1]
        known = {entry["package"]: entry["licences"] for entry in about}
        if sibling and not known.get(sibling):
            subprocess.run(["apt-get", "-qq", "download", sibling],
                           env=environment, cwd=folder, check=True)  # fmt: skip
            info["licences"] = read_licences(next(folder.glob(f"{sibling}_*.deb")))[0]
        else:
            info["licences"] = known.get(sibling, [])
        info["licences"] = info["licences"] or ["other"]
