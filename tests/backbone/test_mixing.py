"""Embeddings of two texts in one row, against inputs_embeds by hand."""

import threading

import pytest
import torch
from torch import nn

import adapters_hub as ah
from adapters_hub.backbone.mixing import OTHERS, SHARES, check_mixes, mixed_embeddings
from adapters_hub.errors import BackboneError


def batch():
    torch.manual_seed(0)
    ids, others = torch.randint(5, 200, (2, 3, 7))
    shares = torch.rand(2, 3, 7)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, {
        OTHERS: others, SHARES: shares,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "modernbert", "xlm-roberta", "qwen3", "gpt2", "gemma3"])
def test_mixed_embeddings_equal_those_made_by_hand(kind, tiny):
    backbone = ah.load_backbone(str(tiny(kind))).backbone
    inputs, mixed = batch()
    embed = backbone.base.get_input_embeddings()
    check_mixes(backbone)
    with torch.no_grad():
        with mixed_embeddings(backbone, {**inputs, **mixed}):
            ours = backbone.hidden_states(inputs)
        own, theirs = mixed[SHARES][..., None]
        by_hand = own * embed(inputs["input_ids"]) + theirs * embed(mixed[OTHERS])
        mask = inputs["attention_mask"]
        options = {"position_ids": torch.arange(1, 8)[None]} if kind == "xlm-roberta" else {}
        expected = backbone.base(inputs_embeds=by_hand, attention_mask=mask, **options)
        torch.testing.assert_close(ours, expected.last_hidden_state, atol=1e-5, rtol=1e-4)
        with mixed_embeddings(backbone, inputs):  # nothing to mix
            plain = backbone.hidden_states(inputs)
        torch.testing.assert_close(plain, backbone.hidden_states(inputs), atol=0, rtol=0)
        assert (ours - plain).abs().max() > 1e-2


def test_another_thread_sees_nothing_of_it(tiny):
    backbone = ah.load_backbone(str(tiny("bert"))).backbone
    inputs, mixed = batch()
    usual = backbone.hidden_states(inputs)
    seen = []
    with mixed_embeddings(backbone, {**inputs, **mixed}):
        other = threading.Thread(target=lambda: seen.append(backbone.hidden_states(inputs)))
        other.start()
        other.join()
        backbone.hidden_states(inputs)
    torch.testing.assert_close(seen[0], usual, atol=0, rtol=0)


def test_a_backbone_that_does_not_embed_a_batch_once_is_refused(tiny, monkeypatch):
    backbone = ah.load_backbone(str(tiny("bert"))).backbone
    monkeypatch.setattr(backbone.base, "get_input_embeddings", lambda: nn.Embedding(9, 4))
    with pytest.raises(BackboneError, match="cannot be mixed in its embeddings"):
        check_mixes(backbone)
