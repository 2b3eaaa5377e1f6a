"""What a recipe is: its flags, the settings it starts from, and the run that it makes of them.

Knows settings and programs; knows no recipe. Imports no torch.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adapters_hub import progress
from adapters_hub.recipes.program import run_program
from adapters_hub.training.settings import (
    Resolved,
    TrainingSettings,
    declare_settings,
    resolve_settings,
)

Result = dict[str, object]
"""What a run gives scripts, as JSON; ``written`` are the paths of what it left."""

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Recipe:
    """A run with its settings; ``command`` is how ``adapters-hub`` calls it.

    ``run`` gets the settings, the command for the cards of what it trains, and whether it is to
    say nothing itself.
    """

    command: str
    description: str
    values: Mapping[str, object]
    run: Callable[[Resolved, str, bool], Result]
    kind: type[TrainingSettings] = TrainingSettings

    def declare(self, parser: argparse.ArgumentParser) -> None:
        """Add the recipe's flags to a parser."""
        declare_output(parser)
        declare_settings(parser, self.values, self.kind)

    def start(self, given: Mapping[str, object], command: str) -> int:
        """Run it with what its flags were given; ``command`` is what the user typed."""
        flags = dict(given)
        quiet, as_json = bool(flags.pop("quiet", False)), bool(flags.pop("json", False))
        progress.be_quiet(quiet)
        resolved = resolve_settings(flags, self.values, self.kind)
        result = self.run(resolved, command, quiet or as_json)
        if as_json and result:
            print(json.dumps(result, ensure_ascii=False))
        elif quiet:
            for path in _paths(result):
                print(path)
        return 0

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """The recipe as a program, such as ``accelerate launch`` starts it; ends the process."""
        parser = argparse.ArgumentParser(
            description=self.description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.declare(parser)
        work = partial(self._parse_and_start, parser, arguments)
        if status := run_program(work):
            sys.exit(status)

    def _parse_and_start(
        self, parser: argparse.ArgumentParser, arguments: Sequence[str] | None
    ) -> int:
        return self.start(vars(parser.parse_args(arguments)), _launched())


def declare_output(parser: argparse.ArgumentParser) -> None:
    """The flags that say how much a program prints, and in which form."""
    add = partial(parser.add_argument, action="store_true", default=argparse.SUPPRESS)
    add("--quiet", help="no progress, no tables: only what was written, and errors")
    add("--json", help="the result as one line of JSON on stdout")


def _launched() -> str:
    """The command that started this process, as a card keeps it."""
    program = Path(sys.argv[0])
    if program.resolve().is_relative_to(_PACKAGE):  # by -m
        module = ".".join(program.resolve().relative_to(_PACKAGE.parent).with_suffix("").parts)
        return shlex.join(["accelerate", "launch", "-m", module, *sys.argv[1:]])
    return "accelerate launch " + shlex.join(sys.argv)


def _paths(result: Result) -> list[str]:
    written = result.get("written")
    return [str(path) for path in written] if isinstance(written, list) else []
