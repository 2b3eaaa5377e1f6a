"""Build the multilingual text of the starter backbone from Debian packages.

    python recipes/starter/corpus.py --out BUILD_FOLDER

Text comes from translated package descriptions (apt's Translation indices), manual pages,
handbooks and message catalogues of the packages named in packages.txt. Packages are fetched with
apt and read in memory; nothing is installed. Needs root only if apt does. BUILD_FOLDER gets

    mono/<lang>.<split>.jsonl       {"text", "language", "domain", "source"}
    parallel/en-<lang>.<split>.jsonl {"source", "target", "target_language", "domain", "package"}
    lm/<lang>.<split>.jsonl         a sample of mono/ for training language adapters
    domains/<domain>.<split>.jsonl  one of some domains, in those languages
    sources.json                    name, version, licences and segments of every source package
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import tarfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from assemble import Versions, write_mono, write_parallel, write_samples
from clean import LANGUAGES, accept
from extract import read_descriptions, read_man, read_markup, read_mo
from fetch import download, prepare_apt
from licences import classify, resolve

CODES = {"c": "en", "en-us": "en", "pt-br": "pt", "pt-pt": "pt", "zh-cn": "zh", "zh-hans": "zh"}
CODES |= {"es-es": "es", "en-gb": "", "zh-tw": "", "zh-hk": ""}
_TEXT_FILE = re.compile(r"\.(mo|html|xml|page|docbook)(\.gz)?$|/man/.*\.gz$")
STORIES = ("wesnoth", "freeciv")
# Blocks: (item, language, text blocks, domain, package). Items are what is kept in one split.
Blocks = tuple[str, str, list[str], str, str]


def normal_code(code: str) -> str | None:
    """Map a locale such as de_DE or C to one of LANGUAGES, or None."""
    if code == "c":
        return None  # a file about the language C
    code = code.lower().replace("_", "-").split(".")[0].split("@")[0]
    code = CODES.get(code, code)
    base = code.split("-")[0] if re.fullmatch(r"[a-z]{2}-([a-z]{2}|419)", code) else code
    return base if base in LANGUAGES else None


def language_of(path: str, package: str) -> tuple[str | None, str]:
    """Return the language of a documentation file and its path without the language."""
    parts = path.split("/")
    for index in range(len(parts) - 1, 1, -1):
        pieces = [parts[index]] if index < len(parts) - 1 else parts[index].split(".")[1:-1]
        for piece in pieces:
            language = normal_code(piece)
            if language:
                parts[index] = parts[index].replace(piece, "*")
                return language, "/".join(parts)
    match = re.search(r"-([a-z]{2}(?:-[a-z]{2})?)$", package)
    if match:
        return normal_code(match.group(1)), path.replace(package, package[: match.start()])
    return ("en", path) if "/man/" in path or "/doc/" in path else (None, path)


def read_package(path: Path) -> tuple[list[Blocks], dict[str, object]]:
    """Extract the text of one package file, and its version and licences."""
    package, version = path.name.split("_")[:2]
    group = re.sub(r"-(l10n|help|doc|dev)?(-[a-z]{2}(-[a-z]{2})?)?$", "", package)
    group = "manpages" if package.startswith("manpages") else group
    texts: list[Blocks] = []
    licences: list[str] = []
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if not member.isfile() or member.size > 6_000_000:
                    continue
                if name == f"usr/share/doc/{package}/copyright":
                    licences = classify(archive.extractfile(member).read().decode(errors="replace"))
                elif _TEXT_FILE.search(name) and "/metainfo/" not in name and "/mime/" not in name:
                    texts += read_file(name, archive.extractfile(member).read(), package, group)
        process.stdout.read()
    return texts, {"package": package, "version": version.replace("%3a", ":"), "licences": licences}


def read_file(name: str, data: bytes, package: str, group: str) -> list[Blocks]:
    """Read one file of a package with the reader for its kind."""
    if name.endswith(".gz"):
        data, name = gzip.decompress(data), name[:-3]
    if name.endswith(".mo"):
        match = re.search(r"/([^/]+)/LC_MESSAGES/", name)
        language = normal_code(match.group(1)) if match else None
        if not language or language == "en":
            return []
        domain = "story" if package.startswith(STORIES) else "interface"
        out = []
        for source, target in read_mo(data):
            good = accept(source, "en", message=True)
            if good:
                # The item names the English text, so it need not be repeated for each language.
                out.append((f"mo:{good}", language, [target], domain, package))
        return out
    manual = "/man/" in name
    if manual:
        match = re.search(r"/man/([^/]+)/", name)
        code = match.group(1)
        language = "en" if re.fullmatch(r"man\d", code) else normal_code(code)
        key = name.rsplit("/", 1)[-1]
        if code.lower().startswith("zh_tw"):
            return []
    else:
        language, key = language_of("/" + name, package)
    if not language:
        return []
    text = data.decode("utf-8", errors="replace")
    blocks = read_man(text) if manual else read_markup(text)
    domain = "manual" if manual else "handbook"
    return [(f"{domain}:{group}:{key}", language, blocks, domain, package)] if blocks else []


def read_translations(lists: Path) -> list[Blocks]:
    """Read the package descriptions; the section is the domain, the source package the item."""
    about: dict[str, tuple[str, str]] = {}
    for index in lists.glob("*_dists_*_main_binary-*_Packages"):
        for stanza in index.read_text(encoding="utf-8").split("\n\n"):
            fields = dict(re.findall(r"^(Package|Source|Section): (\S+)", stanza, re.MULTILINE))
            if "Package" in fields:
                source = fields.get("Source", fields["Package"])
                about[fields["Package"]] = (source, fields.get("Section", "misc").split("/")[-1])
    descriptions: list[Blocks] = []
    for index in sorted(lists.glob("*_main_i18n_Translation-*")):
        language = normal_code(index.name.rsplit("Translation-", 1)[1].replace("%5f", "_"))
        for package, blocks in read_descriptions(index.read_text(encoding="utf-8")):
            if language and package in about:
                source, section = about[package]
                descriptions.append(
                    (f"desc:{source}:{package}", language, blocks, section, package)
                )
    return descriptions


def main() -> None:
    """Fetch, extract, clean and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="build folder")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    environment = prepare_apt(out / "apt")
    names = Path(__file__).with_name("packages.txt").read_text().split()
    files = download(names, out / "debs", environment)

    items: dict[str, dict[str, Versions]] = defaultdict(dict)
    about: list[dict[str, object]] = []
    descriptions = read_translations(out / "apt" / "lists")
    with ProcessPoolExecutor(options.workers) as pool:
        for texts, info in pool.map(read_package, files):
            about.append(info)
            add(items, texts)
    add(items, descriptions)
    print(f"{len(files)} packages, {len(items)} items", flush=True)
    resolve(about, out / "debs-licences", environment)
    used = write_mono(items, out / "mono")
    write_parallel(items, out / "parallel", out / "mono")
    write_samples(out / "mono", out / "lm", out / "domains")
    kept = [{**info, "segments": used[info["package"]]} for info in about]
    total = sum(used.values()) - sum(entry["segments"] for entry in kept)
    kept.append({"package": "(package descriptions and their translations)", "version": "archive",
                 "licences": ["part of the Debian archive"], "segments": total})  # fmt: skip
    kept = [entry for entry in kept if entry["segments"]]
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in kept)
    (out / "sources.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def add(items: dict[str, dict[str, Versions]], texts: list[Blocks]) -> None:
    """File blocks under their item and language; the first version of an item wins."""
    for item, language, blocks, domain, package in texts:
        versions = items[item]
        if item.startswith("mo:"):
            versions.setdefault("en", ([item[3:]], domain, package))
        versions.setdefault(language, (blocks, domain, package))


if __name__ == "__main__":
    main()
