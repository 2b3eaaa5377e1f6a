"""Commands that train and measure: train, evaluate. Each is a recipe, its flags the settings."""

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from adapters_hub.cli.base import DeclareCommand
from adapters_hub.recipes import processes

if TYPE_CHECKING:
    from adapters_hub.recipes.recipe import Recipe

_OF_PROGRAM = (
    "command",
    "run",
    "typed",
    "whole_parser",
    "processes",
)  # options that are no settings


def declare(command: DeclareCommand) -> None:
    """The commands of this group and their arguments."""
    raw = argparse.RawDescriptionHelpFormatter
    command("train", _start, "train language adapters, or a domain adapter", fill=_declare_train)
    command(
        "evaluate",
        _start,
        "measure what adding adapters brings, by language and domain",
        formatter_class=raw,
        fill=_declare_evaluate,
    )


def _declare_train(sub: argparse.ArgumentParser) -> None:
    from adapters_hub.recipes import domain, language

    kinds = sub.add_subparsers(prog="adapters-hub train", required=True, metavar="language|domain")
    for recipe in (language.RECIPE, domain.RECIPE):
        kind = kinds.add_parser(
            recipe.command.split()[-1],
            help=recipe.description.partition("\n")[0],
            description=recipe.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        recipe.declare(kind)
        _declare_processes(kind)
        kind.set_defaults(recipe=recipe)


def _declare_evaluate(sub: argparse.ArgumentParser) -> None:
    from adapters_hub.recipes import matrix

    sub.description = matrix.RECIPE.description
    matrix.RECIPE.declare(sub)
    _declare_processes(sub)
    sub.set_defaults(recipe=matrix.RECIPE)


def _declare_processes(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--processes", type=int, default=1, metavar="N",
        help="so many processes of this machine, each with its share of a batch [1]",
    )  # fmt: skip


def _start(options: argparse.Namespace) -> int:
    if options.processes > 1 and not processes.is_child():
        program = [sys.executable, "-m", "adapters_hub", *options.typed]
        return processes.run_in_processes(program, options.processes)
    given = vars(options)
    recipe: Recipe = given.pop("recipe")
    typed = shlex.join(["adapters-hub", *given["typed"]])
    return recipe.start({k: v for k, v in given.items() if k not in _OF_PROGRAM}, typed)
