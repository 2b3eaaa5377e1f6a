"""An adapter's three files, written from checked ones with other things known of it."""

import json
import os
from dataclasses import replace
from pathlib import Path

from adapters_hub.library import model_card as card
from adapters_hub.library import safetensors_file as tensorfile
from adapters_hub.library.adapter_file import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterFiles,
    AdapterInfo,
    metadata,
    plain_config,
)
from adapters_hub.library.card_usage import usage


def write_adapter(files: AdapterFiles, info: AdapterInfo, folder: Path) -> None:
    """Write an adapter into an empty folder, synced to disk; raises as `safetensors_file.copy`."""
    config = files.spec.config.copy()
    if config.get("revision", "") is None:
        del config["revision"]
    if info.backbone is not None:
        config["base_model_name_or_path"] = info.backbone
    tensorfile.copy(
        files.weights,
        files.header,
        folder / WEIGHTS_FILE,
        lambda content: metadata(replace(info, hash=content), config),
    )
    _write(folder / CONFIG_FILE, json.dumps(plain_config(config), indent=2) + "\n")
    shown = replace(info, rank=files.info.rank)
    _write(folder / CARD_FILE, card.write_card(shown) + usage(shown, config))


def _write(path: Path, text: str) -> None:
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
