"""Commands on results that are already on disk: matrix."""

import argparse
import sys

from adapters_hub.cli.base import DeclareCommand, declare_json, show


def declare(command: DeclareCommand) -> None:
    """The commands of this group and their arguments."""
    sub = command("matrix", _matrix, "tables and pictures of what evaluate wrote, drawn again")
    sub.add_argument("results", help="folder with its cells")
    sub.add_argument("-o", "--output", help="folder for the pictures [none are drawn]")
    declare_json(sub)


def _matrix(options: argparse.Namespace) -> int:
    from adapters_hub.evaluation.report import draw, read_cells, tables

    cells = read_cells(options.results)
    written = draw(cells, options.output) if options.output else []
    show(options, tables(cells), written=[str(path) for path in written], cells=cells)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    return 0
