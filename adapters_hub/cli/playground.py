"""The command that opens the page in the browser."""

import argparse
import webbrowser
from collections import Counter

from adapters_hub.cli.base import DeclareCommand
from adapters_hub.library.library import Library
from adapters_hub.library.paths import STARTER

PORT = 8017
"""Where the page is, unless another port is asked for."""


def declare(command: DeclareCommand) -> None:
    """The commands of this group and their arguments."""
    sub = command("play", _play, "try blends side by side, in the browser")
    sub.add_argument("--backbone", help="[the one that most adapters of the library name]")
    sub.add_argument("--matrix", help="folder of a matrix's cells, to show as a heat map")
    sub.add_argument("--port", type=int, default=PORT, help=f"on 127.0.0.1; 0: any [{PORT}]")
    sub.add_argument("--no-browser", action="store_true", help="only print the address")


def _play(options: argparse.Namespace) -> int:
    from adapters_hub.evaluation.report import read_cells
    from adapters_hub.model import load_backbone
    from adapters_hub.playground.server import Playground

    cells = read_cells(options.matrix) if options.matrix else []
    library = Library(options.library)
    name, revision = (options.backbone, None) if options.backbone else backbone_of(library)
    model = load_backbone(name, library=library, revision=revision)
    with Playground(model, port=options.port, matrix=cells) as server:
        count = len(library.list(fingerprint=model.backbone.fingerprint))
        where = f"{name}, {count} adapters of {library.root}"
        print(f"{server.url}  ({where}; Ctrl-C ends it)", flush=True)
        if not options.no_browser:
            webbrowser.open(server.url)
        server.serve_forever()
    return 0


def backbone_of(library: Library) -> tuple[str, str | None]:
    """The backbone that most adapters of a library name, and its revision; else the starter."""
    named = Counter((info.backbone, info.revision) for info in library.list() if info.backbone)
    ((backbone, revision), _), *_ = named.most_common(1) or [((STARTER, None), 0)]
    return backbone or STARTER, revision
