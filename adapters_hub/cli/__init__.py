"""``adapters-hub``: the library from the command line. Arguments only; the work is elsewhere."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

from adapters_hub import __version__, progress
from adapters_hub.cli import (
    backbones,
    blends,
    completion,
    demo,
    hub,
    library,
    playground,
    reports,
    rows,
    serving,
    sharing,
    training,
    trust,
)
from adapters_hub.cli.base import Run
from adapters_hub.recipes.program import run_program

_GROUPS = (
    ("start", demo),
    ("training", training),
    ("library", library),
    ("blends", blends),
    ("sharing", sharing),
    ("places", hub),
    ("trust", trust),
    ("serving", serving),
    ("backbones", backbones),
    ("rows", rows),
    ("reports", reports),
    ("playground", playground),
    ("shell", completion),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, see docs/command-line.md."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    return run_program(partial(_run, typed))


def _run(typed: list[str]) -> int:
    chosen = next((word for word in typed if not word.startswith("-")), None)
    options = parser(chosen).parse_args(typed)
    options.typed, options.whole_parser = typed, partial(parser, whole=True)
    progress.be_quiet(getattr(options, "quiet", False))
    run: Run = options.run
    return run(options)


def parser(chosen: str | None = None, *, whole: bool = False) -> argparse.ArgumentParser:
    """The parser of all commands; the many flags of some only for the ``chosen`` one, or ``whole``.

    Making those of the training commands takes longer than most other commands take to run.
    """
    top = argparse.ArgumentParser(
        prog="adapters-hub",
        usage="%(prog)s [-h] [--version] [--quiet] COMMAND ...",
        description="LoRA adapters for languages and domains over one frozen backbone: train them, "
        "add them up, measure and share them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--library", help="folder of adapters [$ADAPTERS_HUB_LIBRARY, ./adapters]")
    for one in (top, shared):
        one.add_argument(
            "--quiet",
            action="store_true",
            default=argparse.SUPPRESS,
            help="no progress, no warnings: only results and errors",
        )
    commands = top.add_subparsers(
        dest="command",
        prog="adapters-hub",
        required=True,
        metavar="COMMAND",
        help=argparse.SUPPRESS,
    )
    declared: list[str] = []  # the group's commands, a line each, for the help

    def command(
        name: str,
        run: Run,
        help: str,
        *,
        add_help: bool = True,
        formatter_class: type[argparse.HelpFormatter] = argparse.HelpFormatter,
        fill: Callable[[argparse.ArgumentParser], None] | None = None,
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help,
            description=help,
            parents=[] if fill else [shared],
            add_help=add_help,
            formatter_class=formatter_class,
        )
        if fill and (whole or chosen == name):
            fill(sub)
        sub.set_defaults(run=run)
        declared.append(f"  {name:<11}{help}")
        return sub

    texts = []
    for title, group in _GROUPS:
        declared.clear()
        group.declare(command)
        texts.append("\n".join((f"{title}:", *declared)))
    texts.append("adapters-hub COMMAND --help shows the arguments of one.")
    top.epilog = "\n\n".join(texts)
    return top
