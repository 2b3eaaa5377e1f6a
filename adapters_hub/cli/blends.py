"""Commands on blends: compose, compare, fit. Torch comes in when one of them runs."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from adapters_hub.cli.base import (
    DeclareCommand,
    columns_of,
    declare_columns,
    declare_json,
    load_model,
    show,
)
from adapters_hub.errors import SettingsError
from adapters_hub.library.library import Library

if TYPE_CHECKING:
    from adapters_hub.data.rows import Row
    from adapters_hub.library.blend import Blend
    from adapters_hub.model import AdaptedModel

OPTIONS: dict[str, type] = {  # of methods of composition: what is not given keeps its default
    "rank": int,
    "energy": float,
    "density": float,
    "seed": int,
    "lam": float,
    "inner": str,
    "bottom": int,
    "top": int,
    "transition": int,
}
"""Options of methods of composition and their types; what is not given keeps its default."""

_FIT = ("task", "per", "method", "steps", "learning_rate", "batch_size", "l1", "max_length", "seed")


def declare(command: DeclareCommand) -> None:
    """The commands of this group and their arguments."""
    raw = argparse.RawDescriptionHelpFormatter
    text = "write a blend as one standard PEFT adapter"

    sub = command("compose", _compose, text, add_help=False, formatter_class=raw)
    sub.add_argument("-h", "--help", action=_ComposeHelp, help="show the methods, too, and exit")
    sub.add_argument("blend", help='such as "de + 0.5*hotel", or a .blend.json file')
    sub.add_argument("-o", "--output", required=True, help="folder to write")
    sub.add_argument("--method", default="sum", help="how, see below [sum, which is exact]")
    for flag, kind in OPTIONS.items():
        sub.add_argument(f"--{flag}", type=kind, help="of the methods that name it below")
    sub.add_argument("--backbone", help="default: the one the blend's first adapter names")
    sub.add_argument("--name", help="the new adapter's name [a blend file's, else its terms']")
    declare_json(sub)

    sub = command("compare", _compare, "two adapters side by side, before they are composed")
    sub.add_argument("first", help='an adapter, such as de, or "0.5*de"')
    sub.add_argument("second")
    sub.add_argument("--texts", help="file of sentences, to measure the interference on")
    declare_columns(sub)
    sub.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="the report as JSON, to a file or stdout",
    )
    sub.add_argument("--plot", help="file to draw the profile by depth into, .png or .svg")
    sub.add_argument("--backbone", help="run it, too [for --texts the one the first names]")

    sub = command("fit", _fit, "find a blend's weights on a few rows, and write a blend file")
    sub.add_argument("blend", help='such as "de + hotel"; the weights in it are the start')
    output = sub.add_mutually_exclusive_group(required=True)
    output.add_argument("-o", "--output", help="file to write, NAME.blend.json")
    output.add_argument(
        "--store",
        action="store_true",
        help="find the first adapter's weight beside the second, from 0 to 1, by the least loss on "
        "all train and dev rows, and write it into the second's files: loading them by language "
        "and domain uses it",
    )
    sub.add_argument("--data", required=True, help="file or folder; test rows only measure")
    sub.add_argument("--dev", help="more data, all of it to choose the weights by [dev of --data]")
    sub.add_argument("--language", nargs="+", help="only rows in these")
    sub.add_argument("--domain", nargs="+", help="only rows of these")
    declare_columns(sub)
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
    declare_json(sub)


class _ComposeHelp(argparse.Action):
    """Help that asks the table of methods, and so brings in torch, only when it is shown."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from adapters_hub.compose.methods import describe_methods

        parser.epilog = f"methods and their options:\n{describe_methods()}"
        parser.print_help()
        parser.exit()


def _compose(options: argparse.Namespace) -> int:
    from adapters_hub.compose.methods import check_options
    from adapters_hub.library.adapter_file import read_adapter
    from adapters_hub.library.blend import Blend
    from adapters_hub.library.blend_file import SUFFIX, BlendFile

    given = {key: value for key in OPTIONS if (value := getattr(options, key)) is not None}
    check_options(options.method, given)  # before a backbone is loaded
    if options.blend.endswith(SUFFIX):
        file = BlendFile.read(options.blend)
        model = load_model(options, file.terms[0].name, exact=True)  # what it names is not loaded
        blend = model.load_blend(file)
        options.name = options.name or file.name
    else:
        blend = Blend.parse(options.blend)
        model = load_model(options, *blend.terms[:1])
    folder = model.export(blend, options.output, method=options.method, name=options.name, **given)
    said = read_adapter(folder).info.description or ""
    text = f"wrote {folder}" + (f"\n{said}" if options.energy is not None else "")
    show(options, text, written=[str(folder)], description=said)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from adapters_hub import interpretability as look
    from adapters_hub.interpretability.comparison import one_term
    from adapters_hub.interpretability.plotting import check_plot

    if options.plot:
        check_plot(options.plot)  # now, rather than after the work
    texts = look.read_texts(options.texts, columns_of(options)) if options.texts else None
    source: Library | AdaptedModel = Library(options.library)
    if texts is not None or options.backbone:
        source = load_model(options, one_term(options.first).terms[0])
    report = look.compare(source, options.first, options.second, texts)
    if options.json == "-":
        print(json.dumps(report.to_json(), ensure_ascii=False, allow_nan=False))
    else:
        print(f"{look.describe(report)}\n\n{look.verdict(report)}")
        if options.json:
            print(f"wrote {report.write(options.json)}")
    if options.plot:
        plot = look.plot(report, options.plot)
        print(f"wrote {plot}", file=sys.stderr if options.json == "-" else sys.stdout)
    return 0


def _fit(options: argparse.Namespace) -> int:
    import random

    from adapters_hub.data.reading import check_languages, read_data, select
    from adapters_hub.library.blend import Blend
    from adapters_hub.library.blend_file import check_target
    from adapters_hub.tasks.registry import row_fields
    from adapters_hub.training.blend_weights import fit

    if not options.store:
        check_target(options.output)  # now, rather than after the work
    read = partial(
        read_data,
        columns=columns_of(options),
        label_separator=options.label_separator,
        fields=row_fields(),
    )
    splits = read(options.data)
    if options.dev:
        splits["dev"] = [row for rows in read(options.dev).values() for row in rows]
    check_languages(splits.get("train", []), options.language or (), options.data)
    splits = {s: select(rows, options.language, options.domain) for s, rows in splits.items()}
    rows = splits.get("train", [])
    if options.rows is not None and options.rows < len(rows):
        rows = random.Random(options.seed).sample(rows, max(0, options.rows))
    blend = Blend.parse(options.blend)
    model = load_model(options, *blend.terms[:1])
    if options.store:
        return _store(model, blend, [*rows, *splits.get("dev", [])], options)
    fitted = fit(
        model,
        blend,
        rows,
        dev=splits.get("dev", []),
        held_out=splits.get("test", []),
        **{name: getattr(options, name) for name in _FIT},
    )
    path = fitted.file.write(options.output)
    lines = []
    for name, weight in fitted.weights.items():
        each = weight if isinstance(weight, tuple) else (weight,)
        lines.append(f"{name}\t{' '.join(f'{value:.3f}' for value in each)}")
    for split, scores in fitted.before.items():
        for metric, value in scores.items():
            lines.append(f"{split}\t{metric}\t{value:.4f} -> {fitted.after[split][metric]:.4f}")
    show(
        options,
        "\n".join([*lines, f"wrote {path}"]),
        written=[str(path)],
        weights=fitted.weights,
        before=fitted.before,
        after=fitted.after,
    )
    return 0


def _store(
    model: "AdaptedModel", blend: "Blend", rows: "Sequence[Row]", options: argparse.Namespace
) -> int:
    """Measure a language adapter's weight beside another adapter, and keep it with that one."""
    from adapters_hub.training.blend_weights import task_for
    from adapters_hub.training.pair_weights import measure_pair

    wanted = model.resolve(blend)
    if len(wanted.terms) != 2:
        raise SettingsError(f"--store takes a language and another adapter, not {options.blend!r}")
    task = task_for(options.task, model, wanted, options.max_length)
    language, other = wanted.terms
    measured = measure_pair(model, language, other, task, task.prepare(rows, {}, task))
    info = model.library.keep_pair_weight(other, language, measured)
    show(
        options,
        f"{language} beside {other}: {measured}\nwrote {info.path}",
        written=[info.path],
        weight=measured.weight,
    )
    return 0
