"""Which backbone for which languages: what a few rows tell before anything is trained.

Knows rows, backbones, tasks and one training step; compares backbones, each in a process of its
own, so that one's memory is not counted for another. Stores nothing.
"""

import math
import multiprocessing
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError
from adapters_hub.library import languages
from adapters_hub.library.commands import train_command
from adapters_hub.metrics.tables import markdown
from adapters_hub.text.words import split_words
from adapters_hub.training.settings import Resolved, TrainingSettings

if TYPE_CHECKING:
    from adapters_hub.backbone.backbone import Backbone
    from adapters_hub.runtime.core import Runtime

UNKNOWN = 0.01
"""Share of unknown tokens from which on a language counts as hardly known."""
LONGER = 1.4
"""Tokens of texts over those of their translations, from which on it does, for want of bits."""
MISSED = 0.1
"""Share of texts that do not find their translation, from which on it does."""
BITS = 1.5
"""Bits of texts over those of their translations, from which on it does."""

_STEPS = 3  # whose seconds are averaged, after one that is not counted


@dataclass(frozen=True)
class Sample:
    """Texts of each language, and the translations into ``pivot`` that there are, in order.

    A language's texts all have a translation, or none has.
    """

    texts: Mapping[str, list[str]]
    translations: Mapping[str, list[str]]
    pivot: str

    @staticmethod
    def of(rows: Sequence[Row], count: int, pivot: str = "en") -> "Sample":
        """At most ``count`` texts a language, those with a translation first.

        A translation is a row's ``positive``, or the text of its ``id`` in the pivot's language.
        Raises `DataError` where no row names its language.
        """
        pivot = languages.canonical(pivot)
        by_key = {row.key: row.text for row in rows if row.key and row.language == pivot}
        texts: dict[str, list[str]] = {}
        pairs: dict[str, list[tuple[str, str]]] = {}
        for row in rows:
            if row.language is None:
                continue
            texts.setdefault(row.language, []).append(row.text)
            other = row.fields.get("positive") or by_key.get(row.key or "")
            if isinstance(other, str) and row.language != pivot:
                pairs.setdefault(row.language, []).append((row.text, other))
        if not texts:
            raise DataError(
                "no row names its language: say which column does (--columns language=NAME)"
            )
        pairs = {tag: some[:count] for tag, some in pairs.items() if len(some) > 1}
        chosen = {tag: [text for text, _ in some] for tag, some in pairs.items()}
        return Sample(
            {tag: chosen.get(tag, texts[tag][:count]) for tag in sorted(texts)},
            {tag: [other for _, other in some] for tag, some in pairs.items()},
            pivot,
        )

    def only(self, asked: Sequence[str]) -> "Sample":
        """The same of some languages; `DataError` for one that no row is in."""
        if missing := sorted({*asked} - self.texts.keys()):
            have = ", ".join(self.texts)
            raise DataError(f"no rows in {', '.join(missing)} (have: {have})")
        texts, others = (
            {tag: some[tag] for tag in asked if tag in some}
            for some in (self.texts, self.translations)
        )
        return Sample(texts, others, self.pivot)


@dataclass(frozen=True)
class Known:
    """How well a backbone knows a language, as far as its rows and its head tell.

    ``unknown`` is the share of tokens that stand for what the tokenizer has no piece for;
    ``tokens`` are a word's, as `split_words` cuts them; ``longer``: tokens over those of the
    translations. ``bits`` are a byte's, by a decoder's head; ``surplus``: bits of the texts over
    those of the translations. ``finds`` is the share of texts whose nearest translation, by an
    encoder's mean states, is theirs.
    """

    unknown: float
    tokens: float
    longer: float | None = None
    bits: float | None = None
    surplus: float | None = None
    finds: float | None = None

    def reasons(self) -> list[str]:
        """Why the language counts as hardly known; none where it does not."""
        said = []
        if self.unknown >= UNKNOWN:
            said.append(f"{self.unknown:.1%} of the tokens are unknown")
        if self.finds is not None and 1 - self.finds >= MISSED:
            said.append(f"{1 - self.finds:.0%} of the texts do not find their translation")
        if self.surplus is None and self.longer is not None and self.longer >= LONGER:
            said.append(f"{self.longer:.1f} times the tokens of the translations")
        if self.surplus is not None and self.surplus >= BITS:
            said.append(f"{self.surplus:.1f} times the bits of the translations")
        return said


@dataclass(frozen=True)
class Measured:
    """One backbone on the rows: languages, and what a training step costs there.

    ``seconds`` are a step's, ``memory`` the peak of the process in bytes, the backbone included (on
    an accelerator, that of its memory). ``kind`` is that of `Backbone`.
    """

    backbone: str
    kind: str
    seconds: float
    memory: int
    known: Mapping[str, Known] = field(default_factory=dict)

    def hardly(self) -> dict[str, list[str]]:
        """The languages that it hardly knows, each with the reasons."""
        reasons = {tag: known.reasons() for tag, known in self.known.items()}
        return {tag: said for tag, said in reasons.items() if said}

    def table(self) -> str:
        """A line a language; columns that say nothing are left out."""
        columns = {
            "unknown tokens": lambda known: f"{known.unknown:.2%}",
            "tokens a word": lambda known: f"{known.tokens:.2f}",
            "over its translation": lambda known: _shown(known.longer),
            "finds it": lambda known: _shown(known.finds),
            "bits a byte": lambda known: _shown(known.bits),
            "bits over its translation": lambda known: _shown(known.surplus),
        }
        rows = [[tag, *(show(known) for show in columns.values())]
                for tag, known in self.known.items()]  # fmt: skip
        said = [place for place in range(len(columns) + 1) if any(row[place] for row in rows)]
        head = ["language", *columns]
        return markdown([head[n] for n in said], [[row[n] for n in said] for row in rows])


def advise(
    backbones: Sequence[str],
    sample: Sample,
    *,
    batch_size: int = 16,
    max_length: int = 256,
    rank: int = 8,
) -> list[Measured]:
    """Each backbone measured on a sample, the recommended one first.

    That is the one that hardly knows the fewest languages, and of equal ones the one whose training
    step takes the least time. Raises what loading a backbone raises.
    """
    context = multiprocessing.get_context("spawn")
    measured = []
    for backbone in backbones:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            job = pool.submit(_measure, backbone, sample, batch_size, max_length, rank)
            measured.append(job.result())
    return sorted(measured, key=lambda one: (len(one.hardly()), one.seconds))


def recommendation(measured: Sequence[Measured]) -> str:
    """`advise`'s result in words: what each costs and hardly knows, and which to take."""
    lines = []
    for one in measured:
        hardly, count = one.hardly(), len(one.known)
        lines.append(
            f"{one.backbone}: knows {count - len(hardly)} of {count} languages; a training step "
            f"takes {one.seconds:.2f} s, the process {one.memory / 2**20:,.0f} MiB"
        )
        lines += [f"  {tag}: {'; '.join(reasons)}" for tag, reasons in hardly.items()]
    best = measured[0]
    if len(measured) > 1:
        lines.append(f"\nrecommended: {best.backbone}, which hardly knows the fewest languages, "
                     "and of those is the fastest to train")  # fmt: skip
    if hardly := best.hardly():
        objective = ("--objective", "match") if best.kind == "encoder" else ()
        lines.append(
            f"A language adapter ({train_command('language', *objective)}) should pay in "
            f"{', '.join(hardly)}; measure it: adapters-hub evaluate"
        )
    else:
        lines.append("No language stands out; a domain adapter alone may be all that is needed.")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


# ── in a process of its own ──────────────────────────────────────────────────────────────────────


_STEP_TASKS = {"encoder": "classification", "decoder": "language-modeling",
               "encoder-decoder": "generation"}  # fmt: skip
"""What a training step of each kind of backbone is measured on."""


def _measure(
    backbone: str, sample: Sample, batch_size: int, max_length: int, rank: int
) -> Measured:
    from adapters_hub.model import load_backbone

    model = load_backbone(backbone)
    seconds = _seconds(model, sample, batch_size, max_length, rank)
    memory = _peak(model.backbone.device.type)  # before more rows than a step's are used at once
    known = {tag: _known(model, sample, tag, max_length) for tag in sample.texts}
    return Measured(backbone, model.backbone.kind, seconds, memory, known)


def _seconds(
    model: "Runtime", sample: Sample, batch_size: int, max_length: int, rank: int
) -> float:
    """Seconds of a training step on texts of all languages, with made-up labels for an encoder."""
    from adapters_hub.training.run import Experiment

    rows = [
        Row(text, "ab"[number % 2], tag, where=f"{tag} {number}", fields={"target": text})
        for tag, texts in sample.texts.items()
        for number, text in enumerate(texts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingSettings(
            task=_STEP_TASKS[model.backbone.kind], batch_size=batch_size, max_length=max_length,
            rank=rank, steps=_STEPS, over=("none",), eval_every=10**6, run_folder=folder,
        )  # fmt: skip
        resolved = Resolved(settings, dict.fromkeys(settings.flat(), "advise"))
        splits = {"train": rows, "dev": rows[:2], "test": rows[:2]}
        experiment = Experiment(resolved, model=model, rows=splits, quiet=True)
        fresh = experiment.new_adapter("advice", domain="advice")
        experiment.train([fresh], steps=1)  # which is slower than those that follow
        (trained,), progress = experiment.train([fresh])
    model.drop(trained.name)
    return progress.seconds / _STEPS


def _known(model: "Runtime", sample: Sample, tag: str, max_length: int) -> Known:
    """How well the model's backbone knows a language of the sample."""
    backbone, texts = model.backbone, sample.texts[tag]
    others = sample.translations.get(tag)
    ids = [_tokens(backbone, some) for some in (texts, others or [])]
    tokens, longer = (sum(map(len, some)) for some in ids)
    unknown = backbone.tokenizer.unk_token_id
    bits = [_bits(model, some, max_length) for some in (texts, others or [])]
    return Known(
        unknown=sum(token == unknown for text in ids[0] for token in text) / max(1, tokens),
        tokens=tokens / max(1, sum(len(split_words(text)) for text in texts)),
        longer=tokens / longer if longer else None,
        bits=bits[0] and bits[0] / sum(len(text.encode()) for text in texts),
        surplus=bits[0] / bits[1] if bits[0] and bits[1] else None,
        finds=_finds(model, texts, others) if others and backbone.kind == "encoder" else None,
    )


def _tokens(backbone: "Backbone", texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded: list[list[int]] = backbone.tokenizer(list(texts), add_special_tokens=False)[
        "input_ids"
    ]
    return encoded


def _bits(model: "Runtime", texts: Sequence[str], max_length: int) -> float | None:
    """Bits of texts by a decoder's head; None for other kinds."""
    from adapters_hub.inference.records import collect_records
    from adapters_hub.library.blend import Blend
    from adapters_hub.tasks.language_modeling import LanguageModeling

    if model.backbone.kind != "decoder" or not texts:
        return None
    task = LanguageModeling(max_length=max_length)
    examples = task.encode([Row(text) for text in texts], model.backbone)
    records = collect_records(model, task, examples, lambda row: Blend(), batch_size=16)
    return sum(float(record["nats"]) for record in records) / math.log(2)


def _finds(model: "Runtime", texts: Sequence[str], others: Sequence[str]) -> float:
    """The share of texts whose nearest of the translations is theirs."""
    from adapters_hub.inference.embed import embed
    from adapters_hub.metrics.ranking import ranking_metrics, ranks

    one, two = (embed(model, some, None, None, 32) for some in (texts, others))
    relevant = [[number] for number in range(len(texts))]
    return ranking_metrics(ranks(one, two, relevant))["accuracy@1"]


def _peak(device: str) -> int:
    """The most memory that was in use, in bytes: of this process, or of its accelerator."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
