"""What all groups of commands share: declaring a command, its output, loading its model."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from adapters_hub.errors import BlendError, NotFoundError
from adapters_hub.library.library import Library

if TYPE_CHECKING:
    from adapters_hub.model import AdaptedModel

Run = Callable[[argparse.Namespace], int]
"""What a command does: its options in, its exit status out."""


class DeclareCommand(Protocol):
    """Adds a command with its name, function and one line of help, and returns its parser."""

    def __call__(
        self,
        name: str,
        run: Run,
        help: str,
        *,
        add_help: bool = True,
        formatter_class: type[argparse.HelpFormatter] = argparse.HelpFormatter,
        fill: Callable[[argparse.ArgumentParser], None] | None = None,
    ) -> argparse.ArgumentParser:
        """The parser to add the command's arguments to.

        ``fill`` adds all of them, where there are too many to be made for every other command.
        """


def load_model(
    options: argparse.Namespace, first: str = "", *, exact: bool = False
) -> "AdaptedModel":
    """The backbone asked for, else that of a blend's first term, or adapter's ``exact`` name."""
    from adapters_hub.model import load_backbone

    library = Library(options.library)
    if not first:
        raise BlendError(f"{options.blend!r} cancels out: there is nothing in it")
    if options.backbone:
        return load_backbone(options.backbone, library=library)
    info = library.get(first) if exact else library.find(first)
    if info.backbone is None:
        raise BlendError(f"{first!r} names no backbone: give --backbone")
    return load_backbone(info.backbone, library=library, revision=info.revision)


def place_of(adapter: str, library: str | None) -> Path:
    """Where an adapter of the library's, a folder or a lone file lies; `NotFoundError`."""
    there = Library(library)
    if adapter in there.names():
        return there.folder.place(adapter)
    if Path(adapter).exists():
        return Path(adapter)
    there.get(adapter)  # raises, with the nearest names
    raise NotFoundError(f"no adapter {adapter!r}")


def declare_json(
    sub: argparse.ArgumentParser, help: str = "the result as one line of JSON"
) -> None:
    """The flag that asks for a command's result as JSON."""
    sub.add_argument("--json", action="store_true", help=help)


def print_json(data: object) -> None:
    """One line of JSON on stdout, written at once."""
    print(json.dumps(data, ensure_ascii=False), flush=True)


def show(options: argparse.Namespace, text: str, **result: object) -> None:
    """A command's result on stdout: as text, or with ``--json`` as one line of JSON."""
    if options.json:
        print_json(result)
    else:
        print(text)


def declare_columns(sub: argparse.ArgumentParser) -> None:
    """The argument that says what the data's columns are called."""
    sub.add_argument("--columns", nargs="*", metavar="NAME=COLUMN", help="such as text=review")


def columns_of(options: argparse.Namespace) -> dict[str, str]:
    """What `declare_columns` was given."""
    from adapters_hub.training.conversion import named_values

    return named_values("columns", options.columns, "command line", "COLUMN")
