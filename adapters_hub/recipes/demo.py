"""What adapters do, in seconds: sentences scored and continued under four blends, side by side.

Trains nothing and needs no network: the starter backbone and the adapters that ship. Imports no
torch before it runs.
"""

import math
import os
import shutil
import sys
import unicodedata
from dataclasses import dataclass
from typing import TextIO

from adapters_hub.library.library import Library
from adapters_hub.library.paths import STARTER, bundled_root

DOMAIN = "hotel"
SENTENCES = {
    "da": (
        "Vil De venligst takke",
        " hr. Okafor i receptionen fra mig. Han opdagede før os en fejl på vores regning, som "
        "var til vores ulempe, og refunderede 112 euro med det samme.",
    ),
    "uk": (
        "Прошу передати мою подяку",
        " панові Окафору з рецепції. Він раніше за нас помітив помилку в рахунку, причому не на "
        "нашу користь, і одразу ж повернув 112 євро.",
    ),
    "en": (
        "Please convey my thanks to",
        " Mr Okafor at the front desk. He noticed an error in our bill, to our disadvantage, "
        "before we did, and refunded 112 euros on the spot.",
    ),
}
"""Language → a guest's note that nothing was trained on (hotel-041 of the sample's test texts): its
beginning, which is continued, and the rest.
"""

_NAMES = {"da": "Danish, never seen by the backbone", "uk": "Ukrainian, never seen either",
          "en": "English, which it knows"}  # fmt: skip
_TOKENS = 14
_BEST, _FAINT, _BOLD, _PLAIN = "\x1b[32;1m", "\x1b[2m", "\x1b[1m", "\x1b[0m"


@dataclass(frozen=True)
class Line:
    """One sentence under one blend: its bits per byte, and how its beginning goes on."""

    language: str
    column: str
    blend: str | None
    bits_per_byte: float
    continued: str


def compare_blends() -> list[Line]:
    """Every sentence under the bare backbone, its language, the domain, and their sum."""
    from adapters_hub.data.rows import Row
    from adapters_hub.inference.records import collect_records
    from adapters_hub.model import load_backbone
    from adapters_hub.tasks.language_modeling import LanguageModeling

    model = load_backbone(STARTER, library=Library(bundled_root()))
    task = LanguageModeling()
    cells: list[tuple[str, str, str | None]] = [
        (tag, column, blend)
        for tag in SENTENCES
        for column, blend in (
            ("bare backbone", None), ("language", tag), ("domain", DOMAIN),
            ("language + domain", f"{tag} + {DOMAIN}"),
        )
    ]  # fmt: skip
    blends = [model.resolve(blend) for _, _, blend in cells]
    rows = [Row("".join(SENTENCES[tag]), language=tag, where=str(n))
            for n, (tag, _, _) in enumerate(cells)]  # fmt: skip
    examples = task.encode(rows, model.backbone)
    records = collect_records(model, task, examples, lambda row: blends[int(row.where)])
    written = model.generate(  # all of them in one batch, each row under a blend of its own
        [SENTENCES[tag][0] for tag, _, _ in cells],
        adapters=[blend for _, _, blend in cells],
        min_new_tokens=_TOKENS,
        max_new_tokens=_TOKENS,
        do_sample=False,
    )
    return [
        Line(tag, column, blend, record["nats"] / math.log(2) / len(row.text.encode()), text)
        for (tag, column, blend), record, row, text in zip(
            cells, records, rows, written, strict=True
        )
    ]


def show(lines: list[Line], to: TextIO | None = None) -> None:
    """Print the comparison: in colour on a terminal, unless ``NO_COLOR`` is set."""
    to = to or sys.stdout
    colour = to.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def paint(code: str, text: str) -> str:
        return f"{code}{text}{_PLAIN}" if colour else text

    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    print("One backbone, four ways; bits per byte of the sentence (lower is better), and how its "
          "beginning goes on.", file=to)  # fmt: skip
    for tag, (start, rest) in SENTENCES.items():
        print(f"\n{paint(_BOLD, _NAMES[tag])}\n  {start}{rest}", file=to)
        of_tag = [line for line in lines if line.language == tag]
        best = min(line.bits_per_byte for line in of_tag)
        for line in of_tag:
            number = f"{line.bits_per_byte:.2f}"
            number = paint(_BEST, number) if line.bits_per_byte == best else number
            blend = paint(_FAINT, f"{line.blend or 'None':<11}")
            text = _cut(f"{start}{line.continued}".replace("\n", " "), width - 42)
            print(f"  {line.column:<18} {blend} {number}  {text}", file=to)


def next_steps() -> str:
    """What to type after the demo; the program is named as it can be called from here."""
    program = _program()
    commands = {
        "list": "the adapters that ship",
        "demo --train": "train one, in about two minutes",
        "train language --language sw --data FILE": "a language, of your text",
        "train domain --domain hotel --data FILE": "a domain, over languages",
        "--help": "all commands",
    }
    wide = max(map(len, commands))
    lines = "\n".join(f"  {program} {c:<{wide}}  {what}" for c, what in commands.items())
    return (
        f"Next:\n\n{lines}\n\n"
        "  import adapters_hub as ah\n"
        '  model = ah.load("da", domain="hotel")\n'
        '  model.generate(["Værelset var"], adapters=["da + hotel"])'
    )


def _program() -> str:
    if shutil.which("adapters-hub"):
        return "adapters-hub"
    started = sys.argv[0]
    if os.path.basename(started) == "adapters-hub":
        return os.path.relpath(started)
    return "python -m adapters_hub"


def _cut(text: str, width: int) -> str:
    """A text cut to so many columns of a terminal; wide letters take two."""
    used = 0
    for place, letter in enumerate(text):
        used += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if used > width:
            return text[: max(0, place - 1)] + "…"
    return text
