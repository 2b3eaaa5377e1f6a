"""Commands about backbones: advise."""

import argparse
from dataclasses import asdict

from adapters_hub.cli.base import (
    DeclareCommand,
    columns_of,
    declare_columns,
    declare_json,
    print_json,
)


def declare(command: DeclareCommand) -> None:
    """The commands of this group and their arguments."""
    sub = command("advise", _advise, "which of some backbones suits the languages of your texts")
    sub.add_argument("--data", required=True, help="file, folder or Hub data set of rows")
    declare_columns(sub)
    sub.add_argument("--backbone", nargs="+", required=True, help="folders or hub ids")
    sub.add_argument("--language", nargs="*", help="only these languages")
    sub.add_argument("--pivot", default="en", help="what texts of the same id are paired with [en]")
    sub.add_argument("--rows", type=int, default=200, help="texts a language at most [200]")
    sub.add_argument("--batch-size", type=int, default=16, help="rows of a training step [16]")
    sub.add_argument("--max-length", type=int, default=256, help="tokens of a row at most [256]")
    sub.add_argument("--rank", type=int, default=8, help="of the adapter that is trained [8]")
    declare_json(sub)


def _advise(options: argparse.Namespace) -> int:
    from adapters_hub.data.reading import read_data
    from adapters_hub.evaluation.advice import Sample, advise, recommendation
    from adapters_hub.library import languages

    splits = read_data(options.data, columns_of(options), fields=["positive"])
    rows = [row for split in splits.values() for row in split]
    asked = options.language and [languages.canonical(tag) for tag in options.language]
    sample = Sample.of(rows, options.rows, options.pivot)
    measured = advise(
        options.backbone,
        sample.only(asked) if asked else sample,
        batch_size=options.batch_size,
        max_length=options.max_length,
        rank=options.rank,
    )
    if options.json:
        for one in measured:  # the recommended one first
            print_json(asdict(one))
        return 0
    for one in measured:
        print(f"\n{one.backbone} ({one.kind})\n\n{one.table()}")
    print(f"\n{recommendation(measured)}")
    return 0
