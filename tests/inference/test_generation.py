"""Long runs merged into a view of the model, rows brought together, blends a token."""

import pytest
import torch
from conftest import TEXTS, in_double
from tokenizers import processors

import adapters_hub as ah
from adapters_hub.backbone.padding import padded
from adapters_hub.errors import SettingsError
from adapters_hub.inference import generate as generation
from adapters_hub.runtime import merged as merging


@pytest.fixture
def make(tiny, lora_folder, tmp_path):
    """A model of a kind with two adapters."""

    def load(kind, **options):
        library = ah.Library(tmp_path / kind)
        for name in ("one", "two"):
            if name not in library.names():
                library.add(lora_folder(kind, name), name=name)
        return ah.load_backbone(str(tiny(kind)), library=library, **options)

    return load


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "gemma3", "mt5", "m2m100"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_merging_does_not_change_what_is_generated(kind, options, make, monkeypatch):
    model = make(kind)
    options = {"max_new_tokens": 6, **options}
    found = {}
    for pays in (False, True):
        monkeypatch.setattr(generation, "merging_pays", lambda *_, pays=pays: pays)
        found[pays] = model.generate(TEXTS, adapters="one - 0.5*two", **options)
        assert (model._merged is not None) == pays
    assert found[True] == found[False]
    assert found[True] != model.generate(TEXTS, **options)
    mixed = model.generate(TEXTS, adapters=["one - 0.5*two"] * 4 + [None], **options)
    assert mixed[:4] == found[True][:4]


def test_a_merged_view_shares_all_but_the_sites_and_takes_no_delta_twice(make, inputs):
    model = make("qwen3")
    blend = model.resolve("one + two")
    plan = model.plan([blend])
    view = model.merged_view(plan, blend)
    assert model.merged_view(plan, blend) is view
    own, shared = dict(view.named_parameters()), dict(model.backbone.model.named_parameters())
    different = {name for name in own if own[name] is not shared[name]}
    assert different == {f"model.{site}.weight" for site in plan.sites}
    with torch.no_grad():
        want = model(**inputs, adapters="one + two").logits
        torch.testing.assert_close(view(**inputs).logits, want, atol=1e-4, rtol=1e-4)
        with model.adapted(4, "one + two"):
            torch.testing.assert_close(view(**inputs).logits, want, atol=1e-4, rtol=1e-4)
    assert model.merged_view(model.plan([model.resolve("one")]), model.resolve("one")) is not view


def test_what_must_not_be_merged_is_not(make, monkeypatch):
    model = make("qwen3")
    one = model.resolve("one")
    assert model.can_merge(model.plan([one]))
    assert not model.can_merge(model.plan([one, model.resolve("two")]))
    model.bank.memory = model.bank.bytes  # no room
    assert not model.can_merge(model.plan([one]))
    half = make("qwen3", bits=16)
    assert not half.can_merge(half.plan([half.resolve("one")]))
    model = make("qwen3")
    model.add(model.adapter("one").trainable(), trained=True)
    assert not model.can_merge(model.plan([model.resolve("one")]))


def test_merging_pays_for_a_long_run_only(make):
    model = make("qwen3")
    pieces = model.pieces(model.resolve("one"))
    sites = model.backbone.sites
    assert merging.merging_pays(sites, pieces, [4] * 100)
    assert not merging.merging_pays(sites, pieces, [])
    dense = {site: [(1.0, torch.zeros(1, 4096), torch.zeros(4096, 1))] for site in ("a", "b")}
    layers = {site: torch.nn.Linear(4096, 4096, device="meta") for site in dense}
    assert not merging.merging_pays(layers, dense, [1] * 10)
    assert merging.merging_pays(layers, dense, [1] * 10_000)


def test_a_mixed_batch_is_the_same_in_any_order(make):
    model = make("qwen3")
    adapters = ["two", None, "one", "two", "one + two"]
    got = model.generate(TEXTS, adapters=adapters, max_new_tokens=5)
    for row, (text, blend) in enumerate(zip(TEXTS, adapters, strict=True)):
        assert model.generate(text, adapters=blend, max_new_tokens=5) == [got[row]]
    several = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 4}
    both = model.generate(TEXTS, adapters=adapters, **several)
    for row, (text, blend) in enumerate(zip(TEXTS, adapters, strict=True)):
        assert model.generate(text, adapters=blend, **several) == both[2 * row : 2 * row + 2]


@pytest.mark.parametrize("kind", ["bart", "mt5", "m2m100"])
def test_an_encoder_sees_a_short_text_beside_a_long_one_as_alone(make, kind):
    """BART counts positions from the first token, padding included."""
    model = in_double(make(kind))
    prompts = model.backbone.tokenizer([TEXTS[0], TEXTS[3]])["input_ids"]
    encoder = model.backbone.base.get_encoder()
    with torch.no_grad(), model.adapted(2, ["one", "two"]):
        both = encoder(**padded(prompts, model.backbone)).last_hidden_state
    with torch.no_grad(), model.adapted(1, ["two"]):
        (alone,) = encoder(**padded(prompts[1:], model.backbone)).last_hidden_state
    torch.testing.assert_close(both[1, : len(prompts[1])], alone, atol=1e-6, rtol=1e-6)


def test_options_that_know_rows_by_number_see_them_in_order(make):
    model = make("qwen3")
    forced = model.backbone.tokenizer(["rude", "view"], add_special_tokens=False)["input_ids"]
    for adapters in (["two", "one"], ["one", "two"]):
        got = model.generate(
            TEXTS[:2], adapters=adapters, max_new_tokens=2,
            prefix_allowed_tokens_fn=lambda row, ids: forced[row],
        )  # fmt: skip
        assert got == ["rude rude", "view view"]


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_an_empty_text_is_continued_where_the_tokenizer_adds_nothing(make, kind):
    model = make(kind)
    bare = "$A"
    model.backbone.tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=bare, pair=f"{bare} $B", special_tokens=[]
    )
    assert model.backbone.tokenizer("")["input_ids"] == []
    alone = model.generate("", max_new_tokens=4)
    assert model.generate(["", TEXTS[0]], max_new_tokens=4)[0] == alone[0]


def test_max_length_counts_the_prompt(make):
    model = make("qwen3")
    size = len(model.backbone.tokenizer(TEXTS[0])["input_ids"])
    got = model.generate(TEXTS[0], adapters="one", max_length=size + 2)
    assert got == model.generate(TEXTS[0], adapters="one", max_new_tokens=2)


def test_tokens_of_a_row_may_have_blends_of_their_own(make, inputs):
    model = make("qwen3")
    tokens = inputs["input_ids"].shape[1]
    rows = [["one"] * tokens, "two", [None] * tokens, None]
    with torch.no_grad():
        got = model(**inputs, adapters=rows).logits
        want = model(**inputs, adapters=["one", "two", None, None]).logits
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        # what a causal model says up to a token depends on the blends up to it
        split = model(**inputs, adapters=[["one"] * 3 + ["two"] * (tokens - 3)] * 4).logits
        first = model(**inputs, adapters="one").logits
    torch.testing.assert_close(split[:, :3], first[:, :3], atol=1e-4, rtol=1e-4)
    assert (split[:, 3:] - first[:, 3:]).abs().max() > 1e-3
    with pytest.raises(SettingsError, match="as many as there are tokens"):
        model(**inputs, adapters=[["one"] * 2, ["one"] * 3, None, None])
    with pytest.raises(SettingsError, match="for a plan of 4 rows of 2 tokens"):
        model(**inputs, adapters=[["one", "two"]] * 4)
    with pytest.raises(SettingsError, match="not here"):
        model.generate(TEXTS[:1], adapters=[["one"]])
