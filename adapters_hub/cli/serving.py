"""The command that serves: vLLM with the library. Loads no backbone itself."""

import argparse
import importlib.util
import os
import shlex
import sys

from adapters_hub.cli.base import DeclareCommand
from adapters_hub.errors import MissingExtraError, SettingsError
from adapters_hub.library.checks import local_fingerprint, local_folder
from adapters_hub.library.library import Library
from adapters_hub.sharing.limits import MAX_LORA_RANKS, rank_limit

_PLUGIN = "adapters_hub"
_INSTALL = """\
vLLM is not installed beside adapters-hub. Install both in one environment:
  python -m venv serving
  serving/bin/pip install vllm adapters-hub
  serving/bin/adapters-hub serve …"""


def declare(command: DeclareCommand) -> None:
    """The commands of this group and their arguments."""
    sub = command("serve", _serve, "serve every blend of the library by vLLM, by its text")
    sub.add_argument("--backbone", required=True, help="a folder, a hub id, or starter")
    sub.add_argument("--max-loras", type=int, default=4, help="blends in one batch [4]")
    sub.add_argument(
        "--max-lora-rank",
        type=int,
        choices=MAX_LORA_RANKS,
        metavar="N",
        help=f"the largest rank of a blend, which is the sum of its adapters' ranks: one of "
        f"{', '.join(map(str, MAX_LORA_RANKS))} [for two of the library's largest]",
    )
    sub.add_argument("--print", action="store_true", help="only print the command")
    sub.add_argument("flags", nargs="*", help="after --: flags of vllm serve, such as --port 8001")


def _serve(options: argparse.Namespace) -> int:
    arguments, added = resolve(options)
    shown = [f"{key}={shlex.quote(value)}" for key, value in added.items()]
    print(" ".join([*shown, "vllm", shlex.join(arguments)]), flush=True)
    if options.print:
        return 0
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError(_INSTALL)
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", *arguments]
    os.execve(sys.executable, command, {**os.environ, **added})
    return 0


def resolve(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """vLLM's arguments, and what is added to its environment."""  # noqa: D403
    library = Library(options.library)
    if options.max_loras < 1:
        raise SettingsError(f"--max-loras {options.max_loras}: give 1 or more")
    folder = local_folder(options.backbone)
    infos = library.list(fingerprint=local_fingerprint(options.backbone))
    rank = 2 * max((info.rank for info in infos), default=MAX_LORA_RANKS[1])
    limit = options.max_lora_rank or rank_limit(rank) or MAX_LORA_RANKS[-1]
    arguments = ["serve", str(folder) if folder else options.backbone, "--enable-lora"]
    arguments += ["--max-loras", str(options.max_loras), "--max-lora-rank", str(limit)]
    arguments += ["--middleware", "adapters_hub.serving.vllm_middleware.LibraryMiddleware"]
    added = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "ADAPTERS_HUB_LIBRARY": str(library.root.absolute()),
    }
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None:  # then only those that it names are loaded
        named = [name for name in plugins.split(",") if name]
        added["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*named, _PLUGIN]))
    return arguments + options.flags, added
