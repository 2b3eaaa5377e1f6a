"""Commands that make rows of data: translate."""

import argparse
import json
import sys
from pathlib import Path

from adapters_hub.cli.base import DeclareCommand, columns_of, declare_columns

_BARE = "none"


def declare(command: DeclareCommand) -> None:
    """The commands of this group and their arguments."""
    sub = command("translate", _translate, "rows of data in another language, or there and back")
    sub.add_argument("blend", help="which adapters translate, or none")
    sub.add_argument("--backbone", required=True, help="folder, hub id or starter")
    sub.add_argument("--data", required=True, help="file, folder or Hub data set of rows")
    declare_columns(sub)
    sub.add_argument("--split", default="train", help="which of its rows [train]")
    sub.add_argument("--language", required=True, help="which language to translate from")
    sub.add_argument("--to", required=True, metavar="LANGUAGE", help="which language to go into")
    sub.add_argument("--back", metavar="BLEND", help="and back again by these adapters")
    sub.add_argument("-o", "--output", required=True, help="a .jsonl file, for --augment-data")
    sub.add_argument("--batch-size", type=int, default=16, help="rows at once [16]")
    sub.add_argument("--max-new-tokens", type=int, default=128, help="of a translation [128]")
    sub.add_argument("--sample", action="store_true", help="draw words instead of the likeliest")


def _translate(options: argparse.Namespace) -> int:
    from adapters_hub.data.reading import read_data, select
    from adapters_hub.data.records import record_of
    from adapters_hub.errors import DataError
    from adapters_hub.inference.translated import translated
    from adapters_hub.library.atomic import atomic_write
    from adapters_hub.library.languages import canonical
    from adapters_hub.library.library import Library
    from adapters_hub.model import load_backbone
    from adapters_hub.progress import bar

    language = canonical(options.language)
    splits = read_data(options.data, columns_of(options))
    rows = select(splits.get(options.split, []), [language])
    if not rows:
        raise DataError(f"{options.data}: no {options.split} row in {language}")
    model = load_backbone(options.backbone, library=Library(options.library))
    made = translated(
        model, rows, options.to, _blend(options.blend),
        back=options.back is not None, back_adapters=_blend(options.back or _BARE),
        batch_size=options.batch_size, max_new_tokens=options.max_new_tokens,
        do_sample=options.sample,
    )  # fmt: skip
    output, written = Path(options.output).expanduser(), 0
    with atomic_write(output) as file, bar(len(rows), "translating", "rows") as done:
        for row in made:
            file.write((json.dumps(record_of(row), ensure_ascii=False) + "\n").encode())
            written += 1
            done.update()
        if not written:
            raise DataError(f"{model.backbone.name} wrote nothing for any of {len(rows):,} rows")
    print(f"wrote {output}: {written:,} of {len(rows):,} rows", file=sys.stderr)
    return 0


def _blend(text: str) -> str | None:
    return None if text == _BARE else text
