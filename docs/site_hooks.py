"""What mkdocs needs beside the pages in docs/: pages that lie elsewhere, and links between both.

A page links to files as they lie in the repository, so that links work there too; in the site each
of the files in `PAGES` is a page of its own.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "README.zh.md": "index.zh.md",
    "adapters/README.md": "shipped-adapters.md",
    "adapters_hub/starter/README.md": "starter.md",
    "recipes/data/README.md": "sample-text.md",
    "recipes/questions/README.md": "sample-questions.md",
    "recipes/entities/README.md": "sample-entities.md",
}
"""A file of the repository → its page in the site."""

_LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")
_CARD = re.compile(r"\A---\n.*?\n---\n", re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of docs/."""
    for path, page in PAGES.items():
        text = _CARD.sub("", (ROOT / path).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository become links to pages; others stay, to be checked."""
    places = {target: path for path, target in PAGES.items()}
    path = places.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = posixpath.dirname(path)

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        return link[1] + PAGES.get(target, target.removeprefix("docs/")) + link[3]

    return _LINK.sub(moved, markdown)
