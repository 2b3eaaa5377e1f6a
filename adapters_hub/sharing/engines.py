"""The engines that a blend can be written for, by name, and the one way to do it.

An engine is one class in one file; it is added to `ENGINES`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adapters_hub.errors import SettingsError
from adapters_hub.sharing.checks import TEXTS, Check
from adapters_hub.sharing.engine import Engine, Export, Source
from adapters_hub.sharing.gguf_file import Gguf, Ollama
from adapters_hub.sharing.merged import Keras, Merged
from adapters_hub.sharing.mlx import Mlx
from adapters_hub.sharing.openvino import OpenVino
from adapters_hub.sharing.peft_folder import Peft, Sglang, Vllm

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Peft(), Vllm(), Sglang(), Gguf(), Ollama(), Mlx(), OpenVino(), Merged(), Keras()
    )
}  # fmt: skip

DTYPES = ("float32", "bfloat16", "float16")


def write_for(engine: str, source: Source, folder: Path) -> Export:
    """Write a blend for an engine; the folder is there whole or not at all.

    ``rank`` among the options of the plain sum cuts it: by `svd`, which loses least. Raises
    `SettingsError` for an engine or an option that cannot be, `UnsupportedAdapterError` for a blend
    that the engine cannot read, `LibraryError` where the folder cannot be written.
    """
    if engine not in ENGINES:
        raise SettingsError(f"--for {engine}: choose one of {', '.join(ENGINES)}")
    if source.dtype not in DTYPES:
        raise SettingsError(f"dtype={source.dtype!r}: choose one of {', '.join(DTYPES)}")
    if source.method == "sum" and source.options.get("rank") is not None:
        source = replace(source, method="svd")
    hint = ENGINES[engine].write(source, folder)
    return Export(folder, hint.replace("FOLDER", str(folder)))


def check_written(engine: str, source: Source, folder: Path, texts: Sequence[str] = TEXTS) -> Check:
    """Read what was written for an engine, and compare it with the blend."""
    return ENGINES[engine].check(source, folder, texts)
