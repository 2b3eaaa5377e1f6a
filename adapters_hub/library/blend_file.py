"""Blend files: a blend with fitted weights, as one small JSON file that others can load.

Knows the format and the names of layers; does not know how weights are fitted or used. What is read
is treated as hostile: bounded in size, every field checked. Never imports torch.

    {"format": "adapters_hub.blend", "version": 1,
     "backbone": "starter", "fingerprint": "qwen3-6L-256-…",
     "layers": ["layers.0", "layers.1", …],              only where a weight is a list
     "terms": [{"name": "da", "hash": "sha256:…", "weight": 0.9},
               {"name": "hotel", "hash": "sha256:…", "weight": [1.1, 0.8, …]}],
     "method": "gradient", "task": "language-modeling", "rows": 32, "seed": 0,
     "loss_before": 2.5, "loss_after": 2.4}

A list has a weight for each of ``layers``. Those of an encoder-decoder are counted stack after
stack, ``encoder.block.0``, …, ``decoder.block.0``, …; a site in no layer takes the list's mean.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from adapters_hub.errors import AdaptersHubError, BackboneMismatchError, BlendFileError
from adapters_hub.library import safetensors_file as tensorfile
from adapters_hub.library.atomic import atomic_write
from adapters_hub.library.blend import NAME
from adapters_hub.library.fingerprint import belongs
from adapters_hub.library.json_fields import check_count
from adapters_hub.library.layers import layer_of

FORMAT = "adapters_hub.blend"
FORMAT_VERSION = 1
SUFFIX = ".blend.json"
MAX_WEIGHT = 1000.0
"""The largest size of a weight; fitted ones are seldom above 2."""

_MAX_BYTES = 4_000_000  # 100 adapters of 1,000 layers have half
_MAX_TERMS = 1000
_MAX_LAYERS = 10_000
_MAX_TEXT = 4096
_HASH = re.compile(r"sha256:[0-9a-f]{64}")

Weight = float | tuple[float, ...]


@dataclass(frozen=True)
class BlendTerm:
    """One adapter of a blend file: its exact name, content hash, and weight or weights a layer.

    ``hash`` is None for an adapter that was only in memory; any of that name then does.
    """

    name: str
    hash: str | None
    weight: Weight


@dataclass(frozen=True)
class BlendFile:
    """A blend with fitted weights, and how they were fitted; `AdaptedModel.load_blend` uses it.

    Raises `BlendFileError` for a field that cannot be. ``name`` is the file's, and not stored.
    """

    terms: tuple[BlendTerm, ...]
    backbone: str
    fingerprint: str
    layers: tuple[str, ...] = ()
    method: str | None = None
    task: str | None = None
    rows: int | None = None
    seed: int | None = None
    loss_before: float | None = None  # nats a target, on those rows
    loss_after: float | None = None
    name: str = "blend"

    def __post_init__(self) -> None:
        for field in ("backbone", "fingerprint", "method", "task", "name"):
            value = getattr(self, field)
            if value is not None or field in ("backbone", "fingerprint", "name"):
                _check_text(field, value)
        if not NAME.fullmatch(self.name):
            raise BlendFileError(f"field 'name': {self.name!r} cannot be a part of a term")
        for field in ("rows", "seed"):
            value = getattr(self, field)
            if value is not None and (type(value) is not int or not 0 <= value < 2**63):
                raise BlendFileError(f"field {field!r}: {_shown(value)} is no count")
        for field in ("loss_before", "loss_after"):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, _number(field, value, math.inf))
        for number, layer in enumerate(_checked_list("layers", self.layers, _MAX_LAYERS)):
            _check_text(f"layers[{number}]", layer)
        if len(set(self.layers)) < len(self.layers):
            raise BlendFileError("field 'layers': a layer occurs twice")
        if not _checked_list("terms", self.terms, _MAX_TERMS):
            raise BlendFileError("field 'terms': no adapter in it")
        terms = tuple(_term(number, term, self.layers) for number, term in enumerate(self.terms))
        if len({term.name for term in terms}) < len(terms):
            raise BlendFileError("field 'terms': an adapter occurs twice")
        object.__setattr__(self, "terms", terms)
        object.__setattr__(self, "layers", tuple(self.layers))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "BlendFile":
        """Read a blend file; raises `BlendFileError` that names the file and the field."""
        path = Path(path)
        try:
            raw = tensorfile.read_small(path, _MAX_BYTES).decode("utf-8")
            check_count(raw, letters=8)  # as weights do
            data = json.loads(raw, object_pairs_hook=_once, parse_constant=_no_constant)
        except AdaptersHubError as error:
            raise BlendFileError(str(error)) from None
        except OSError as error:
            raise BlendFileError(f"{path}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise BlendFileError(f"{path}: not JSON ({error})") from None
        try:
            make: Callable[..., BlendFile] = cls  # which checks every field
            return make(**_fields(data), name=_stem(path))
        except BlendFileError as error:
            raise BlendFileError(f"{path}: {error}") from None

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write ``<name>.blend.json``, complete or not at all; raises `BlendFileError`."""
        path = check_target(path)
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(text.encode())
        except OSError as error:
            raise BlendFileError(f"{path}: cannot be written ({error.strerror or error})") from None
        return path

    def to_json(self) -> dict[str, object]:
        """The file's content as plain JSON values."""
        data = asdict(self)
        del data["name"]
        return {"format": FORMAT, "version": FORMAT_VERSION, **data}

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that stand for the content."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def weight_at(self, term: BlendTerm, site: str) -> float:
        """A term's weight at a site: the one of its layer, else the mean of all layers."""
        if not isinstance(term.weight, tuple):
            return term.weight
        layer = layer_of(site)
        if layer in self.layers:
            return term.weight[self.layers.index(layer)]
        return sum(term.weight) / len(term.weight)

    def check_backbone(self, backbone: str, fingerprint: str) -> None:
        """Raise `BackboneMismatchError` for another backbone than the weights were fitted on."""
        if not belongs(self.fingerprint, fingerprint):
            raise BackboneMismatchError(
                f"the weights of the blend file {self.name!r} were fitted on another backbone:\n"
                f"  blend file: {self.fingerprint} ({self.backbone})\n"
                f"  backbone:   {fingerprint} ({backbone})\n"
                "check_backbone=False loads it all the same if the layers are the same"
            )

    def check_layers(self, layers: tuple[str, ...]) -> None:
        """Raise `BackboneMismatchError` unless its layers, if it has any, are the backbone's."""
        if self.layers and self.layers != layers:
            raise BackboneMismatchError(
                f"the blend file {self.name!r} has weights for {len(self.layers)} layers, to "
                f"{self.layers[-1]}; the backbone has {len(layers)}, to {(layers or ('none',))[-1]}"
            )

    def check_hash(self, term: BlendTerm, there: str | None) -> None:
        """Raise `BlendFileError` unless the adapter is the one the weight was fitted for."""
        if term.hash not in (None, there):
            raise BlendFileError(
                f"the adapter {term.name!r} is not the one that the blend file {self.name!r} was "
                f"made with:\n  blend file: {term.hash}\n  adapter:    {there}\n"
                "its weight may not suit this one: fit again, or load_blend(…, "
                "check_hashes=False)"
            )


def check_target(path: str | os.PathLike[str]) -> Path:
    """The path, if a blend file can be called so; `BlendFileError` otherwise."""
    if not Path(path).name.endswith(SUFFIX):
        raise BlendFileError(f"{path}: a blend file's name ends with {SUFFIX}")
    return Path(path)


def _fields(data: object) -> dict[str, object]:
    """The dataclass's fields out of a file's JSON; unknown ones are left out."""
    if not isinstance(data, dict):
        raise BlendFileError("one JSON object is expected")
    if data.get("format") != FORMAT:
        raise BlendFileError(f"field 'format': {_shown(data.get('format'))}, not {FORMAT!r}")
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise BlendFileError(f"field 'version': {_shown(version)} is no version")
    if version > FORMAT_VERSION:
        raise BlendFileError(
            f"field 'version': {_shown(version)} is newer than this library reads "
            f"({FORMAT_VERSION}); upgrade adapters_hub"
        )
    for field in ("terms", "backbone", "fingerprint"):
        if field not in data:
            raise BlendFileError(f"field {field!r} is missing")
    known = BlendFile.__dataclass_fields__.keys() - {"name"}
    fields = {field: value for field, value in data.items() if field in known}
    terms = []
    for number, term in enumerate(_checked_list("terms", fields["terms"], _MAX_TERMS)):
        if not isinstance(term, dict) or not {"name", "hash", "weight"} <= term.keys():
            raise BlendFileError(f"field 'terms[{number}]': needs a name, a hash and a weight")
        terms.append(BlendTerm(term["name"], term["hash"], term["weight"]))
    return fields | {"terms": tuple(terms)}


def _term(number: int, term: object, layers: tuple[str, ...]) -> BlendTerm:
    """A checked term; lists of weights become tuples."""
    where = f"terms[{number}]"
    if not isinstance(term, BlendTerm):
        raise BlendFileError(f"field {where!r}: {_shown(term)} is no term")
    _check_text(f"{where}.name", term.name)
    if not NAME.fullmatch(term.name):
        raise BlendFileError(f"field '{where}.name': {_shown(term.name)} is no adapter's name")
    if term.hash is not None and not (isinstance(term.hash, str) and _HASH.fullmatch(term.hash)):
        raise BlendFileError(f"field '{where}.hash': {_shown(term.hash)} is no content hash")
    if not isinstance(term.weight, list | tuple):
        return BlendTerm(term.name, term.hash, _number(f"{where}.weight", term.weight, MAX_WEIGHT))
    if not term.weight or len(term.weight) != len(layers):
        raise BlendFileError(
            f"field '{where}.weight': {len(term.weight)} weights for {len(layers)} layers"
        )
    weights = (
        _number(f"{where}.weight[{at}]", value, MAX_WEIGHT) for at, value in enumerate(term.weight)
    )
    return BlendTerm(term.name, term.hash, tuple(weights))


def _number(field: str, value: object, limit: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BlendFileError(f"field {field!r}: {_shown(value)} is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or abs(number) > limit:
        size = "" if limit == math.inf else f" of at most {limit:g} in size"
        raise BlendFileError(f"field {field!r}: {_shown(value)} is no finite number{size}")
    return number


def _check_text(field: str, value: object) -> None:
    if not isinstance(value, str) or not value or len(value) > _MAX_TEXT or not value.isprintable():
        raise BlendFileError(f"field {field!r}: {_shown(value)} is no short printable text")


def _checked_list(field: str, value: object, limit: int) -> Sequence[object]:
    if not isinstance(value, list | tuple) or len(value) > limit:
        raise BlendFileError(f"field {field!r}: {_shown(value)} is no list of at most {limit}")
    return value


def _shown(value: object) -> str:
    """What was there, short and shallow: it may be hostile."""
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) > 10**20:
        return "a huge number"
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _stem(path: Path) -> str:
    """A file's name as a part of a term."""
    stem = path.name.removesuffix(SUFFIX).removesuffix(".json")
    return "-".join(re.findall(r"\w+", stem))[:64].rstrip("-") or "blend"


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table: dict[str, object] = {}
    for field, value in pairs:
        if field in table:
            raise ValueError(f"the field {_shown(field)} occurs twice")
        table[field] = value
    return table


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
