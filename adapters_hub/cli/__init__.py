"""``adapters-hub``: the library from the command line. Arguments only; the work is elsewhere."""

import argparse
import os
import sys
from collections.abc import Sequence

from adapters_hub import __version__
from adapters_hub.cli import (
    backbones,
    blends,
    hub,
    library,
    playground,
    reports,
    rows,
    serving,
    sharing,
    trust,
)
from adapters_hub.cli.base import Run
from adapters_hub.errors import AdaptersHubError
from adapters_hub.openmp import wait_shortly

_GROUPS = (
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
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for a refusal, 2 for wrong arguments."""
    wait_shortly()
    options = _parser().parse_args(arguments)
    run: Run = options.run
    try:
        return run(options)
    except AdaptersHubError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # such as `adapters-hub list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adapters-hub",
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--library", help="folder of adapters [$ADAPTERS_HUB_LIBRARY, ./adapters]")
    commands = parser.add_subparsers(
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
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            description=help,
            parents=[shared],
            add_help=add_help,
            formatter_class=formatter_class,
        )
        sub.set_defaults(run=run)
        declared.append(f"  {name:<10}{help}")
        return sub

    texts = []
    for title, group in _GROUPS:
        declared.clear()
        group.declare(command)
        texts.append("\n".join((f"{title}:", *declared)))
    texts.append("adapters-hub COMMAND --help shows the arguments of one.")
    parser.epilog = "\n\n".join(texts)
    return parser
