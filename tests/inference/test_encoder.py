"""An encoder in the place of a SentenceTransformer: its methods, and their evaluators on it."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TEXTS
from helpers.retrieval import PAIRS, moved, new

import adapters_hub as ah
from adapters_hub.errors import SettingsError
from adapters_hub.inference.encoder import Encoder
from adapters_hub.inference.records import collect_records
from adapters_hub.tasks.retrieval import Retrieval

PROMPTS = {"query_prompt": "the ", "document_prompt": "rude "}


@pytest.fixture
def load(tiny, tmp_path):
    return lambda kind: ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")


@pytest.fixture
def model(load):
    model = load("bert")
    model.add(moved(new(model, "finder", Retrieval(**PROMPTS))))
    return model


@pytest.fixture
def encoder(model):
    return model.encoder("finder")


def test_an_encoder_encodes(model, encoder):
    assert isinstance(encoder, Encoder)
    plain = model.embed(TEXTS, "finder")
    array = encoder.encode(TEXTS, batch_size=2, show_progress_bar=False, normalize_embeddings=True)
    assert isinstance(array, np.ndarray)
    np.testing.assert_allclose(array, plain.numpy(), atol=1e-6)
    assert encoder.encode(TEXTS[0]).shape == (32,)
    listed = encoder.encode(TEXTS, convert_to_numpy=False)
    assert [type(one) for one in listed] == [torch.Tensor] * len(TEXTS)
    query = encoder.encode_query(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(query, model.embed(TEXTS, "finder", prompt="the "))
    same = encoder.encode(TEXTS, prompt_name="query", convert_to_tensor=True)
    torch.testing.assert_close(query, same)
    document = encoder.encode_document(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(document, model.embed(TEXTS, "finder", prompt="rude "))
    other = encoder.encode_document(TEXTS, prompt="never ", convert_to_tensor=True)
    torch.testing.assert_close(other, model.embed(TEXTS, "finder", prompt="never "))
    torch.testing.assert_close(encoder.similarity(query, document), query @ document.T)
    torch.testing.assert_close(encoder.similarity(array, listed), plain @ plain.T)
    short = encoder.encode(TEXTS, truncate_dim=8, convert_to_tensor=True)
    torch.testing.assert_close(short, torch.nn.functional.normalize(plain[:, :8], dim=-1))
    first = model.encoder("finder", pooling="cls").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(first, model.embed(TEXTS, "finder", pooling="cls"))
    with pytest.raises(SettingsError, match="prompt_name='task': this blend has query, document"):
        encoder.encode(TEXTS, prompt_name="task")


def test_sentence_transformers_searches_and_evaluates_with_an_encoder(load):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.util import semantic_search

    model = load("bert")
    model.add(moved(new(model, "finder", Retrieval(query_prompt="the "))))
    encoder = model.encoder("finder")
    corpus = [row.fields["positive"] for row in PAIRS]
    queries = [row.text for row in PAIRS]
    hits = semantic_search(
        encoder.encode_query(queries, convert_to_tensor=True),
        encoder.encode_document(corpus, convert_to_tensor=True),
    )
    cosines = encoder.similarity(encoder.encode_query(queries), encoder.encode_document(corpus))
    assert [best[0]["corpus_id"] for best in hits] == cosines.argmax(1).tolist()
    evaluator = InformationRetrievalEvaluator(
        {f"{n:02}": text for n, text in enumerate(queries)},
        {f"{n:02}": text for n, text in enumerate(corpus)},
        {f"{n:02}": {f"{n:02}"} for n in range(len(queries))},
        name="pairs",
        write_csv=False,
    )
    theirs = evaluator(encoder)
    task = Retrieval(query_prompt="the ")
    rows = [replace(row, key=None) for row in PAIRS]
    records = collect_records(
        model, task, task.encode(rows, model.backbone), lambda row: model.resolve("finder")
    )
    ours = task.metrics(records)
    assert theirs["pairs_cosine_ndcg@10"] == pytest.approx(ours["ndcg@10"])
    assert theirs["pairs_cosine_accuracy@1"] == pytest.approx(ours["accuracy@1"])
    assert theirs["pairs_cosine_recall@10"] == pytest.approx(ours["recall@10"])
    assert encoder.model_card_data.metrics["pairs"] == theirs


def test_every_kind_of_texts_and_none(encoder):
    import pandas

    want = encoder.encode(TEXTS)
    series = pandas.Series(TEXTS, index=range(7, 7 + len(TEXTS)))
    for given in (
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        series,
        iter(TEXTS),
    ):
        np.testing.assert_array_equal(encoder.encode(given), want)
    np.testing.assert_array_equal(encoder.encode(sentences=TEXTS), want)
    np.testing.assert_allclose(encoder.encode(np.array(TEXTS)[0]), want[0], atol=1e-6)
    assert encoder.encode([]).shape == encoder.encode([], convert_to_tensor=True).shape == (0, 32)
    assert encoder.encode([], convert_to_numpy=False) == []
    with pytest.raises(SettingsError, match="give the texts once"):
        encoder.encode()
    with pytest.raises(SettingsError, match="inputs, text 2: None, not text"):
        encoder.encode(["a", None])


def test_dimensions_are_cut_in_a_call_or_for_good(encoder):
    whole = torch.from_numpy(encoder.encode(TEXTS))
    cut = torch.nn.functional.normalize(whole[:, :8], dim=-1).numpy()
    np.testing.assert_allclose(encoder.encode(TEXTS, truncate_dim=8), cut, atol=1e-6)
    raw = encoder.encode(TEXTS, truncate_dim=8, normalize_embeddings=False)
    np.testing.assert_allclose(raw, whole[:, :8], atol=1e-6)
    with encoder.truncate_embeddings(8):
        np.testing.assert_allclose(encoder.encode(TEXTS), cut, atol=1e-6)
        assert encoder.get_embedding_dimension() == encoder.get_sentence_embedding_dimension() == 8
    assert encoder.get_sentence_embedding_dimension() == 32
    with pytest.raises(SettingsError, match="truncate_dim=0"):
        encoder.encode(TEXTS, truncate_dim=0)


def test_texts_are_cut_at_the_length_that_is_set(encoder):
    assert encoder.max_seq_length == encoder.model.backbone.max_tokens
    whole = encoder.encode("the room was clean")
    encoder.max_seq_length = 4  # with both special tokens
    assert encoder.max_seq_length == 4
    short = encoder.encode("the room was clean")
    np.testing.assert_allclose(short, encoder.encode("the room"), atol=1e-6)
    encoder.max_seq_length = None
    np.testing.assert_allclose(encoder.encode("the room was clean"), whole, atol=1e-6)
    assert np.abs(whole - short).max() > 1e-3
    encoder.max_seq_length = 10**6
    assert encoder.max_seq_length == encoder.model.backbone.max_tokens
    with pytest.raises(SettingsError, match="max_length=2: must be 3 or more"):
        encoder.max_seq_length = 2


def test_similarities_are_the_plain_formulas(encoder):
    one, two = torch.randn(3, 5), torch.randn(4, 5)
    distance = (one[:, None] - two).abs()
    want = {
        "cosine": torch.cosine_similarity(one[:, None], two, dim=-1),
        "dot": (one[:, None] * two).sum(-1),
        "euclidean": -distance.square().sum(-1).sqrt(),
        "manhattan": -distance.sum(-1),
    }
    for name, matrix in want.items():
        encoder.similarity_fn_name = name
        torch.testing.assert_close(encoder.similarity(one, two.numpy()), matrix)
        pairs = encoder.similarity_pairwise(list(one), two[:3].numpy())
        torch.testing.assert_close(pairs, matrix.diagonal())
        torch.testing.assert_close(encoder.similarity(one[0], two), matrix[:1])
    with pytest.raises(SettingsError, match="choose one of cosine, dot, euclidean, manhattan"):
        encoder.similarity_fn_name = "maxsim"
    with pytest.raises(SettingsError, match="of 5 and of 4 dimensions"):
        encoder.similarity(one, two[:, :4])
    with pytest.raises(SettingsError, match="3 embeddings beside 4"):
        encoder.similarity_pairwise(one, two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_value": "token_embeddings"}, "only 'sentence_embedding'"),
        ({"precision": "int8"}, "quantize_embeddings"),
        ({"pool": {"processes": []}}, "in one process"),
        ({"device": "meta"}, "the model is on cpu"),
        ({"device": ["cpu", "cpu"]}, "the model is on cpu"),
        ({"batch_size": 0}, "batch_size=0: must be a whole number"),
        ({"prompt_name": "task"}, "this blend has query, document"),
    ],
)
def test_what_is_not_done_is_said(encoder, options, message):
    for method in (encoder.encode, encoder.encode_query, encoder.encode_document):
        with pytest.raises(SettingsError, match=message):
            method(TEXTS, **options)


def test_what_a_sentence_transformer_takes_is_taken(model, encoder):
    want = encoder.encode(TEXTS)
    got = encoder.encode(
        TEXTS, None, None, 2, False, "sentence_embedding", "float32", True, False, "cpu", True
    )
    np.testing.assert_allclose(got, want, atol=1e-6)
    options = {"device": torch.device("cpu"), "chunk_size": 5, "task": "query", "precision": None}
    np.testing.assert_allclose(encoder.encode(TEXTS, **options), want, atol=1e-6)
    assert encoder.eval() is encoder
    assert encoder.tokenizer is model.backbone.tokenizer
    assert encoder.device == model.backbone.device
    encoder.default_prompt_name = "query"
    np.testing.assert_allclose(encoder.encode(TEXTS), encoder.encode(TEXTS, prompt="the "))
    np.testing.assert_allclose(encoder.encode(TEXTS, prompt=""), want, atol=1e-6)
    encoder.prompts["query"] = "changed "
    assert model.adapter("finder").info.prompts["query"] == "the "


def test_arguments_have_sentence_transformers_names_and_order():
    theirs = pytest.importorskip("sentence_transformers").SentenceTransformer
    for method in ("encode", "encode_query", "encode_document"):
        wanted = [*inspect.signature(getattr(theirs, method)).parameters.values()]
        wanted = [p.name for p in wanted if p.kind is p.POSITIONAL_OR_KEYWORD]
        taken = [*inspect.signature(getattr(Encoder, method)).parameters]
        named = len(wanted) if method == "encode" else 4  # the others hand the rest to encode
        assert taken[:named] == wanted[:named]
    for name in (
        "similarity", "similarity_pairwise", "similarity_fn_name", "get_embedding_dimension",
        "get_sentence_embedding_dimension", "get_max_seq_length", "max_seq_length", "tokenizer",
        "device", "truncate_embeddings", "truncate_sentence_embeddings", "eval",
    ):  # fmt: skip
        assert hasattr(theirs, name)
        assert hasattr(Encoder, name)


@pytest.fixture
def theirs(model, encoder, tmp_path):
    """A SentenceTransformer with the same adapter, prompts and pooling."""
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    from sentence_transformers import SentenceTransformer

    body = modules.Transformer(str(model.backbone.folder))
    parts = [body, modules.Pooling(32, encoder.pooling), modules.Normalize()]
    made = SentenceTransformer(modules=parts, device="cpu", prompts=dict(encoder.prompts))
    made.load_adapter(str(model.adapter("finder").save(tmp_path / "finder")))
    return made


def evaluators(encoder):
    """Each evaluator of sentence-transformers that takes texts; its options are those it has."""
    from sentence_transformers.sentence_transformer import evaluation as e

    queries, corpus = [row.text for row in PAIRS], [row.fields["positive"] for row in PAIRS]
    wrong, numbers = corpus[1:] + corpus[:1], [str(number) for number in range(len(PAIRS))]
    right = {number: {number} for number in numbers}
    samples = [
        {"query": q, "positive": [p], "negative": [n]}
        for q, p, n in zip(queries, corpus, wrong, strict=True)
    ]
    scores = [number / len(PAIRS) for number in range(len(PAIRS))]
    labels = [number % 2 for number in range(len(PAIRS))]
    ranked = (dict(zip(numbers, texts, strict=True)) for texts in (queries, corpus))
    plain = {"write_csv": False}
    return [
        e.InformationRetrievalEvaluator(*ranked, right, truncate_dim=16, **plain),
        e.EmbeddingSimilarityEvaluator(queries, corpus, scores, **plain),
        e.EmbeddingSimilarityEvaluator(
            queries, corpus, scores, similarity_fn_names=["cosine", "dot", "manhattan"], **plain
        ),
        e.TripletEvaluator(queries, corpus, wrong, **plain),
        e.BinaryClassificationEvaluator(queries, corpus, labels, **plain),
        e.TranslationEvaluator(queries, corpus, **plain),
        e.RerankingEvaluator(samples, **plain),
        e.ParaphraseMiningEvaluator(
            dict(zip(numbers, queries, strict=True)), [("0", "1"), ("2", "3")], **plain
        ),
        e.MSEEvaluator(queries, corpus, teacher_model=encoder, **plain),
    ]


def test_evaluators_measure_what_they_measure_on_a_sentence_transformer(encoder, theirs):
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)
    for evaluator in evaluators(encoder):
        ours = evaluator(encoder)
        assert ours == pytest.approx(evaluator(theirs), abs=1e-4), type(evaluator).__name__
        kept = encoder.model_card_data.metrics.values()
        assert any(ours == pytest.approx(metrics) for metrics in kept)


def test_sentence_transformers_own_searches_run_on_an_encoder(encoder, theirs):
    from sentence_transformers import util

    texts = [row.fields["positive"] for row in PAIRS]
    got, want = (util.paraphrase_mining(one, texts, top_k=3) for one in (encoder, theirs))
    assert [pair[1:] for pair in got] == [pair[1:] for pair in want]
    cosines = util.cos_sim(encoder.encode(texts), encoder.encode(texts))
    torch.testing.assert_close(encoder.similarity(*[encoder.encode(texts)] * 2), cosines)
