"""What callers give as texts: the same containers, the same results, the same errors everywhere."""

from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
from conftest import TEXTS

import adapters_hub as ah
from adapters_hub.errors import LanguageError, SettingsError

FEW = {"max_new_tokens": 3}
METHODS = {
    "classify": lambda m, texts, *a, **k: m.classify(texts, *a, **k),
    "embed": lambda m, texts, *a, **k: m.embed(texts, *a, **k).tolist(),
    "tag": lambda m, texts, *a, **k: m.tag(texts, *a, **k),
    "answer": lambda m, texts, *a, **k: m.answer("who?", texts, *a, **k),
    "generate": lambda m, texts, *a, **k: m.generate(texts, *a, **k, **FEW),
    "translate": lambda m, texts, *a, **k: m.translate(texts, "en", "de", *a, **k, **FEW),
}
CLASSES = {"classify": "SequenceClassification", "tag": "TokenClassification",
           "answer": "QuestionAnswering"}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny, lora_folder, tmp_path_factory):
    """A decoder with a head for each task, and with adapters for German and French."""
    import transformers
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("inputs")
    model = ah.load_backbone(str(tiny("qwen3")), library=folder / "library")
    types = {"classify": "SEQ_CLS", "tag": "TOKEN_CLS", "answer": "QUESTION_ANS"}
    for name, kind in CLASSES.items():
        torch.manual_seed(0)
        base = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(tiny("qwen3"))
        peft = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"],
                                               task_type=types[name]))  # fmt: skip
        peft.save_pretrained(folder / name)
        labels = {"tag": ["O", "B-X"], "classify": ["bad", "good"]}.get(name)
        model.library.add(folder / name, name=name, labels=labels)
    for language in ("de", "fr"):
        model.library.add(lora_folder("qwen3", language), language=language)
    return model


@pytest.fixture(params=METHODS)
def use(request, model):
    """A method, as (texts, …) → its results; `adapters` is what it needs of them."""
    name = request.param
    needed = name if name in CLASSES else None

    def call(texts, adapters=needed, **options):
        return METHODS[name](model, texts, adapters, **options)

    call.name, call.needed = name, needed
    return call


def same(one, two):
    return str(one) == str(two)


def test_texts_come_in_any_container(use):
    want = use(TEXTS)
    assert len(want) == len(TEXTS)
    series = pandas.Series(TEXTS, index=range(9, 9 + len(TEXTS)))
    for given in (
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        series,
        iter(TEXTS),
    ):
        assert same(use(given), want)


def test_one_text_is_a_list_of_one_and_none_gives_none(use):
    assert same(use(TEXTS[1]), use([TEXTS[1]]))
    assert len(use(TEXTS[1])) == 1
    for nothing in ([], (), np.array([]), pandas.Series([], dtype=object)):
        assert use(nothing) == []
    assert use([], []) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "None, not text; give a text"),
        (3, r"3 \(int\), not text"),
        (b"a", "decode it first"),
        ({"a", "b"}, r"\(set\), not text"),
        (torch.ones(2, 5, dtype=torch.long), r"a tensor of shape \(2, 5\).*model\(input_ids=…"),
        ({"input_ids": [[1]]}, r"\(dict\), not text; give the texts themselves.*model\(input_ids"),
        (pandas.DataFrame({"text": ["a"]}), r"give one column of it, such as table\['text'\]"),
        (np.array([["a"]]), r"\(ndarray\), not text"),
        (["a", None], "text 2: None, not text"),
        (["a", b"b"], "text 2: b'b' .bytes., not text; decode it first"),
        (["a", 3.5], "text 2: 3.5"),
        (pandas.Series(["a", None, "b"]), "text 2: "),
        (["a", ["b"]], r"text 2: \['b'\] \(list\), not text"),
        (["\ud800"], "text 1: it holds half a surrogate pair"),
    ],
)
def test_what_is_no_text_is_said(use, wrong, message):
    with pytest.raises(SettingsError, match=message):
        use(wrong)


def test_a_wrong_number_of_rows_is_one_class_of_error(use):
    with pytest.raises(SettingsError, match="1 blends in `adapters` for 2 rows"):
        use(TEXTS[:2], [use.needed])
    with pytest.raises(SettingsError, match="3 tags in `languages` for 2 rows"):
        use(TEXTS[:2], languages=["de", "en", "fr"])
    with pytest.raises(SettingsError, match="2 blends in `adapters` for 0 rows"):
        use([], [None, None])


@pytest.mark.parametrize("size", [0, -1, True, 2.5, None])
def test_a_batch_size_is_a_whole_number_from_one_on(use, size):
    if use.name == "generate":
        pytest.skip("all texts go together")
    for texts in (TEXTS, []):
        with pytest.raises(SettingsError, match=f"batch_size={size}: must be a whole number"):
            use(texts, batch_size=size)


def test_a_numpy_number_is_a_whole_number(use):
    if use.name == "generate":
        pytest.skip("all texts go together")
    assert len(use(TEXTS, batch_size=np.int64(2))) == len(TEXTS)


def test_a_row_of_an_undetermined_language_is_said(model):
    with pytest.raises(LanguageError, match="source of text 2: 'und' says that the language"):
        model.translate(TEXTS[:2], ["en", "und"], "de")
    with pytest.raises(LanguageError, match="target: 'mul' says"):
        model.translate(TEXTS[:2], "en", "mul")
    with pytest.raises(LanguageError, match="target of text 1: 'qqqq' is not a language"):
        model.translate(TEXTS[:2], "en", ["qqqq", "de"])
    with pytest.raises(SettingsError, match="source: 1 for 2 texts"):
        model.translate(TEXTS[:2], ["en"], "de")


def test_generating_with_a_row_of_an_undetermined_language_goes_on_and_says_so(model, caplog):
    texts = TEXTS[:2]
    got = model.generate(texts, None, languages=["und", "zxx"], **FEW)
    assert got == model.generate(texts, None, **FEW)
    assert "no language adapter for 'und'" in caplog.text


def test_each_row_gets_the_adapter_of_its_language(use):
    def with_head(term):
        return " + ".join(filter(None, (use.needed, term))) or None

    by_language = use(TEXTS, languages=["de", "fra", None, "und", "de-AT"])
    german, french, without = map(with_head, ("de", "fr", None))
    assert same(by_language, use(TEXTS, [german, french, without, without, german]))
    assert same(use(TEXTS, languages="de"), use(TEXTS, german))
    assert not same(by_language[:1], use(TEXTS)[:1])
    assert not same(by_language[:1], use(TEXTS, languages="fr")[:1])


def test_a_stream_and_an_encoder_take_the_language_of_their_text(model):
    written = "".join(model.stream(TEXTS[0], None, languages="de", **FEW))
    assert [written] == model.generate(TEXTS[0], "de", **FEW)
    assert [written] != model.generate(TEXTS[0], None, **FEW)
    encoded = model.encoder(None, languages="fr").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(encoded, model.embed(TEXTS, "fr"))
    assert not torch.allclose(encoded, model.embed(TEXTS, None))


# ── classify as a transformers pipeline ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("top_k", [1, 2, 5, None])
def test_top_k_has_the_form_and_numbers_of_a_transformers_pipeline(
    tiny, lora_folder, tmp_path, top_k
):
    import transformers

    model = ah.load_backbone(str(tiny("bert")), library=tmp_path / "library")
    folder = lora_folder("bert", "mood", labels=3)
    model.library.add(folder, name="mood", labels=["bad", "fair", "good"])
    plain = model.merge("mood").eval()
    plain.config.id2label = dict(enumerate(["bad", "fair", "good"]))
    theirs = transformers.TextClassificationPipeline(
        model=plain, tokenizer=model.backbone.tokenizer, device="cpu"
    )
    for texts in (TEXTS, TEXTS[0], TEXTS[:1]):
        got, want = model.classify(texts, "mood", top_k=top_k), theirs(texts, top_k=top_k)
        pairs = [(got, want)] if isinstance(texts, str) else zip(got, want, strict=True)
        for ours, pipeline in pairs:
            assert [one["label"] for one in ours] == [one["label"] for one in pipeline]
            scores = [one["score"] for one in pipeline]
            assert [one["score"] for one in ours] == pytest.approx(scores, abs=1e-4)
            assert all(set(one) == {"label", "score"} for one in ours)
    assert model.classify([], "mood", top_k=top_k) == []


@pytest.mark.parametrize("top_k", [0, -1, True, 1.5, "2"])
def test_a_top_k_is_a_whole_number_from_one_on_or_none(model, top_k):
    with pytest.raises(SettingsError, match=r"top_k=.*: must be a whole number"):
        model.classify(TEXTS, "classify", top_k=top_k)


# ── tags of scripts without spaces ───────────────────────────────────────────────────────────────


def test_words_inside_one_token_are_one_span(model):
    """The tiny tokenizer has one token for a run of Thai letters, and this head always begins."""
    adapter = model.adapter("tag")
    info = replace(adapter.info, name="begins", labels=("B-X", "B-Y"))
    model.add(replace(adapter, info=info))
    (spans,) = model.tag("กรุงเทพ the โรงแรม", "begins")
    assert [span.text for span in spans] == ["กรุงเทพ", "the", "โรงแรม"]
    assert [(span.start, span.end) for span in spans] == [(0, 7), (8, 11), (12, 18)]
