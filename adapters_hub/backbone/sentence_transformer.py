"""What a sentence-transformers folder says about embedding: pooling, prompts, length.

Knows the files that sentence-transformers writes beside a transformers checkpoint; does not know
the model, and never imports torch.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from adapters_hub.errors import BackboneError
from adapters_hub.library.json_fields import Fields, as_count, as_mapping, as_text

_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    # The mean times √n: the same direction, and so the same vector of length 1.
    "pooling_mode_mean_sqrt_len_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_SHORT = {"cls": "cls", "mean": "mean", "mean_sqrt_len_tokens": "mean", "lasttoken": "last"}
_FOLLOWED = ("Transformer", "Pooling", "Normalize")

_Container = TypeVar("_Container", dict[str, object], list[object])
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class EmbeddingSettings:
    """How a checkpoint is meant to embed; empty where its folder says nothing.

    ``unsupported``: why what the folder says cannot be followed, else None.
    """

    pooling: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)  # by kind: query, document, …
    default_prompt: str = ""  # put before a text where no prompt was asked for
    max_tokens: int | None = None
    lower_case: bool = False
    unsupported: str | None = None


def read_embedding_settings(folder: Path) -> EmbeddingSettings:
    """The settings of a checkpoint folder, from ``modules.json`` and the files it names.

    Raises `BackboneError` for a file that is not JSON of the expected kind, or a field that is not.
    """
    modules = _read(folder / "modules.json", list)
    if modules is None:
        return EmbeddingSettings()
    paths: dict[str, str] = {}
    for module in modules:
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise BackboneError(f"{folder / 'modules.json'}: a module without a type: {module!r}")
        paths[module["type"].rpartition(".")[2]] = str(module.get("path") or "")
    texts_file = folder / "config_sentence_transformers.json"
    texts = _read(texts_file, dict) or {}
    lengths_file = folder / "sentence_bert_config.json"
    lengths = _read(lengths_file, dict) or {}
    given = _field(texts, "prompts", as_mapping, texts_file) or {}
    prompts = {kind: prompt for kind, prompt in given.items() if isinstance(prompt, str)}
    default = _field(texts, "default_prompt_name", as_text, texts_file)
    pooling_file = folder / paths.get("Pooling", "1_Pooling") / "config.json"
    pooling_config = _read(pooling_file, dict) or {}
    pooling, unsupported = _pooling(pooling_config, pooling_file)
    if unknown := [kind for kind in paths if kind not in _FOLLOWED]:
        unsupported = (
            f"its embeddings go through {unknown[0]} ({paths[unknown[0]] or folder}) after the "
            "transformer, which is not run here"
        )
    elif any(prompts.values()) and pooling_config.get("include_prompt") is False:
        unsupported = "its prompts are left out of the pooling (include_prompt), which is not done"
    return EmbeddingSettings(
        pooling=pooling,
        prompts=prompts,
        default_prompt=prompts.get(default or "", ""),
        max_tokens=_field(lengths, "max_seq_length", as_count, lengths_file),
        lower_case=bool(lengths.get("do_lower_case")),
        unsupported=unsupported,
    )


def _pooling(config: Mapping[str, object], file: Path) -> tuple[str | None, str | None]:
    """The pooling that a ``1_Pooling/config.json`` chooses, or why it cannot be followed."""
    chosen = _field(config, "pooling_mode", _modes, file)  # how newer versions write it
    if chosen is None:
        chosen = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
        known = [_MODES.get(key) for key in chosen]
    else:
        known = [_SHORT.get(name) for name in chosen]
    if not chosen:
        return None, None
    if len(chosen) == 1 and known[0]:
        return known[0], None
    return None, f"it pools by {' and '.join(chosen)}, which is none of mean, cls and last"


def _modes(value: object) -> list[str]:
    """A name, or several."""
    names = value if isinstance(value, list) else [value]
    try:
        return [*map(as_text, names)]
    except TypeError:
        raise TypeError("must be a name such as 'mean', or a list of names") from None


def _field(
    table: Mapping[str, object], name: str, read: Callable[[object], _Value], file: Path
) -> _Value | None:
    """A field of a file; None where it is null or not there."""
    try:
        return Fields(table).get(name, read)
    except TypeError as error:
        raise BackboneError(f"{file}: {error}; it is {table[name]!r}") from None


def _read(path: Path, kind: type[_Container]) -> _Container | None:
    """The JSON of a file, which has to be of a kind; None where there is no file."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BackboneError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, kind):
        raise BackboneError(f"{path}: a JSON {type(data).__name__}, not a {kind.__name__}")
    return data
