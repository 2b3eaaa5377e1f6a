"""Commands that train and measure: train, evaluate. Each is a recipe, its flags the settings."""

import argparse
import shlex
from typing import TYPE_CHECKING

from adapters_hub.cli.base import DeclareCommand

if TYPE_CHECKING:
    from adapters_hub.recipes.recipe import Recipe

_OF_PROGRAM = ("command", "run", "typed", "whole_parser")  # options that are no settings


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
        kind.set_defaults(recipe=recipe)


def _declare_evaluate(sub: argparse.ArgumentParser) -> None:
    from adapters_hub.recipes import matrix

    sub.description = matrix.RECIPE.description
    matrix.RECIPE.declare(sub)
    sub.set_defaults(recipe=matrix.RECIPE)


def _start(options: argparse.Namespace) -> int:
    given = vars(options)
    recipe: Recipe = given.pop("recipe")
    typed = shlex.join(["adapters-hub", *given["typed"]])
    return recipe.start({k: v for k, v in given.items() if k not in _OF_PROGRAM}, typed)
