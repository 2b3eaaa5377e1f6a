"""Long runs merged into a view of the model, rows brought together, blends a token."""

import pytest
import torch
from conftest import TEXTS, in_double
from tokenizers import processors
from transformers import GenerationConfig

import adapters_hub as ah
from adapters_hub.backbone.padding import padded
from adapters_hub.errors import BackboneError, SettingsError
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
    written, views, merged_view = {}, [], model.merged_view
    monkeypatch.setattr(model, "merged_view", lambda *_: views.append(merged_view(*_)) or views[-1])
    for pays in (False, True):
        monkeypatch.setattr(generation, "merging_pays", lambda *_, pays=pays: pays)
        written[pays] = model.generate(TEXTS, adapters="one - 0.5*two", **options)
        assert bool(views) == pays
    assert written[True] == written[False]
    assert written[True] != model.generate(TEXTS, **options)
    mixed = model.generate(TEXTS, adapters=["one - 0.5*two"] * 4 + [None], **options)
    assert mixed[:4] == written[True][:4]


def test_a_merged_view_shares_all_but_the_sites_and_takes_no_delta_twice(make, inputs):
    model = make("qwen3")
    blend = model.resolve("one + two")
    plan = model.plan([blend])
    view = model.merged_view(plan, blend)
    assert model.merged_view(plan, blend) is view
    of_view, shared = dict(view.named_parameters()), dict(model.backbone.model.named_parameters())
    different = {name for name in of_view if of_view[name] is not shared[name]}
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


# ── options and conversations ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["qwen3", "mt5"])
def test_stop_strings_end_each_row_where_its_text_has_one(make, kind):
    model = make(kind)
    adapters = ["one", "two", None, "one", "two"]
    whole = model.generate(TEXTS, adapters, max_new_tokens=8)
    stop = whole[0][-2:]  # one character several times over
    got = model.generate(TEXTS, adapters, max_new_tokens=8, stop_strings=stop)
    assert got[0] != whole[0]
    for before, after in zip(whole, got, strict=True):
        assert before.startswith(after)
        assert after == before or stop in after
    by_config = GenerationConfig(max_new_tokens=8, stop_strings=[stop])
    assert model.generate(TEXTS, adapters, generation_config=by_config) == got
    pieces = model.stream(TEXTS[0], "one", max_new_tokens=8, stop_strings=[stop])
    assert "".join(pieces) == got[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_dict_in_generate": True}, "texts are returned here.*model.adapted"),
        ({"output_scores": True}, "texts are returned here"),
        ({"input_ids": torch.ones(1, 2)}, "give texts, which are tokenised here"),
        ({"attention_mask": torch.ones(1, 2)}, "give texts, which are tokenised here"),
    ],
)
def test_options_whose_result_is_no_text_are_refused_with_the_way_to_it(make, options, message):
    model = make("qwen3")
    for call in (
        lambda: model.generate(TEXTS, **options),
        lambda: model.generate([], **options),
        lambda: model.stream(TEXTS[0], **options),
        lambda: model.translate(TEXTS, "en", "de", **options),
    ):
        with pytest.raises(SettingsError, match=message):
            call()
    ids = model.backbone.tokenizer(TEXTS[:1], return_tensors="pt")["input_ids"]
    with model.adapted(1, "one"):  # what the message says works
        out = model.backbone.model.generate(ids, max_new_tokens=3, return_dict_in_generate=True)
    text = model.backbone.tokenizer.decode(
        out.sequences[0, ids.shape[1] :], skip_special_tokens=True
    )
    assert model.generate(TEXTS[0], "one", max_new_tokens=3) == [text]


TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "[MASK] {{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}never{% endif %}"
)


def message(content, role="user"):
    return {"role": role, "content": content}


def test_conversations_go_through_the_chat_template(make):
    model = make("qwen3")
    tokenizer = model.backbone.tokenizer
    first = [message("the room", "system"), message("was clean")]
    second = [message("staff"), message("rude", "assistant"), message("lovely view")]
    with pytest.raises(BackboneError, match="no chat template; give plain texts"):
        model.generate([first])
    tokenizer.chat_template = TEMPLATE
    prompts = ["[MASK] system the room [MASK] user was clean never",
               "[MASK] user staff [MASK] assistant rude [MASK] user lovely view never"]  # fmt: skip
    ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    blends = [model.resolve(name) for name in ("one", "two")]
    want = generation.continuations(model, blends, ids, {"max_new_tokens": 6})
    assert model.generate([first, second], ["one", "two"], max_new_tokens=6) == want
    assert model.generate(first, "one", max_new_tokens=6) == want[:1]  # one conversation
    mixed = model.generate([TEXTS[0], tuple(second)], ["one", "two"], max_new_tokens=6)
    assert mixed == [model.generate(TEXTS[0], "one", max_new_tokens=6)[0], want[1]]
    assert "".join(model.stream(second, "two", max_new_tokens=6)) == want[1]
    (alone,) = model.generate(message("staff"), "one", max_new_tokens=6)
    assert [alone] == model.generate([[message("staff")]], "one", max_new_tokens=6)


def test_an_answer_that_was_begun_is_gone_on_with(make):
    model = make("qwen3")
    tokenizer = model.backbone.tokenizer
    tokenizer.chat_template = TEMPLATE
    begun = [message("the room"), message("was", "assistant")]
    prompt = "[MASK] user the room [MASK] assistant was"
    ids = tokenizer([prompt], add_special_tokens=False)["input_ids"]
    want = generation.continuations(model, [model.resolve("one")], ids, {"max_new_tokens": 6})
    assert model.generate(begun, "one", max_new_tokens=6) == want


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        (
            [message("hi", "robot")],
            r"text 1: the chat template of .* refuses .*\(robot\): no robots",
        ),
        ([message([{"type": "image"}])], "text 1, message 1: .*'content', both texts"),
        ([message("hi", None)], "text 1, message 1: .* should have a 'role'"),
        ([[]], "text 1: \\[\\] .list., not text"),
        ([[message("hi"), "there"]], "text 1: .* .list., not text"),
    ],
)
def test_messages_that_are_none_are_said(make, messages, error):
    model = make("qwen3")
    model.backbone.tokenizer.chat_template = TEMPLATE
    with pytest.raises(SettingsError, match=error):
        model.generate(messages, max_new_tokens=2)


def test_a_stream_is_of_one_text(make):
    model = make("qwen3")
    with pytest.raises(SettingsError, match="stream writes one text, not 2"):
        model.stream(["a", "b"])
    with pytest.raises(SettingsError, match="None, not text"):
        model.stream(None)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "gemma3"])
def test_a_short_prompt_beside_a_long_one_is_continued_as_alone(make, kind):
    """A decoder's rows are padded on the left, so that what it writes is next to each prompt."""
    model = in_double(make(kind))
    texts = ["the room was clean and quiet and lovely", "staff", "never again"]
    adapters = ["one", "two", None]
    together = model.generate(texts, adapters, max_new_tokens=6)
    for text, blend, written in zip(texts, adapters, together, strict=True):
        assert model.generate(text, blend, max_new_tokens=6) == [written]
