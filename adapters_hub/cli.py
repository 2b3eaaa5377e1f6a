"""``adapters-hub``: the library from the command line. Arguments only; the work is elsewhere."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from adapters_hub import __version__
from adapters_hub.errors import AdaptersHubError
from adapters_hub.library.adapter_file import PROBLEM_TYPES, AdapterInfo
from adapters_hub.library.library import Library

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
_FIT = ("task", "per", "method", "steps", "learning_rate", "batch_size", "l1", "max_length", "seed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for a refusal, 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
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
    for flag in ("name", "language", "task", "backbone", "license"):
        sub.add_argument(f"--{flag}")
    sub.add_argument("--domain", help="'' for none, whatever the files say")
    sub.add_argument("--labels", nargs="+", help="label names, in the order of the logits")
    sub.add_argument("--problem-type", choices=PROBLEM_TYPES, help="of a classification head")
    sub.add_argument("--replace", action="store_true", help="replace one of the same name")

    sub = command("remove", _remove, "delete an adapter")
    sub.add_argument("name")

    sub = command("verify", _verify, "check files against their stored hashes")
    sub.add_argument("names", nargs="*", help="all, if none is given")

    raw = argparse.RawDescriptionHelpFormatter
    text = "write a blend as one standard PEFT adapter"
    sub = command("compose", _compose, text, add_help=False, formatter_class=raw)
    sub.add_argument("-h", "--help", action=_ComposeHelp, help="show the methods, too, and exit")
    sub.add_argument("blend", help='such as "de + 0.5*hotel", or a .blend.json file')
    sub.add_argument("-o", "--output", required=True, help="folder to write")
    sub.add_argument("--method", default="sum", help="how, see below [sum, which is exact]")
    for flag, kind in _OPTIONS.items():
        sub.add_argument(f"--{flag}", type=kind, help="of the methods that name it below")
    sub.add_argument("--backbone", help="default: the one the blend's first adapter names")
    sub.add_argument("--name", help="the new adapter's name [a blend file's, else its terms']")

    sub = command("compare", _compare, "two adapters side by side, before they are composed")
    sub.add_argument("first", help='an adapter, such as de, or "0.5*de"')
    sub.add_argument("second")
    sub.add_argument("--texts", help="file of sentences, to measure the interference on")
    sub.add_argument("--json", help="file to write the report to")
    sub.add_argument("--plot", help="file to draw the profile by depth into, .png or .svg")
    sub.add_argument("--backbone", help="run it, too [for --texts the one the first names]")

    sub = command("fit", _fit, "find a blend's weights on a few rows, and write a blend file")
    sub.add_argument("blend", help='such as "de + hotel"; its own weights are the start')
    sub.add_argument("-o", "--output", required=True, help="file to write, NAME.blend.json")
    sub.add_argument("--data", required=True, help="file or folder; test rows only measure")
    sub.add_argument("--dev", help="more data, all of it to choose the weights by [dev of --data]")
    sub.add_argument("--language", nargs="+", help="only rows in these")
    sub.add_argument("--domain", nargs="+", help="only rows of these")
    sub.add_argument("--label-separator", help="what stands between the labels of one cell")
    sub.add_argument("--rows", type=int, help="use so many train rows, drawn by --seed [all]")
    sub.add_argument("--task", help="[that of the head, else language-modeling]")
    sub.add_argument("--per", default="adapter", help="adapter or layer")
    sub.add_argument("--method", default="gradient", help="gradient or lorahub")
    sub.add_argument("--steps", type=int, help="[100 by gradient, 60 by lorahub]")
    sub.add_argument("--learning-rate", type=float, default=0.05)
    sub.add_argument("--batch-size", type=int, default=16)
    sub.add_argument("--l1", type=float, help="price of the weights' size [0; lorahub 0.05]")
    sub.add_argument("--max-length", type=int, default=256, help="tokens of a row")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--backbone", help="default: the one the blend's first adapter names")

    sub = command("matrix", _matrix, "tables and pictures of what recipes/evaluate_matrix.py found")
    sub.add_argument("results", help="folder with its cells")
    sub.add_argument("-o", "--output", help="folder for the pictures [none are drawn]")
    return parser


class _ComposeHelp(argparse.Action):
    """Help that asks the table of methods, and so brings in torch, only when it is shown."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from adapters_hub.compose.methods import describe_methods

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
        problem_type=options.problem_type,
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
    from adapters_hub.compose.methods import check_options
    from adapters_hub.library.blend import Blend
    from adapters_hub.library.blend_file import SUFFIX, BlendFile

    given = {key: value for key in _OPTIONS if (value := getattr(options, key)) is not None}
    check_options(options.method, given)  # before a backbone is loaded
    if options.blend.endswith(SUFFIX):
        file = BlendFile.read(options.blend)
        model = _model(options, file.terms[0].name, exact=True)  # what it names is not loaded
        blend = model.load_blend(file)
        options.name = options.name or file.name
    else:
        blend = Blend.parse(options.blend)
        model = _model(options, *blend.terms[:1])
    folder = model.export(blend, options.output, method=options.method, name=options.name, **given)
    print(f"wrote {folder}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from adapters_hub import interpretability as look
    from adapters_hub.interpretability.comparison import one_term
    from adapters_hub.interpretability.plotting import check_plot

    if options.plot:
        check_plot(options.plot)  # now, rather than after the work
    texts = look.read_texts(options.texts) if options.texts else None
    source: Any = Library(options.library)
    if texts is not None or options.backbone:
        source = _model(options, one_term(options.first).terms[0])
    report = look.compare(source, options.first, options.second, texts)
    print(f"{look.describe(report)}\n\n{look.verdict(report)}")
    if options.json:
        print(f"wrote {report.write(options.json)}")
    if options.plot:
        print(f"wrote {look.plot(report, options.plot)}")
    return 0


def _fit(options: argparse.Namespace) -> int:
    import random

    from adapters_hub.data.reading import read_data, select
    from adapters_hub.library.blend import Blend
    from adapters_hub.library.blend_file import check_target
    from adapters_hub.training.blend_weights import fit

    check_target(options.output)  # now, rather than after the work
    read = partial(read_data, label_separator=options.label_separator)
    splits = read(options.data)
    if options.dev:
        splits["dev"] = [row for rows in read(options.dev).values() for row in rows]
    splits = {s: select(rows, options.language, options.domain) for s, rows in splits.items()}
    rows = splits.get("train", [])
    if options.rows is not None and options.rows < len(rows):
        rows = random.Random(options.seed).sample(rows, max(0, options.rows))
    blend = Blend.parse(options.blend)
    found = fit(
        _model(options, *blend.terms[:1]),
        blend,
        rows,
        dev=splits.get("dev", []),
        held_out=splits.get("test", []),
        **{name: getattr(options, name) for name in _FIT},
    )
    path = found.file.write(options.output)
    for name, weight in found.weights.items():
        each = weight if isinstance(weight, tuple) else (weight,)
        print(f"{name}\t{' '.join(f'{value:.3f}' for value in each)}")
    for split, scores in found.before.items():
        for metric, value in scores.items():
            print(f"{split}\t{metric}\t{value:.4f} -> {found.after[split][metric]:.4f}")
    print(f"wrote {path}")
    return 0


def _matrix(options: argparse.Namespace) -> int:
    from adapters_hub.evaluation.report import draw, read_cells, tables

    cells = read_cells(options.results)
    print(tables(cells))
    for path in draw(cells, options.output) if options.output else ():
        print(f"wrote {path}", file=sys.stderr)
    return 0


def _model(options: argparse.Namespace, first: str = "", *, exact: bool = False) -> Any:
    """The backbone asked for, else that of a blend's first term, or adapter's ``exact`` name."""
    from adapters_hub.errors import BlendError
    from adapters_hub.model import load_backbone

    library = Library(options.library)
    if not first:
        raise BlendError(f"{options.blend!r} cancels out: there is nothing in it")
    find = library.get if exact else library.find
    backbone = options.backbone or find(first).backbone
    if backbone is None:
        raise BlendError(f"{first!r} names no backbone: give --backbone")
    return load_backbone(backbone, library=library)


def _cell(info: AdapterInfo, column: str) -> str:
    value = getattr(info, column)
    return "-" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
