"""Turn the files of a Debian package into lists of plain text blocks.

Every reader keeps the order of the blocks, because translations of one file are aligned by
position: two versions with the same number of blocks are taken as parallel text.
"""

from __future__ import annotations

import html
import re
import struct
from collections.abc import Iterator

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff00-\uffef\u3000-\u303f"
_CJK_GAP = re.compile(rf"(?<=[{CJK}])\s+(?=[{CJK}])")

# Elements without prose: code, navigation, bibliographic data.
_SKIP = re.compile(
    r"<(script|style|pre|head|nav|header|footer|aside|screen|programlisting|synopsis|info|bookinfo"
    r"|articleinfo|legalnotice|credit|indexterm|literallayout|cmdsynopsis|revhistory|keywordset"
    r"|textarea|svg|math)\b.*?</\1\s*>|<!--.*?-->|<!\[CDATA\[.*?\]\]>|<[?!][^>]*>",
    re.DOTALL | re.IGNORECASE,
)
_BLOCK = re.compile(
    r"</?(?:p|para|simpara|h[1-6]|li|td|th|dd|dt|div|title|desc|item|listitem|section|table|tr"
    r"|ul|ol|dl|br|hr|page|entry|term|note|warning|tip|steps|list|figure|media|body|blockquote"
    r"|sect[1-5]|chapter|itemizedlist|orderedlist|variablelist|varlistentry|step|procedure)\b[^>]*>",
    re.IGNORECASE,
)
_TAG = re.compile(r"<[^<>]*>")
_ENTITY = re.compile(r"&([A-Za-z][\w.-]*);")
_ROFF_ESCAPE = re.compile(
    r"\\(?:f(?:\[[^\]]*\]|\(..|.)|s[+-]?\d|m\[[^\]]*\]|[&|^/,:%!c]|[hv]'[^']*'|\*\(..|\*.)"
)
_ROFF_GLYPH = {
    "aq": "'", "dq": '"', "oq": "‘", "cq": "’", "lq": "“", "rq": "”", "em": "—", "en": "–",
    "co": "©", "bu": "•", "ti": "~", "ha": "^", "rs": "\\", "Fo": "«", "Fc": "»", "bq": "„",
}  # fmt: skip
# What ends a block without prose, by the second character of the line that opens it.
_ROFF_CLOSING = {"n": r"\.fi", "E": r"\.EE", "T": r"\.TE", "d": r"\.\.", "i": r"\.\."}
_ROFF_BREAK = re.compile(r"^[.'](SH|SS|TP|PP|P|LP|IP|RS|RE|HP|TQ|sp|br)\b")
_ROFF_FONT = re.compile(r"^[.'](?:B|I|BR|RB|BI|IB|IR|RI|SM|SB)\b\s*(.*)")


def squeeze(text: str) -> str:
    """Collapse white space; lines of Chinese and Japanese are joined without any."""
    return _CJK_GAP.sub("", " ".join(text.split()))


def read_markup(text: str) -> list[str]:
    """Return the text blocks of an HTML, DocBook or Mallard page."""
    blocks = []
    for part in _BLOCK.split(_SKIP.sub(" ", text)):
        # After the standard entities only product names such as &kate; remain in DocBook.
        plain = _ENTITY.sub(lambda m: m.group(1).title(), html.unescape(_TAG.sub("", part)))
        plain = squeeze(plain)
        if plain:
            blocks.append(plain)
    return blocks


def read_man(text: str) -> list[str]:
    """Return the paragraphs of a man(7) page, without option tags, tables and examples."""
    if re.search(r"^\.(Dd|Sh)\b", text, re.MULTILINE):
        return []  # mdoc marks up single words, which leaves no clean sentences
    blocks: list[str] = []
    current: list[str] = []
    closing = ""
    skip_next = False
    for line in text.splitlines():
        if closing:
            closing = "" if re.match(closing, line) else closing
            continue
        if line.startswith((".nf", ".EX", ".TS", ".de", ".ig")):
            closing = _ROFF_CLOSING[line[1]]
            continue
        if _ROFF_BREAK.match(line):
            blocks.append(" ".join(current))
            current = []
            # The line after .TP is the option itself, not prose.
            skip_next = line.startswith((".TP", ".TQ"))
            continue
        font = _ROFF_FONT.match(line)
        if line.startswith((".", "'")) and not font:
            continue
        if skip_next:
            skip_next = False
            continue
        if font:
            pieces = [a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', font.group(1))]
            joiner = "" if len(line.split()[0]) == 3 else " "
            line = joiner.join(pieces)
        current.append(line)
    blocks.append(" ".join(current))
    return [plain for plain in (squeeze(_unroff(block)) for block in blocks) if plain]


def _unroff(text: str) -> str:
    text = re.sub(r'\\".*', "", text) if text.startswith('\\"') else text
    text = _ROFF_ESCAPE.sub("", text)
    text = re.sub(r"\\\[u([0-9A-F]{4,5})\]", lambda m: chr(int(m.group(1), 16)), text)
    text = re.sub(r"\\(?:\((..)|\[(\w+)\])", lambda m: _ROFF_GLYPH.get(m[1] or m[2], ""), text)
    return text.replace("\\-", "-").replace("\\e", "\\").replace("\\ ", " ").replace("\\~", " ")


def read_mo(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield (English, translation) for the messages of a compiled gettext catalogue."""
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    count, originals, translations = struct.unpack_from(f"{order}3I", data, 8)
    for index in range(count):
        pair = []
        for table in (originals, translations):
            length, offset = struct.unpack_from(f"{order}2I", data, table + 8 * index)
            # Plural forms are separated by NUL: the first one is enough here.
            raw = data[offset : offset + length].split(b"\0")[0]
            pair.append(raw.decode("utf-8", errors="ignore"))
        source = pair[0].rsplit("\x04", 1)[-1]
        if source and pair[1]:
            yield clean_message(source), clean_message(pair[1])


def clean_message(text: str) -> str:
    """Strip markup, keyboard accelerators and translator prefixes from an interface message."""
    text = re.sub(r"^[\w ,'-]{1,60}\^", "", text)  # "female^You ...": a disambiguating prefix
    text = html.unescape(_TAG.sub(" ", re.sub(r"<br ?/?>", " ", text)))
    text = re.sub(r"\s*\([_&~]\w\)", "", text)  # Chinese and Japanese "(_F)"
    return squeeze(re.sub(r"[_&~](?=\w)", "", text))


def read_descriptions(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (package, blocks) of a Translation index: the synopsis, then the paragraphs."""
    for stanza in text.split("\n\n"):
        lines = stanza.split("\n")
        if not lines[0].startswith("Package: "):
            continue
        start = next((i for i, ln in enumerate(lines) if re.match(r"Description-[a-z]{2}", ln)
                      and not ln.startswith("Description-md5")), None)  # fmt: skip
        if start is None:
            continue
        blocks = [lines[start].split(": ", 1)[-1]]
        paragraph: list[str] = []
        for line in [*lines[start + 1 :], " ."]:
            # Two blanks in front mark verbatim text: lists and commands.
            if line == " ." or line.startswith("  "):
                blocks.append(" ".join(paragraph))
                paragraph = [line.strip(" *-+")] if line != " ." else []
            else:
                paragraph.append(line.strip())
        yield lines[0][9:].strip(), [squeeze(block) for block in blocks if block.strip()]
