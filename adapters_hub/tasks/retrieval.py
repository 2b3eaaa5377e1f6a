"""Retrieval: a text finds its positive among others, by the cosine of their embeddings."""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.backbone.padding import padded
from adapters_hub.data.pairs import pair_rows
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.metrics.ranking import ndcg, ranking_metrics, ranks
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example
from adapters_hub.tasks.declaration import Declaration, TaskOptions
from adapters_hub.tasks.declarations.retrieval import (
    DECLARATION,
    RetrievalOptions,
    checked_pooling,
)
from adapters_hub.tasks.pooling import (
    default_pooling,
    embedding_of,
    unit_vectors,
)
from adapters_hub.tasks.reader import ReaderTask
from adapters_hub.text.tokenising import encode_texts

if TYPE_CHECKING:
    from peft import LoraConfig


Lengths = tuple[int, ...]
"""How many tokens a row's query, positive and negatives have."""


class Embedded(TypedDict):
    """A row's id, and its query and documents: hashes of the texts, and vectors (texts, width)."""

    key: str | None
    texts: list[str]
    vectors: np.ndarray


@dataclass(frozen=True)
class Retrieval(ReaderTask[Lengths, Embedded], RetrievalOptions):
    """InfoNCE (arXiv:1807.03748) over the documents of a batch, as in DPR (arXiv:2004.04906).

    A row is a query (its text), a ``positive`` and perhaps ``negatives``. Its loss is the
    cross-entropy of finding the positive by cosine / ``temperature`` among the positives and
    negatives of all rows that train the same adapter. Left out are those that would be false
    negatives: the positive of a row with the same id or the same query, and copies of the positive
    or the query of the row.

    Metrics are over the records given: their documents, each text once, are the corpus; what a
    query may find is the positives of its id and of its text; a copy of the query is not ranked,
    unless it is its positive (a translation may be the same).

    There is no head. ``pooling`` is ``mean``, ``cls`` or ``last`` (None: the last token for
    decoders, else the mean). The prompts are put before queries and before documents.
    """

    metric: str = "ndcg@10"
    higher_is_better: bool = True
    declaration: ClassVar[Declaration] = DECLARATION
    name: ClassVar[str] = DECLARATION.name
    couples: ClassVar[bool] = True

    @classmethod
    def prepare(
        cls, rows: Sequence[Row], columns: Mapping[str, str], options: TaskOptions
    ) -> list[Row]:
        return pair_rows(rows, columns)

    @classmethod
    def of_blend(cls, model: Runtime, blend: Blend, max_length: int) -> Self:
        pooling, prompts = embedding_of(model, blend)
        return cls(
            max_length=max_length,
            pooling=checked_pooling(pooling),
            query_prompt=prompts.get("query", ""),
            document_prompt=prompts.get("document", ""),
        )

    def metric_name(self, backbone: Backbone) -> str:
        return "nDCG@10"

    def new_adapter(
        self, info: AdapterInfo, backbone: Backbone, lora: "LoraConfig | None", seed: int = 0
    ) -> Adapter:
        prompts = {"query": self.query_prompt, "document": self.document_prompt}
        prompts = {name: text for name, text in prompts.items() if text}
        pooling = self.pooling or default_pooling(backbone)
        return super().new_adapter(
            replace(info, pooling=pooling, prompts=prompts), backbone, lora, seed
        )

    def encode(self, rows: Sequence[Row], backbone: Backbone) -> list[Example[Lengths]]:
        """A row's query, positive and negatives are one after another in its example.

        ``target`` has their lengths in tokens.
        """
        texts: list[str] = []
        for row in rows:
            documents = _documents(row)
            texts += [self.query_prompt + row.text, *(self.document_prompt + t for t in documents)]
        encoded = iter(encode_texts(texts, backbone, self.max_length))
        examples = []
        for row in rows:
            encoded_texts = [next(encoded) for _ in range(1 + len(_documents(row)))]
            joined = [token for ids in encoded_texts for token in ids]
            examples.append(Example(joined, row, tuple(map(len, encoded_texts))))
        return examples

    def usage(self, row: Row, backbone: Backbone) -> str:
        return f"model.encoder().encode_query([{row.text!r}])"

    def rows(self, row: Row) -> list[Row]:
        said = row.fields.get("positive_language")
        language = said if isinstance(said, str) else row.language
        documents = [replace(row, text=text, language=language) for text in _documents(row)]
        return [row, *documents]

    def collate(
        self, examples: Sequence[Example[Lengths]], backbone: Backbone, seed: int = 0
    ) -> dict[str, Tensor]:
        sequences = []
        for example in examples:
            start = 0
            for length in example.target:
                sequences.append(example.input_ids[start : start + length])
                start += length
        allowed = candidates(examples).to(backbone.device)
        return {**padded(sequences, backbone), "allowed": allowed, "documents": _counts(examples)}

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.ones(len(batch["documents"]))

    def outputs(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        """Unit vectors (sequences, width): each row's query, positive, negatives."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        pooling = self.pooling or default_pooling(model.backbone)
        return unit_vectors(model, inputs, [pooling] * len(inputs["input_ids"]))

    def coupled_loss(
        self, outputs: Tensor, examples: Sequence[Example[Lengths]], owners: Sequence[int]
    ) -> Tensor:
        allowed = candidates(examples, owners).to(outputs.device)
        return info_nce(outputs, _counts(examples), allowed, self.temperature)

    def loss(self, model: Runtime, batch: dict[str, Tensor], heads: Heads) -> Tensor:
        vectors = self.outputs(model, batch, heads)
        return info_nce(vectors, batch["documents"], batch["allowed"], self.temperature)

    def records(
        self,
        model: Runtime,
        batch: dict[str, Tensor],
        heads: Heads,
        examples: Sequence[Example[Lengths]],
    ) -> list[Embedded]:
        vectors = self.outputs(model, batch, heads).cpu().numpy()
        records: list[Embedded] = []
        start = 0
        for example in examples:
            texts = [_hash(row.text) for row in self.rows(example.row)]
            of_row = vectors[start : start + len(texts)].copy()  # not a view that keeps the batch
            records.append({"key": example.row.key, "texts": texts, "vectors": of_row})
            start += len(texts)
        return records

    def metrics(self, records: Sequence[Embedded]) -> dict[str, float]:
        return ranking_metrics(self.ranks(records))

    def tallies(self, records: Sequence[Embedded]) -> np.ndarray:
        """Each query's nDCG@10 among all documents, and 1: the corpus is not drawn again."""
        return np.array([(ndcg(ranks_of_query), 1.0) for ranks_of_query in self.ranks(records)])

    def score(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]

    def ranks(self, records: Sequence[Embedded]) -> list[list[int]]:
        """The ranks of what each record's query may find, among the documents of all."""
        if not records:
            raise DataError("no rows to measure")
        places: dict[str, int] = {}  # a document's text → its number in the corpus
        corpus: list[np.ndarray] = []
        known: dict[tuple[str, str], set[int]] = {}  # an id, or a query's text → what it may find
        for record in records:
            for text, vector in zip(record["texts"][1:], record["vectors"][1:], strict=True):
                if text not in places:
                    places[text] = len(corpus)
                    corpus.append(vector)
            for item in _items(record):
                known.setdefault(item, set()).add(places[record["texts"][1]])
        copies = [
            {places[query]} if query in places and query != positive else set()
            for query, positive, *_ in (record["texts"] for record in records)
        ]
        relevant = [
            set().union(*(known[item] for item in _items(record))) - copies_of_query
            for record, copies_of_query in zip(records, copies, strict=True)
        ]
        queries = _table([record["vectors"][0] for record in records])
        return ranks(queries, _table(corpus), relevant, copies)


def info_nce(vectors: Tensor, documents: Tensor, allowed: Tensor, temperature: float) -> Tensor:
    """-log softmax of each query's positive among its candidates → (rows,), float32.

    ``vectors`` (rows + documents, width) are unit vectors, each row's query before its documents,
    of which the first is the positive and ``documents`` (rows,) the number; ``allowed`` (rows,
    all documents) says which are a query's candidates.
    """
    documents = documents.to(vectors.device)
    ends = (documents + 1).cumsum(0)
    query = ends - documents - 1
    is_query = torch.zeros(len(vectors), dtype=torch.bool, device=vectors.device)
    is_query[query] = True
    logits = vectors[query] @ vectors[~is_query].T / temperature
    positive = documents.cumsum(0) - documents
    logits = logits.masked_fill(~allowed, -torch.inf)
    return functional.cross_entropy(logits, positive, reduction="none")


def candidates(examples: Sequence[Example[Lengths]], owners: Sequence[int] | None = None) -> Tensor:
    """Which documents of a batch (rows, all documents) count for which query; see `Retrieval`.

    ``owners``: which adapter each row trains; the rows of another are nothing to it.
    """
    numbers: dict[Hashable, int] = {}  # texts and ids as integers, to be compared by the tensor

    def number(thing: Hashable) -> int:
        return numbers.setdefault(thing, len(numbers))

    item_of: dict[str, int] = {}  # of a text that is the positive of one
    rows: list[tuple[int, ...]] = []  # as tuples of (item, query, text, owner)
    documents: list[tuple[int, ...]] = []
    positives: list[int] = []
    for place, example in enumerate(examples):
        row, (positive, *_) = example.row, _documents(example.row)
        item = number(("row", place) if row.key is None else ("id", row.key))
        item_of.setdefault(positive, item)
        owner = owners[place] if owners is not None else 0
        rows.append((item, number(row.text), number(positive), owner))
    for place, example in enumerate(examples):
        item, query, _, owner = rows[place]
        positive, *negatives = _documents(example.row)
        positives.append(len(documents))
        documents.append((item, query, number(positive), owner))
        nothing = number(("no query",))
        documents += [
            (item_of.get(text, nothing), nothing, number(text), owner) for text in negatives
        ]
    items, queries, texts, mine = torch.tensor(rows).T[:, :, None]
    document_items, document_queries, document_texts, theirs = torch.tensor(documents).T
    same = (items == document_items) | (queries == document_queries)
    same |= (texts == document_texts) | (queries == document_texts)
    same[torch.arange(len(rows)), positives] = False
    return ~same & (mine == theirs)


def _documents(row: Row) -> list[str]:
    """A row's positive, then its negatives; `DataError` for a row that has no pair."""
    positive, negatives = row.fields.get("positive"), row.fields.get("negatives", [])
    if positive is None:
        lacking = row.columns.lacking(
            "positive",
            ", and no other row has this one's id with another text (of the languages asked for), "
            "so give translations one id, or ask for more languages",
        )
        raise DataError(f"{row.where}: {lacking}")
    if not isinstance(negatives, list):
        raise DataError(f"{row.where}: field 'negatives' is {negatives!r}, not a list of texts")
    for text in (positive, *negatives):
        if not isinstance(text, str):
            raise DataError(f"{row.where}: {text!r} in its pair is not text")
    for text, what in ((positive, "the positive"), (row.text, "the text itself")):
        if text in negatives:
            raise DataError(f"{row.where}: field 'negatives' has {what} in it ({text!r})")
    return [positive, *negatives]


def _counts(examples: Sequence[Example[Lengths]]) -> Tensor:
    return torch.tensor([len(example.target) - 1 for example in examples])


def _items(record: Embedded) -> list[tuple[str, str]]:
    key = [] if record["key"] is None else [("id", record["key"])]
    return [*key, ("query", record["texts"][0])]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _table(vectors: Sequence[np.ndarray]) -> Tensor:
    """Vectors (width,) as one tensor (vectors, width)."""
    return torch.from_numpy(np.stack(vectors))
