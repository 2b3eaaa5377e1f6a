"""What the page asks for, as JSON: one function a view, each from a request alone.

Knows the model's methods and what they give. A blend comes with each request, so nothing is kept
between two of them, and several people may look at once.
"""

import io
import tempfile
import threading
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch

from adapters_hub.compose.methods import METHODS
from adapters_hub.errors import AdaptersHubError, BackboneError
from adapters_hub.inference.generate import continued_ids, generate
from adapters_hub.interpretability.comparison import compare
from adapters_hub.interpretability.correlation import verdict
from adapters_hub.library import languages
from adapters_hub.library.adapter_file import WEIGHTS_FILE, AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.library.folder import check_name
from adapters_hub.model import AdaptedModel
from adapters_hub.playground.fields import Request, public
from adapters_hub.playground.tokens import Reading, read_text, read_written
from adapters_hub.tasks.pooling import default_pooling
from adapters_hub.tasks.registry import has_head
from adapters_hub.text.prompts import prompt_ids

Json = dict[str, object]
_Written = TypeVar("_Written")

_HEAD_VIEWS = {
    "classify": "classification",
    "answer": "question-answering",
    "tag": "token-classification",
}
"""The views that need an adapter with a head → the task of that head."""

_drawing = threading.Lock()  # torch has one generator for all threads


# ── what there is ────────────────────────────────────────────────────────────────────────────────


def describe(model: AdaptedModel) -> Json:
    """The backbone, its adapters in the library, and which views there can be."""
    backbone = model.backbone
    infos = model.library.list(fingerprint=backbone.fingerprint)
    name = Path(backbone.name).name if Path(backbone.name).is_dir() else backbone.name
    writes = backbone.kind != "encoder" and backbone.has_lm_head
    return {
        "backbone": {"name": name, "kind": backbone.kind, "sites": len(backbone.sites)},
        "library": model.library.root.name,
        "adapters": [_described(info) for info in infos],
        "views": {
            "continue": writes,
            "read": writes and backbone.kind == "decoder",
            "nearest": _embeds(model),
            **{view: any(i.task == task for i in infos) for view, task in _HEAD_VIEWS.items()},
        },
        "methods": list(METHODS),
    }


def _described(info: AdapterInfo) -> Json:
    kind = "domain" if info.domain else "language" if info.language else "other"
    return {
        "name": info.name,
        "kind": kind,
        "language": info.language,
        "language_name": languages.name(info.language) if info.language else None,
        "domain": info.domain,
        "task": info.task,
        "head": has_head(info.task),
        "labels": list(info.labels or ()),
        "rank": info.rank,
        "bytes": info.bytes,
        "over": list(info.over),
        "metrics": info.metrics,
        "license": info.license,
    }


def _embeds(model: AdaptedModel) -> bool:
    try:
        default_pooling(model.backbone)
    except BackboneError:
        return False
    return True


# ── text under several blends ────────────────────────────────────────────────────────────────────


def read(model: AdaptedModel, request: Request) -> Json:
    """A text's bits per byte, and its tokens' bits, under each blend."""
    blends = request.blends("blends", model.library)
    text = request.text("text")

    def column(reading: Reading) -> Json:
        return asdict(reading)

    return {"columns": [column(reading) for reading in read_text(model, text, blends)]}


def write(model: AdaptedModel, request: Request) -> Json:
    """How each blend goes on with a text; with the bits of each token on a decoder."""
    blends = request.blends("blends", model.library)
    text = request.text("text")
    options: dict[str, object] = {"max_new_tokens": request.count("length", 40, 1, 256)}
    if request.flag("no_repeats"):
        options["no_repeat_ngram_size"] = 3
    if temperature := request.number("temperature", 0, 0, 2):
        options |= {"do_sample": True, "temperature": temperature}
    seed = request.count("seed", 0, 0, 2**31 - 1)
    if model.backbone.kind != "decoder":
        texts = lambda some: generate(model, [text] * len(some), list(some), None, options)
        written = _drawn(model, blends, seed, options, texts)
        return {"columns": [{"text": text, "pieces": None} for text in written]}
    (prompt,) = prompt_ids(model.backbone, [text], False)

    @torch.no_grad()
    def go_on(some: Sequence[Blend]) -> list[list[int]]:
        return continued_ids(model, some, [prompt] * len(some), options).tolist()

    columns = []
    for blend, ids in zip(blends, _drawn(model, blends, seed, options, go_on), strict=True):
        pieces = read_written(model, prompt, _until_end(model, ids), blend)
        text = "".join(piece.text for piece in pieces)
        columns.append({"text": text, "pieces": [asdict(piece) for piece in pieces]})
    return {"columns": columns}


def _drawn(
    model: AdaptedModel,
    blends: Sequence[Blend],
    seed: int,
    options: Json,
    go_on: Callable[[Sequence[Blend]], list[_Written]],
) -> list[_Written]:
    """The text of each blend: in one batch, or, where tokens are sampled, one blend at a time.

    Each blend starts from the same seed, so its text does not depend on the other blends.
    """
    if not options.get("do_sample"):
        return go_on(blends)
    written = []
    device = model.device
    for blend in blends:
        with _drawing, torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            written += go_on([blend])
    return written


def _until_end(model: AdaptedModel, ids: list[int]) -> list[int]:
    """Token ids up to the one that ends a text; what follows is padding."""
    said = model.backbone.model.generation_config.eos_token_id
    ends = {model.tokenizer.eos_token_id, *(said if isinstance(said, list) else [said])}
    at = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: at + 1]


def classify(model: AdaptedModel, request: Request) -> Json:
    """A text's labels under each blend, the most probable first."""
    text = request.text("text")

    def column(blend: Blend) -> Json:
        (labels,) = model.classify([text], adapters=[blend])
        return {"labels": [{"label": name, "score": score} for name, score in labels.items()]}

    return _by_column(model, request.blends("blends", model.library), column)


def answer(model: AdaptedModel, request: Request) -> Json:
    """The answer to a question in its text, under each blend, in characters of the text."""
    text, question = request.text("text"), request.text("question")
    no_answer = None if request.flag("always") else 0.0

    def column(blend: Blend) -> Json:
        (answer,) = model.answer([question], [text], adapters=[blend], no_answer=no_answer)
        span = {"start": answer.start, "end": answer.end, "label": "", "score": answer.score}
        return {"text": answer.text, "spans": [] if answer.start is None else [span],
                "score": answer.score}  # fmt: skip

    return _by_column(model, request.blends("blends", model.library), column)


def tag(model: AdaptedModel, request: Request) -> Json:
    """A text's spans under each blend, in characters of the text."""
    text = request.text("text")

    def column(blend: Blend) -> Json:
        (entities,) = model.tag([text], adapters=[blend])
        return {"spans": [asdict(entity) for entity in entities]}

    return _by_column(model, request.blends("blends", model.library), column)


def nearest(model: AdaptedModel, request: Request) -> Json:
    """Texts by the cosine of their embedding and the text's, the nearest first."""
    text, others = request.text("text"), request.texts("texts")

    def column(blend: Blend) -> Json:
        vectors = model.embed([text, *others], adapters=[blend] * (1 + len(others)))
        cosines = (vectors[1:] @ vectors[0]).tolist()
        ranked = sorted(zip(others, cosines, strict=True), key=lambda pair: -pair[1])
        return {"texts": [{"text": other, "cosine": cosine} for other, cosine in ranked]}

    return _by_column(model, request.blends("blends", model.library), column)


def _by_column(
    model: AdaptedModel, blends: Sequence[Blend], column: Callable[[Blend], Json]
) -> Json:
    """Each blend's column; one that cannot be says why, and the others stay."""
    columns = []
    for blend in blends:
        try:
            columns.append(column(blend))
        except AdaptersHubError as error:
            columns.append({"error": public(str(error), model.library)})
    return {"columns": columns}


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────


def profile(model: AdaptedModel, request: Request) -> Json:
    """Two adapters side by side by depth, as `adapters-hub compare` has it."""
    first = Blend([(request.adapter("first", model.library), 1.0)], exact=True)
    second = Blend([(request.adapter("second", model.library), 1.0)], exact=True)
    report = compare(model, first, second)
    return {
        "first": report.first,
        "second": report.second,
        "depths": [
            {"depth": depth, **asdict(measures)} for depth, measures in report.depths.items()
        ],
        "total": asdict(report.total),
        "verdict": verdict(report),
    }


def export(model: AdaptedModel, request: Request) -> tuple[str, bytes]:
    """A blend as one adapter: a file's name and its bytes, a zipped PEFT folder or one file.

    Nothing is left on disk.
    """
    blend = request.blend("blend", model.library)
    method = request.choice("method", METHODS, "sum")
    name = check_name(request.text("name", longest=96))
    lone = request.choice("format", ("folder", "file"), "folder") == "file"
    with tempfile.TemporaryDirectory(prefix="adapters-hub-") as place:
        folder = model.export(blend, Path(place) / name, method=method, name=name)
        if lone:
            return f"{name}.safetensors", (folder / WEIGHTS_FILE).read_bytes()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, f"{name}/{file.relative_to(folder).as_posix()}")
    return f"{name}.zip", packed.getvalue()


VIEWS: dict[str, Callable[[AdaptedModel, Request], Json]] = {
    "read": read,
    "continue": write,
    "classify": classify,
    "answer": answer,
    "tag": tag,
    "nearest": nearest,
    "profile": profile,
}
"""Views by the last part of their address."""
