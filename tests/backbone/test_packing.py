"""Several documents in one row: each is what it is alone, or the backbone is said not to do that."""

import pytest
import torch
from conftest import auto_class, tiny_config, tiny_tokenizer

import adapters_hub as ah
from adapters_hub.backbone.packing import Packing
from adapters_hub.data.rows import Row
from adapters_hub.tasks.base import Example
from adapters_hub.tasks.language_modeling import LanguageModeling, Packed

ROW = Row("")
DOCUMENTS = [[5, 9, 30, 7, 8], [44, 6], [90, 91, 92, 93], [17, 18, 19]]
WAYS = {
    "qwen3": Packing(0, masked=False),
    "llama": Packing(0, masked=False),
    "gpt2": Packing(0, masked=False),
    "gemma3": Packing(0, masked=False),
    "bert": Packing(0, masked=True),
    "xlm-roberta": Packing(1, masked=True),
    "modernbert": Packing(0, masked=True),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", WAYS)
def test_states_and_losses_are_those_of_each_document_alone(kind, attention, tiny):
    model = ah.load_backbone(str(tiny(kind)), attn_implementation=attention)
    backbone = model.backbone
    assert backbone.packing(16) == WAYS[kind]
    task = LanguageModeling(max_length=16, mask_probability=0.4)
    rows = [DOCUMENTS, DOCUMENTS[:1], [*DOCUMENTS[:2], DOCUMENTS[0]]]  # the shorter are padded
    packed = [
        Packed([t for part in row for t in part], ROW, documents=tuple(map(len, row)))
        for row in rows
    ]
    batch = task.collate(packed, backbone)
    labels = batch.pop("labels")
    states = backbone.hidden_states(batch)
    for row, documents in enumerate(rows):
        at = 0
        for document in documents:
            part = slice(at, at + len(document))
            ids = batch["input_ids"][row : row + 1, part]  # masked, where that is the objective
            alone = backbone.hidden_states(
                {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            )
            torch.testing.assert_close(states[row, part], alone[0], atol=2e-5, rtol=1e-4)
            at += len(document)
        assert (labels[row, at:] == -100).all()
    if backbone.kind == "decoder":
        nats = task.loss(model, {**batch, "labels": labels}, [])
        alone = [Example(document, ROW, 0) for row in rows for document in row]
        each = task.loss(model, task.collate(alone, backbone), [])
        sums = [part.sum() for part in each.split(list(map(len, rows)))]
        torch.testing.assert_close(nats, torch.stack(sums), atol=1e-3, rtol=1e-4)


def test_a_row_of_one_document_is_as_it_would_be_unpacked(tiny):
    model = ah.load_backbone(str(tiny("qwen3")))
    task = LanguageModeling(max_length=16)
    packed = [Packed(document, ROW, documents=(len(document),)) for document in DOCUMENTS]
    plain = [Example(document, ROW, 0) for document in DOCUMENTS]
    losses = [task.loss(model, task.collate(some, model.backbone), []) for some in (packed, plain)]
    torch.testing.assert_close(*losses)


def test_a_local_window_that_a_mask_would_undo_is_noticed(tiny):
    """ModernBERT's layers see 64 tokens to each side; a mask of our making would show them all."""
    backbone = ah.load_backbone(str(tiny("modernbert"))).backbone
    assert backbone.packing(96) == Packing(0, masked=True)
    assert backbone.packing(240) is None


def test_a_backbone_that_cannot_says_so_and_the_texts_stand_side_by_side(tmp_path):
    import transformers

    torch.manual_seed(0)
    config = transformers.BloomConfig(
        hidden_size=32, n_layer=2, n_head=2, vocab_size=256, pad_token_id=0
    )
    model = transformers.BloomForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = ah.load_backbone(str(tmp_path))
    assert loaded.backbone.packing(16) is None
    task = LanguageModeling(max_length=16)
    ids = [t for part in DOCUMENTS for t in part]
    batch = task.collate([Packed(ids, ROW, documents=tuple(map(len, DOCUMENTS)))], loaded.backbone)
    assert batch["attention_mask"].tolist() == [[1] * len(ids)]
    starts = [0, 5, 7, 11]
    expected = [-100 if place in starts else token for place, token in enumerate(ids)]
    assert batch["labels"].tolist() == [expected]


def test_a_sliding_window_is_kept(tmp_path):
    """Gemma's local layers see a window of a document, packed or not."""
    config = tiny_config("gemma3")
    config.sliding_window = 4
    torch.manual_seed(0)
    model = auto_class("gemma3").from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert ah.load_backbone(str(tmp_path)).backbone.packing(32) == Packing(0, masked=False)
