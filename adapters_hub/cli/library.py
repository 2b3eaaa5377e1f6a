"""Commands on a library: list, show, resolve, add, remove, verify. None of them needs torch."""

import argparse
import json
import sys

from adapters_hub.cli.base import DeclareCommand, declare_json, place_of, print_json, show
from adapters_hub.errors import NotFoundError, SignatureError
from adapters_hub.library import lookup
from adapters_hub.library.adapter_file import PROBLEM_TYPES, AdapterInfo
from adapters_hub.library.library import Library

_COLUMNS = ("name", "language", "domain", "task", "backbone", "rank")


def declare(command: DeclareCommand) -> None:
    """The commands of this group and their arguments."""
    sub = command("list", _list, "the adapters of a library, one a line")
    sub.add_argument("--language", help="name, code or tag")
    sub.add_argument("--domain")
    declare_json(sub, "JSON Lines instead of a table")

    sub = command("show", _show, "everything known of one adapter, as JSON")
    sub.add_argument("term", help="an adapter's name, a language or a domain")

    sub = command("resolve", _resolve, "the adapter for a language, or the closest there is")
    sub.add_argument("language")
    declare_json(sub)

    sub = command("add", _add, "copy a PEFT LoRA folder, or a lone .safetensors, into the library")
    sub.add_argument("source")
    for flag in ("name", "language", "task", "backbone", "license"):
        sub.add_argument(f"--{flag}")
    sub.add_argument("--domain", help="'' for none, whatever the files say")
    sub.add_argument("--labels", nargs="+", help="label names, in the order of the logits")
    sub.add_argument("--problem-type", choices=PROBLEM_TYPES, help="of a classification head")
    sub.add_argument("--replace", action="store_true", help="replace one of the same name")
    declare_json(sub)

    sub = command("remove", _remove, "delete an adapter")
    sub.add_argument("name")

    sub = command("verify", _verify, "check files against their stored hashes, or their signatures")
    sub.add_argument("names", nargs="*", help="all, if none is given; with --key folders, too")
    sub.add_argument(
        "--key", nargs="+", action="extend", metavar="PUBLIC_KEY", help="one of which signed them"
    )


def _list(options: argparse.Namespace) -> int:
    library = Library(options.library)
    infos = library.list(options.language, options.domain)
    if not infos:
        why = "there is no such folder"
        if library.root.is_dir():
            why = lookup.nothing_fits(options.language, options.domain, library.list())
        print(f"no adapters to show in {library.root}: {why}", file=sys.stderr)
        return 0
    if options.json:
        for info in infos:
            print_json(info.to_json())
        return 0
    rows = [_COLUMNS, *([_cell(info, column) for column in _COLUMNS] for info in infos)]
    wide = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    for row in rows:
        print("  ".join(text.ljust(w) for text, w in zip(row, wide, strict=True)).rstrip())
    return 0


def _show(options: argparse.Namespace) -> int:
    info = Library(options.library).find(options.term)
    print(json.dumps({**info.to_json(), "path": info.path}, ensure_ascii=False, indent=2))
    return 0


def _resolve(options: argparse.Namespace) -> int:
    resolution = Library(options.library).resolve(options.language)
    show(
        options,
        f"{resolution.info.name}\t{resolution.distance}\t{resolution.reason}",
        name=resolution.info.name,
        language=resolution.wanted,
        distance=resolution.distance,
        reason=resolution.reason,
    )
    return 0


def _add(options: argparse.Namespace) -> int:
    info = Library(options.library).add(
        options.source,
        name=options.name,
        language=options.language,
        domain=options.domain,
        task=options.task,
        labels=options.labels,
        problem_type=options.problem_type,
        backbone=options.backbone,
        license=options.license,
        replace_existing=options.replace,
    )
    show(options, f"added {info.name} as {info.path}", name=info.name, written=[info.path])
    return 0


def _remove(options: argparse.Namespace) -> int:
    Library(options.library).remove(options.name)
    print(f"removed {options.name}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    library = Library(options.library)
    if options.key:
        return _verify_signed(options, library)
    bad = 0
    for name in options.names or library.names():
        problems = library.verify(name)
        print(f"{name}: {'; '.join(problems) or 'as it was written'}")
        bad += bool(problems)
    return 1 if bad else 0


def _verify_signed(options: argparse.Namespace, library: Library) -> int:
    from adapters_hub.sharing.signing import verify

    bad = 0
    for name in options.names or library.names():
        try:
            verification = verify(place_of(name, options.library), options.key)
        except (SignatureError, NotFoundError) as error:
            print(f"{name}: {error}")
            bad += 1
            continue
        print(verification)
        bad += bool(verification.difference)
    return 1 if bad else 0


def _cell(info: AdapterInfo, column: str) -> str:
    value = getattr(info, column)
    return "-" if value is None else str(value)
