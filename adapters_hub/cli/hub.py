"""Commands on where adapters are shared: push, pull, outdated. Only a blend's sum needs torch."""

import argparse
import sys
from dataclasses import asdict

from adapters_hub.cli.base import DeclareCommand, declare_json, print_json
from adapters_hub.library.library import Library

_PLACES = "user/repo on the Hub, hf://user/repo@revision, s3://…, gs://…, a folder, a .safetensors"


def declare(command: DeclareCommand) -> None:
    """The commands of this group and their arguments."""
    sub = command("push", _push, "send an adapter, or a blend as one, to the Hub or elsewhere")
    sub.add_argument("blend", help='an adapter, or a blend such as "de + 0.5*hotel"')
    sub.add_argument("target", help=_PLACES)
    sub.add_argument("--revision", help="branch of the Hub, made if need be [the main one]")
    privacy = sub.add_mutually_exclusive_group()
    privacy.add_argument(
        "--private", action="store_true", default=None, help="make the repository private"
    )
    privacy.add_argument(
        "--public", dest="private", action="store_false", help="or public [the account's default]"
    )
    sub.add_argument("--name", help="what the adapter is called there [its name, its terms']")
    sub.add_argument("--base", help="the backbone's id on the Hub, where it is named by a folder")
    sub.add_argument("--message", help="of the commit")
    sub.add_argument("--replace", action="store_true", help="one that is there; not for the Hub")

    sub = command("pull", _pull, "fetch an adapter into the library, pinned to its revision")
    sub.add_argument("source", help=f"{_PLACES}, or https://…")
    sub.add_argument("--revision", help="branch, tag or commit of the Hub [the main branch]")
    for flag in ("name", "language", "backbone"):
        sub.add_argument(f"--{flag}")
    sub.add_argument("--domain", help="'' for none, whatever the files say")
    sub.add_argument("--replace", action="store_true", help="replace one of the same name")

    sub = command("outdated", _outdated, "the pulled adapters whose source has a newer revision")
    declare_json(sub, "JSON Lines instead of text")


def _push(options: argparse.Namespace) -> int:
    pushed = Library(options.library).push(
        options.blend,
        options.target,
        revision=options.revision,
        private=options.private,
        name=options.name,
        base=options.base,
        message=options.message,
        replace_existing=options.replace,
    )
    print(f"pushed {options.blend} to {pushed.url}")
    if pushed.revision:
        print(f"commit {pushed.revision}; adapters-hub pull {pushed.source}")
    return 0


def _pull(options: argparse.Namespace) -> int:
    info = Library(options.library).pull(
        options.source,
        revision=options.revision,
        name=options.name,
        language=options.language,
        domain=options.domain,
        backbone=options.backbone,
        replace_existing=options.replace,
    )
    pinned = info.origin.revision if info.origin else ""
    print(f"pulled {info.name} as {info.path}, pinned to {pinned}")
    return 0


def _outdated(options: argparse.Namespace) -> int:
    library = Library(options.library)
    pulled = [info for info in library.list() if info.origin]
    rows = library.outdated()
    unknown = [row for row in rows if row.problem]
    for row in rows:
        if options.json:
            print_json(asdict(row))
        elif row.problem:
            print(f"{row.name}: {row.problem}", file=sys.stderr)
        else:
            newer = f"adapters-hub pull {row.source} --name {row.name} --replace"
            print(f"{row.name}: pinned {row.pinned[:12]}, now {str(row.newest)[:12]}; {newer}")
    if not rows and not options.json:
        print(f"{len(pulled)} pulled adapters, all as at their sources")
    return 1 if unknown else 0
