"""Commands on what leaves the library: export. Torch comes in when one of them runs."""

import argparse

from adapters_hub.cli.base import DeclareCommand, declare_json, load_model, show
from adapters_hub.cli.blends import OPTIONS
from adapters_hub.errors import AdapterFileError

ENGINES = ("peft", "vllm", "sglang", "gguf", "ollama", "mlx", "openvino", "merged", "keras")
"""Those of `adapters_hub.sharing.engines`, which would bring in torch."""


def declare(command: DeclareCommand) -> None:
    """The commands of this group and their arguments."""
    sub = command("export", _export, "write a blend in the form that an engine reads")
    sub.add_argument("blend", help='an adapter, or a blend such as "de + 0.5*hotel"')
    sub.add_argument("-o", "--output", required=True, help="folder to write")
    sub.add_argument("--for", dest="engine", default="peft", choices=ENGINES, help="[peft]")
    sub.add_argument("--method", default="sum", help="how, as of compose [sum, which is exact]")
    sub.add_argument("--rank", type=int, help="cut to this rank [that of the sum]")
    sub.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="[float32]"
    )
    sub.add_argument("--base", help="what the engine calls the backbone [its name here]")
    sub.add_argument("--name", help="the new adapter's name [its terms']")
    sub.add_argument("--backbone", help="default: the one the blend's first adapter names")
    sub.add_argument(
        "--verify",
        action="store_true",
        help="read what was written, as the engine does, and compare it with the blend",
    )
    sub.add_argument("--texts", help="file of texts to verify on, one a line [three sentences]")
    declare_json(sub)


def _export(options: argparse.Namespace) -> int:
    from pathlib import Path

    from adapters_hub.interpretability import read_texts
    from adapters_hub.library.blend import Blend
    from adapters_hub.sharing.checks import TEXTS
    from adapters_hub.sharing.engine import Source
    from adapters_hub.sharing.engines import check_written, write_for

    texts = read_texts(options.texts) if options.texts else TEXTS
    blend = Blend.parse(options.blend)
    model = load_model(options, *blend.terms[:1])
    given = {key: value for key in OPTIONS if (value := getattr(options, key, None)) is not None}
    source = Source(model, blend, options.method, given, options.name, options.dtype, options.base)
    written = write_for(options.engine, source, Path(options.output))
    text = f"wrote {written.folder}\n{written.hint}"
    result: dict[str, object] = {"written": [str(written.folder)], "hint": written.hint}
    if not options.verify:
        show(options, text, **result)
        return 0
    check = check_written(options.engine, source, written.folder, texts)
    show(options, f"{text}\n{check}", **result, agrees=check.agrees, check=str(check))
    if not check.agrees:
        raise AdapterFileError(f"{written.folder} is not {options.blend!r}: {check}")
    return 0
