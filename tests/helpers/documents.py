"""The pages of the project, and the blocks of code in them."""

import re
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT

PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md")])
NO_CODE = ("lab-log.md",)
"""Pages whose commands were run once, on data that is not here."""

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n\n?)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its kind, its text, its first line's number, and why it is not run."""

    kind: str
    text: str
    line: int
    reason: str | None = None


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["kind"], found["text"], text.count("\n", 0, found.start("text")) + 1,
              found["reason"])
        for found in _BLOCK.finditer(text)
    ]  # fmt: skip


def headings_of(page: Path) -> list[int]:
    """The level of each heading of a page, in order; what stands in blocks is none."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [len(hashes) for hashes in re.findall(r"^(#+) ", text, re.M)]


def commands_of(block: Block) -> list[str]:
    """The commands of a block of shell, one a line, without comments, pipes and redirections."""
    text = block.text.replace("\\\n", " ")
    lines = (re.sub(r"(^|\s)(#|[|>] ).*$", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]
