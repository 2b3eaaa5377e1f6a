"""Checks of the files themselves: formats, what could run, templates, signatures."""

import json
from collections.abc import Iterator
from pathlib import Path

from adapters_hub.errors import AdapterFileError
from adapters_hub.library.json_fields import read_json
from adapters_hub.library.safetensors_file import read_small
from adapters_hub.library.signatures import is_signed
from adapters_hub.library.signed_copy import PICKLE_SUFFIXES
from adapters_hub.sharing.doctor.findings import Finding, check, few
from adapters_hub.sharing.doctor.subject import MAX_FILES, Subject, Unread

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_OLD_WEIGHTS = ("adapter_model.bin", "adapter_model.pt")
_CODE = (".bat", ".dll", ".dylib", ".exe", ".ipynb", ".js", ".ps1", ".py", ".pyc", ".sh", ".so")
_TOKENIZER = ("added_tokens.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_MAX_TEXT = 20_000_000  # a tokenizer_config.json of a large vocabulary has a tenth


@check
def safetensors_header(subject: Subject) -> Iterator[Finding]:
    """The header is what the format allows, within its limits."""
    if not isinstance(subject.header, Unread):
        return
    old = [file.path for file in subject.files if file.path in _OLD_WEIGHTS]
    do = "ask for the adapter as safetensors; do not open this file with anything"
    if old:
        do = f"adapters-hub import {subject.path} --convert-pickle"
    yield Finding("error", "safetensors header", subject.header.why, subject.weights.name, do)


@check
def loads(subject: Subject) -> Iterator[Finding]:
    """The library would take it."""
    if isinstance(subject.adapter, Unread) and not isinstance(subject.header, Unread):
        yield Finding(
            "error", "loads", subject.adapter.why, str(subject.path.name), "it cannot be added"
        )


@check
def pickles(subject: Subject) -> Iterator[Finding]:
    """No file that its usual reader would open as a pickle, which can run code."""
    for file in subject.files:
        suffix = Path(file.path).suffix.lower()
        starts = file.start.startswith(_PICKLE_STARTS)
        if suffix in PICKLE_SUFFIXES or (starts and suffix not in (".zip", ".docx", ".xlsx")):
            level = "error" if file.path in _OLD_WEIGHTS else "warning"
            yield Finding(
                level, "pickles", "a pickle can run code when it is opened; it was not opened",
                few([file.path]), "delete it; adapters need none",
            )  # fmt: skip


@check
def code(subject: Subject) -> Iterator[Finding]:
    """No programs beside the tensors."""
    if programs := [f.path for f in subject.files if Path(f.path).suffix.lower() in _CODE]:
        yield Finding(
            "warning", "code", "an adapter needs no program", few(programs),
            "do not run it, and do not load with trust_remote_code",
        )  # fmt: skip


@check
def special_files(subject: Subject) -> Iterator[Finding]:
    """Regular files only, and not too many."""
    if odd := [file.path for file in subject.files if not file.regular]:
        yield Finding(
            "error", "special files", "a pipe, a device, a dangling link, or unreadable", few(odd),
            "delete it",
        )  # fmt: skip
    if len(subject.files) >= MAX_FILES:
        yield Finding(
            "warning", "special files", f"more than {MAX_FILES} files; the rest was not looked at",
            subject.path.name, "examine the adapter's folder alone",
        )  # fmt: skip


@check
def chat_template(subject: Subject) -> Iterator[Finding]:
    """The chat template is the backbone's: another one can put words into every prompt."""
    if subject.folder is None:
        return
    name, brought = _template(subject.folder)
    if brought is None:
        return
    if subject.base_folder is None:
        yield Finding(
            "warning", "chat template", "brings a chat template, and the backbone is not here to "
            "compare it with", name, "read it; this library uses the backbone's",
        )  # fmt: skip
        return
    _, base = _template(subject.base_folder)
    if brought != base:
        has = "differs from the backbone's" if base else "the backbone has none"
        yield Finding(
            "warning", "chat template", f"the chat template {has}", name,
            "read it; this library uses the backbone's",
        )  # fmt: skip


@check
def tokenizer(subject: Subject) -> Iterator[Finding]:
    """A tokenizer beside an adapter may have other pieces than the backbone's."""
    if tokenizer_files := [file.path for file in subject.files if file.path in _TOKENIZER]:
        yield Finding(
            "note", "tokenizer", "brings a tokenizer, which is not used here", few(tokenizer_files),
            "if it has pieces that the backbone's lacks, the adapter was trained with others",
        )  # fmt: skip


@check
def signature(subject: Subject) -> Iterator[Finding]:
    """Whether somebody signed it."""
    if is_signed(subject.path):
        yield Finding(
            "note", "signature", "signed; nothing was verified", subject.path.name,
            f"adapters-hub verify {subject.path} --key PUBLIC_KEY",
        )  # fmt: skip


def _template(folder: Path) -> tuple[str, str | None]:
    """The name of the file with a folder's chat template, and the template as text."""
    for name in (*_TEMPLATE_FILES, "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            text = read_small(path, _MAX_TEXT).decode("utf-8", errors="replace")
            if not name.endswith(".json"):
                return name, text
            data = read_json(text)
        except (OSError, AdapterFileError, ValueError, RecursionError):
            return name, f"unreadable {name}"
        template = data.get("chat_template") if isinstance(data, dict) else None
        if template is not None:
            return name, template if isinstance(template, str) else json.dumps(template)
    return "", None
