"""Text of no task in particular, on which a run measures what an adapter changes.

Knows files of rows, the backbone and the language-model task; does not know what is penalised.
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.backbone.padding import padded
from adapters_hub.data.batches import share
from adapters_hub.data.reading import stream_data
from adapters_hub.errors import DataError
from adapters_hub.tasks.base import Example
from adapters_hub.tasks.language_modeling import LanguageModeling
from adapters_hub.text.tokenising import encode_texts
from adapters_hub.training.piece import Piece

_MOST = 2000  # texts that are read
_AT_ONCE = 8  # of a step, for each adapter


class GenericText:
    """The first texts of a file, a folder or a Hub data set, encoded for a backbone.

    ``predicts`` says whether the backbone predicts their tokens (masked ones in an encoder); else
    only its hidden states can be compared. Raises `DataError` for data without text.
    """

    def __init__(self, source: str, backbone: Backbone, max_length: int, seed: int) -> None:
        self.backbone, self.seed = backbone, seed
        self.task = LanguageModeling(max_length=max_length)
        rows = [row for _, row in itertools.islice(stream_data(source), _MOST) if row.text.strip()]
        masks = backbone.kind != "encoder" or backbone.tokenizer.mask_token_id is not None
        self.predicts = backbone.has_lm_head and backbone.kind != "encoder-decoder" and masks
        texts = encode_texts([row.text for row in rows], backbone, max_length) if rows else []
        self.whole = [Example(ids, row, 0) for ids, row in zip(texts, rows, strict=True)]
        self.examples = self.task.encode(rows, backbone) if self.predicts and rows else self.whole
        if not self.examples:
            raise DataError(f"{source}: no text in it (--regularise-data)")

    def plain(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Texts as they are, padded, without targets."""
        return padded([example.input_ids for example in examples], self.backbone)

    def pieces(
        self, number: int, owners: Iterable[int], process: int, processes: int, adapters: int
    ) -> tuple[list[Piece], torch.Tensor, torch.Tensor]:
        """What one process gets of a step's texts: as many, and the same, for each owner.

        They hang on the seed and the step alone. Also how many targets and rows each adapter has
        (adapters,) in all processes.
        """
        draw = np.random.default_rng([self.seed, number])
        most = min(_AT_ONCE, len(self.examples))
        drawn = draw.choice(len(self.examples), most, replace=False)
        rows = [(self.examples[i], owner) for owner in owners for i in drawn]
        targets, counts = torch.zeros(2, adapters, dtype=torch.float64)
        whose = torch.tensor([owner for _, owner in rows])
        counts.index_add_(0, whose, torch.ones(len(rows), dtype=torch.float64))
        if self.predicts:
            inputs = self._collated([example for example, _ in rows[:most]], number)
            of_one = self.task.count(inputs).double().cpu()
            targets.index_add_(0, whose, of_one.repeat(len(rows) // most))
        pieces = []
        for places in share(range(len(rows)), process, processes, 1):
            examples = [rows[place][0] for place in places]
            inputs = self._collated(examples, number)
            pieces.append(Piece(places, examples, inputs, whose[places]))
        return pieces, targets, counts

    def _collated(self, examples: Sequence[Example], number: int) -> dict[str, torch.Tensor]:
        if not self.predicts:
            return self.plain(examples)
        return self.task.collate(examples, self.backbone, seed=self.seed * 100_003 + number)
