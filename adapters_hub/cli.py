"""``adapters-hub``: the library from the command line. Arguments only; the work is elsewhere."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from adapters_hub import __version__
from adapters_hub.errors import AdaptersHubError
from adapters_hub.info import AdapterInfo
from adapters_hub.library import Library

_OPTIONS: dict[str, Any] = {  # of methods of composition: what is not given keeps its default
    "rank": int,
    "density": float,
    "seed": int,
    "lam": float,
    "inner": str,
    "bottom": int,
    "top": int,
    "transition": int,
}
_COLUMNS = ("name", "language", "domain", "task", "backbone", "rank")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for a refusal, 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except AdaptersHubError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # such as `adapters-hub list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adapters-hub", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--library", help="folder of adapters [$ADAPTERS_HUB_LIBRARY, ./adapters]")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str, **more: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, parents=[shared], **more)
        sub.set_defaults(run=run)
        return sub

    sub = command("list", _list, "the adapters of a library, one a line")
    sub.add_argument("--language", help="name, code or tag")
    sub.add_argument("--domain")
    sub.add_argument("--json", action="store_true", help="JSON Lines instead of a table")

    sub = command("show", _show, "everything known of one adapter, as JSON")
    sub.add_argument("term", help="an adapter's name, a language or a domain")

    sub = command("resolve", _resolve, "the adapter for a language, or the closest there is")
    sub.add_argument("language")

    sub = command("add", _add, "copy a PEFT LoRA folder, or a lone .safetensors, into the library")
    sub.add_argument("source")
    for flag in ("name", "language", "domain", "task", "backbone", "license"):
        sub.add_argument(f"--{flag}")
    sub.add_argument("--labels", nargs="+", help="label names, in the order of the logits")
    sub.add_argument("--replace", action="store_true", help="replace one of the same name")

    sub = command("remove", _remove, "delete an adapter")
    sub.add_argument("name")

    sub = command("verify", _verify, "check files against their stored hashes")
    sub.add_argument("names", nargs="*", help="all, if none is given")

    raw = argparse.RawDescriptionHelpFormatter
    text = "write a blend as one standard PEFT adapter"
    sub = command("compose", _compose, text, add_help=False, formatter_class=raw)
    sub.add_argument("-h", "--help", action=_ComposeHelp, help="show the methods, too, and exit")
    sub.add_argument("blend", help='such as "de + 0.5*hotel"')
    sub.add_argument("-o", "--output", required=True, help="folder to write")
    sub.add_argument("--method", default="sum", help="how, see below [sum, which is exact]")
    for flag, kind in _OPTIONS.items():
        sub.add_argument(f"--{flag}", type=kind, help="of the methods that name it below")
    sub.add_argument("--backbone", help="default: the one the blend's first adapter names")
    sub.add_argument("--name", help="the new adapter's name")
    return parser


class _ComposeHelp(argparse.Action):
    """Help that asks the table of methods, and so brings in torch, only when it is shown."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from adapters_hub.compose import describe_methods

        parser.epilog = f"methods and their options:\n{describe_methods()}"
        parser.print_help()
        parser.exit()


def _list(options: argparse.Namespace) -> int:
    infos = Library(options.library).list(options.language, options.domain)
    if options.json:
        for info in infos:
            print(json.dumps(info.to_json(), ensure_ascii=False))
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
    found = Library(options.library).resolve(options.language)
    print(f"{found.info.name}\t{found.distance}\t{found.reason}")
    return 0


def _add(options: argparse.Namespace) -> int:
    info = Library(options.library).add(
        options.source,
        name=options.name,
        language=options.language,
        domain=options.domain,
        task=options.task,
        labels=options.labels,
        backbone=options.backbone,
        license=options.license,
        replace_existing=options.replace,
    )
    print(f"added {info.name} as {info.path}")
    return 0


def _remove(options: argparse.Namespace) -> int:
    Library(options.library).remove(options.name)
    print(f"removed {options.name}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    library = Library(options.library)
    bad = 0
    for name in options.names or library.names():
        problems = library.verify(name)
        print(f"{name}: {'; '.join(problems) or 'as it was written'}")
        bad += bool(problems)
    return 1 if bad else 0


def _compose(options: argparse.Namespace) -> int:
    from adapters_hub.blend import Blend
    from adapters_hub.compose import check_options
    from adapters_hub.errors import BlendError
    from adapters_hub.model import load_backbone

    given = {key: value for key in _OPTIONS if (value := getattr(options, key)) is not None}
    check_options(options.method, given)  # before a backbone is loaded
    library = Library(options.library)
    blend = Blend.parse(options.blend)
    if not blend:
        raise BlendError(f"{options.blend!r} cancels out: nothing to compose")
    backbone = options.backbone or library.find(blend.terms[0]).backbone
    if backbone is None:
        raise BlendError(f"{blend.terms[0]!r} names no backbone: give --backbone")
    model = load_backbone(backbone, library=library)
    folder = model.export(blend, options.output, method=options.method, name=options.name, **given)
    print(f"wrote {folder}")
    return 0


def _cell(info: AdapterInfo, column: str) -> str:
    value = getattr(info, column)
    return "-" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
