"""The command for the first minute: demo."""

import argparse
from dataclasses import asdict, replace

from adapters_hub.cli.base import DeclareCommand, declare_json, show

_SHORTER = {"steps": 60, "eval_every": 20}
"""Of the sample training: no more than shows what it brings, in about two minutes."""


def declare(command: DeclareCommand) -> None:
    """The commands of this group and their arguments."""
    sub = command("demo", _demo, "see in seconds what adapters do: no network, no training")
    sub.add_argument("--train", action="store_true", help="then train a hotel adapter, in minutes")
    declare_json(sub)


def _demo(options: argparse.Namespace) -> int:
    from adapters_hub.recipes import demo, domain

    lines = demo.compare_blends()
    if options.json:
        show(options, "", lines=[asdict(line) for line in lines])
    else:
        demo.show(lines)
    if not options.train:
        if not options.json:
            print(f"\n{demo.next_steps()}")
        return 0
    recipe = replace(domain.RECIPE, values={**domain.RECIPE.values, **_SHORTER})
    given = {"json": options.json, "quiet": getattr(options, "quiet", False)}
    given |= {"library": options.library} if options.library else {}
    if not options.json:
        print("\nNow one is trained: hotel, in six languages, over a frozen adapter of each.\n")
    return recipe.start(given, "adapters-hub demo --train")
