"""Names in adapters of other versions and wrappers, made those of PEFT and transformers today.

    _orig_mod.  _fsdp_wrapped_module.      torch.compile, FSDP
    module.base_model.model.…              DistributedDataParallel
    lora_A.default.weight                  a whole state_dict, with the adapter's name
    layers.0.…                             without base_model.model. before it
    language_model.model.layers.…          vision-language models before transformers 4.52

Knows PEFT's files; does not know models, so what depends on their type stays as it is.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from adapters_hub.errors import AdapterFileError
from adapters_hub.library import safetensors_file as tensorfile
from adapters_hub.library.adapter_file import (
    CARD_FILE,
    CONFIG_FILE,
    KEY_PREFIX,
    WEIGHTS_FILE,
    read_config,
)

_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_NAMED = re.compile(r"\.lora_([AB])\.([^.]+)\.weight$")
_OLD_TEXT = re.compile(
    r"(?<!\w)(?<!model\.)(?<!model\\\.)language_model(\\?\.)model(\\?\.)layers(?=\\?\.)"
)
_OLD_TOP = re.compile(r"^(?:vision_tower|multi_modal_projector)\.")
_NAMES_IN = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern")


def plain_names(names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Old → new name of an adapter's tensors, and what was changed, in words.

    Raises `AdapterFileError` where two tensors would get one name.
    """
    new = dict(zip(names, names, strict=True))
    notes = []

    def change(what: str, how: dict[str, str]) -> None:
        if how != new:
            new.update(how)
            notes.append(what)

    change("wrappers' names left out", {old: _WRAPPERS.sub("", n) for old, n in new.items()})
    change(
        "module. left out",
        {
            old: n[len("module.") :] if n.startswith(f"module.{KEY_PREFIX}") else n
            for old, n in new.items()
        },
    )
    called = {match[2] for n in new.values() if (match := _NAMED.search(n))}
    if len(called) == 1:
        change(
            f"the adapter's name ({called.pop()[:40]}) left out",
            {old: _NAMED.sub(r".lora_\1.weight", n) for old, n in new.items()},
        )
    if not any(n.startswith("base_model.") for n in new.values()):
        change(f"{KEY_PREFIX} put before", {old: KEY_PREFIX + n for old, n in new.items()})
    paths = {old: n.removeprefix(KEY_PREFIX) for old, n in new.items()}
    if any(_OLD_TEXT.match(path) for path in paths.values()):
        change(
            "language_model.model. is now model.language_model.",
            {old: KEY_PREFIX + _renamed(path) for old, path in paths.items()},
        )
    if len(set(new.values())) < len(new):
        raise AdapterFileError("tensors that differ only in the names of wrappers")
    return new, notes


def plain_settings(config: Mapping[str, object], renamed: bool) -> dict[str, object]:
    """A configuration with the names of the same layers; ``renamed``: of the language model."""
    config = dict(config)
    for key in _NAMES_IN:
        config[key] = _plain_value(config.get(key), renamed) if key in config else None
    return {key: value for key, value in config.items() if value is not None}


def normalise(source: Path, weights: Path, folder: Path) -> tuple[Path, list[str]]:
    """The folder to add, and what was changed: ``source`` itself where nothing has to be.

    Else ``folder``, filled with the changed copy. ``weights`` are the source's, or converted ones.
    Raises `AdapterFileError` for damaged files.
    """
    header = tensorfile.read_header(weights)
    try:
        names, notes = plain_names([*header.tensors])
    except AdapterFileError as error:
        raise AdapterFileError(f"{weights}: {error}") from None
    if not notes and weights.parent == source:
        return source, []
    config = read_config(source / CONFIG_FILE)
    folder.mkdir()
    tensorfile.rename(weights, header, folder / WEIGHTS_FILE, names)
    settings = plain_settings(config, any("language_model" in note for note in notes))
    (folder / CONFIG_FILE).write_text(json.dumps(settings), encoding="utf-8")
    if (source / CARD_FILE).is_file():
        with (
            tensorfile.open_regular(source / CARD_FILE) as old,
            open(folder / CARD_FILE, "xb") as new,
        ):
            shutil.copyfileobj(old, new)
    return folder, notes


def _renamed(path: str) -> str:
    path = _OLD_TEXT.sub(r"model\1language_model\2layers", path)
    if _OLD_TOP.match(path):
        return f"model.{path}"
    return (
        path.removeprefix("language_model.") if path.startswith("language_model.lm_head") else path
    )


def _plain_value(value: object, renamed: bool) -> object:
    if isinstance(value, list):
        return [_plain_value(each, renamed) for each in value]
    if isinstance(value, dict):
        return {_plain_value(key, renamed): each for key, each in value.items()}
    if isinstance(value, str):
        value = _WRAPPERS.sub("", value)
        return _renamed(value) if renamed else value
    return value
