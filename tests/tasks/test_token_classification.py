"""Token classification: words and tokens, span F1, training, PEFT's own logits."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import in_double, learn_task
from helpers import ROOT
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForTokenClassification

import adapters_hub as ah
from adapters_hub.data.reading import read_data
from adapters_hub.data.rows import Row
from adapters_hub.errors import BackboneError, DataError, HeadError, SettingsError
from adapters_hub.inference.records import collect_records
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.tasks.token_classification import (
    TokenClassification,
    spans_of,
    tag_names,
    words_of,
)
from adapters_hub.text.words import split_words

TAGS = ("O", "B-PLACE", "I-PLACE", "B-STAFF")
KINDS = ("bert", "xlm-roberta", "modernbert", "qwen3", "llama", "gpt2")
HEADS = {"modernbert": ["head", "classifier"]}


def row(text, tags=None, words=None, **more):
    fields = {} if tags is None else {"words": words or split_words(text), "tags": tags.split()}
    return Row(text, where="tags.jsonl:3", fields=fields, **more)


LEARNT = [
    row("the room was clean", "O B-PLACE O O", language="en"),
    row("the lovely station room was quiet", "O O B-PLACE I-PLACE O O", language="en"),
    row("staff rude", "B-STAFF O", language="en"),
    row("房间很干净", "B-PLACE I-PLACE O O O", language="zh"),
    row("never again, slow staff", "O O O O B-STAFF", language="en"),
]


@pytest.fixture
def load(tiny, tmp_path):
    return lambda kind: ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")


@pytest.fixture
def token_folder(tiny, tmp_path):
    """(kind, name) → a PEFT folder for token classification that PEFT made."""

    def folder(kind, name, labels=4, seed=0):
        base = AutoModelForTokenClassification.from_pretrained(tiny(kind), num_labels=labels)
        config = LoraConfig(
            r=3, target_modules="all-linear", task_type="TOKEN_CLS",
            exclude_modules=["classifier", "score"], modules_to_save=HEADS.get(kind),
        )  # fmt: skip
        model = get_peft_model(base, config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(noise * 0.3)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return folder


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O O", []),
        ("B-A I-A O B-A", [("A", 0, 2), ("A", 3, 4)]),
        ("B-A B-A I-A", [("A", 0, 1), ("A", 1, 3)]),
        ("I-A I-A O I-B", [("A", 0, 2), ("B", 3, 4)]),  # one that continues nothing begins
        ("B-A I-B I-B", [("A", 0, 1), ("B", 1, 3)]),
        ("B-A-B I-A-B I-A", [("A-B", 0, 2), ("A", 2, 3)]),
        ("", []),
    ],
)
def test_spans_are_read_as_seqeval_reads_them(tags, spans):
    assert spans_of(tags.split()) == spans


def test_f1_counts_whole_spans():
    def record(tags, predicted, cut=0):
        return {"tags": tags.split(), "predicted": predicted.split(), "cut": cut}

    metrics = TokenClassification(TAGS).metrics(
        [
            record("B-PLACE I-PLACE O B-STAFF", "B-PLACE I-PLACE O O"),
            record("B-PLACE I-PLACE", "B-PLACE O", 1),  # a part of a span is not the span
            record("O O", "B-STAFF O"),
        ]
    )
    assert metrics == pytest.approx(
        {"f1": 2 / 6, "precision": 1 / 3, "recall": 1 / 3, "accuracy": 5 / 8, "words_cut_off": 1}
    )
    nothing = TokenClassification(TAGS).metrics([record("O", "O")])
    assert (nothing["f1"], nothing["accuracy"]) == (0, 1)  # as seqeval has it
    with pytest.raises(DataError, match="no rows to measure"):
        TokenClassification(TAGS).metrics([])


SEQEVAL = json.loads((Path(__file__).parent / "seqeval_scores.json").read_text(encoding="utf-8"))
MEASURES = ("f1", "precision", "recall", "accuracy")


@pytest.mark.parametrize(
    "case", SEQEVAL["cases"], ids=lambda case: ascii(f"{case['tags']}-{case['predicted']}")
)
def test_spans_and_scores_are_seqevals(case):
    tags, predicted = case["tags"].split(), case["predicted"].split()
    assert [list(span) for span in spans_of(tags)] == case["spans"]
    assert [list(span) for span in spans_of(predicted)] == case["predicted_spans"]
    record = {"tags": tags, "predicted": predicted, "cut": 0}
    metrics = TokenClassification(TAGS).metrics([record])
    assert [metrics[name] for name in MEASURES] == pytest.approx([case[n] for n in MEASURES])


def test_the_score_of_many_texts_is_seqevals():
    records = [
        {"tags": case["tags"].split(), "predicted": case["predicted"].split(), "cut": 0}
        for case in SEQEVAL["cases"]
    ]
    task = TokenClassification(TAGS)
    metrics, whole = task.metrics(records), SEQEVAL["all"]
    assert [metrics[name] for name in MEASURES] == pytest.approx([whole[n] for n in MEASURES])
    assert task.score(task.tallies(records).sum(0)) == pytest.approx(whole["f1"])


def test_both_tags_of_a_kind_are_known():
    assert tag_names(LEARNT) == ("O", "B-PLACE", "I-PLACE", "B-STAFF", "I-STAFF")
    assert tag_names([row("the room")]) == ("O",)


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_is_judged_by_a_token_of_its_own(load, kind):
    model = load(kind)
    decoder = model.backbone.kind == "decoder"
    text = "the cleaner 房间 🙂 was (slow)"
    words = ["the", "cleaner", "房间", "🙂", "was", "(", "slow", ")"]
    asked = row(text, "O O B-PLACE O O O O O", words)
    (example,) = TokenClassification(TAGS).encode([asked], model.backbone)
    assert [text[a:b] for a, b in example.target.spans] == words
    tokens = model.backbone.tokenizer.convert_ids_to_tokens(example.input_ids)
    for word, place in zip(words, example.target.places, strict=True):
        token = tokens[place].removeprefix("##")
        assert token == "[UNK]" or (word.endswith(token) if decoder else word.startswith(token))
    batch = TokenClassification(TAGS).collate([example], model.backbone)
    assert int(batch["labels"][0, example.target.places[2]]) == 1
    assert int((batch["labels"] != -100).sum()) == 8 == int(TokenClassification(TAGS).count(batch))


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_words_that_are_cut_off_count_as_outside(load, kind, token_folder):
    model = load(kind)
    model.library.add(token_folder(kind, "ner"), name="ner")
    long = row("the cleaner room " * 6, "O O B-PLACE " * 6)
    task = TokenClassification(TAGS, max_length=20)
    (example,) = task.encode([long], model.backbone)
    assert len(example.input_ids) == 20
    blend = model.resolve("ner")
    (record,) = collect_records(model, task, [example], lambda row: blend)
    missing = [n for n, place in enumerate(example.target.places) if place is None]
    assert 0 < len(missing) < 18
    assert missing == list(range(missing[0], 18))
    assert record["predicted"][missing[0] :] == ["O"] * len(missing)
    assert task.metrics([record])["words_cut_off"] == len(missing)


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_loss_is_the_sum_over_words(load, kind, token_folder):
    model = load(kind)
    model.library.add(token_folder(kind, "ner"), name="ner")
    task = TokenClassification(TAGS)
    examples = task.encode(LEARNT, model.backbone)
    batch = task.collate(examples, model.backbone)
    blends = model.blends(len(examples), "ner")
    with torch.no_grad(), model.bank.using(model.plan(blends)):
        got = task.loss(model, batch, model.heads(blends))
        logits = task.logits(model, batch, model.heads(blends))
    for number, example in enumerate(examples):
        words = example.target
        want = torch.nn.functional.cross_entropy(
            logits[number, list(words.places)], torch.tensor(words.tags), reduction="sum"
        )
        torch.testing.assert_close(got[number], want)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_tags_are_learnt_over_a_language_adapter_saved_and_loaded(
    load, kind, tmp_path, tiny, inputs, lora_folder
):
    model = load(kind)
    model.library.add(lora_folder(kind, "zh", r=2, lora_alpha=1), name="zh", language="zh")
    below = model.resolve("zh")
    over = lambda row: below if row.language == "zh" else ah.Blend()
    task = TokenClassification(TAGS)
    examples, trained = learn_task(model, task, LEARNT, steps=160, over=over)
    blend = model.resolve("hotel")
    records = collect_records(model, task, examples, lambda row: over(row) + blend)
    assert [record["predicted"] for record in records] == [record["tags"] for record in records]
    assert task.metrics(records)["f1"] == 1.0
    texts = [r.text for r in LEARNT]
    adapters = ["zh + hotel" if r.language == "zh" else "hotel" for r in LEARNT]
    found = model.tag(texts, adapters)
    assert [[(e.text, e.label) for e in own] for own in found] == [
        [("room", "PLACE")], [("station room", "PLACE")], [("staff", "STAFF")],
        [("房间", "PLACE")], [("staff", "STAFF")],
    ]  # fmt: skip
    for text, own in zip(texts, found, strict=True):
        assert all(text[e.start : e.end] == e.text and 0.5 < e.score <= 1 for e in own)

    saved = trained.save(tmp_path / "saved")
    again = load(kind)
    again.library.add(saved, name="hotel")
    assert again.adapter("hotel").info.labels == TAGS
    assert again.tag(texts, adapters) == found
    base = AutoModelForTokenClassification.from_pretrained(tiny(kind), num_labels=4)
    peft = PeftModel.from_pretrained(base, saved).eval()
    with torch.no_grad(), model.bank.using(model.plan(model.blends(4, "hotel"))):
        got = task.logits(model, inputs, model.heads(model.blends(4, "hotel")))
        torch.testing.assert_close(got, peft(**inputs).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_pefts_logits_both_ways(tiny, load, token_folder, lora_folder, inputs, tmp_path, kind):
    source = token_folder(kind, "ner")
    model = in_double(load(kind))
    model.library.add(source, name="ner")
    model.library.add(lora_folder(kind, "one", r=2), name="one")
    assert model.adapter("ner").info.task == "token-classification"
    fresh = lambda: AutoModelForTokenClassification.from_pretrained(tiny(kind), num_labels=4)

    def ours(blend):
        blends = model.blends(4, blend)
        with torch.no_grad(), model.bank.using(model.plan(blends)):
            return TokenClassification(TAGS).logits(model, inputs, model.heads(blends))

    @torch.no_grad()
    def theirs(module):
        return module.double().eval()(**inputs).logits.float()

    want = theirs(PeftModel.from_pretrained(fresh(), source))
    saved = model.adapter("ner").save(tmp_path / "saved")
    torch.testing.assert_close(ours("ner"), want, atol=1e-5, rtol=1e-5)
    back = theirs(PeftModel.from_pretrained(fresh(), saved))
    torch.testing.assert_close(back, want, atol=1e-5, rtol=1e-5)
    both = ours("ner - 0.7*one")
    exported = PeftModel.from_pretrained(fresh(), model.export("ner - 0.7*one", tmp_path / "both"))
    torch.testing.assert_close(theirs(exported), both, atol=1e-5, rtol=1e-5)
    merged = model.merge("ner - 0.7*one")
    assert type(merged) is type(fresh())
    torch.testing.assert_close(theirs(merged), both, atol=1e-4, rtol=1e-4)


def test_a_mixed_batch_is_its_rows_alone_with_their_own_tags(load, token_folder):
    model = in_double(load("bert"))
    model.library.add(token_folder("bert", "four"), name="four")
    model.library.add(token_folder("bert", "two", labels=2, seed=1), name="two")
    for name, labels in (("four", TAGS), ("two", ("B-STAFF", "I-STAFF"))):
        adapter = model.adapter(name)
        info = AdapterInfo(**{**vars(adapter.info), "labels": labels})
        model.add(type(adapter)(**{**vars(adapter), "info": info}))
    adapters = ["four", "two", "four", "0.5*two", "four"]
    texts = [r.text for r in LEARNT]
    mixed = model.tag(texts, adapters, batch_size=2)
    for text, blend, found in zip(texts, adapters, mixed, strict=True):
        (alone,) = model.tag(text, blend)
        assert [(e.label, e.start, e.end) for e in alone] == [
            (e.label, e.start, e.end) for e in found
        ]
    assert {e.label for e in mixed[1]} == {"STAFF"}
    assert model.tag([], "four") == []
    with pytest.raises(SettingsError, match="batch_size=0"):
        model.tag("a", "four", batch_size=0)


def test_a_head_or_a_backbone_that_has_none_is_refused(load, lora_folder):
    model = load("bert")
    model.library.add(lora_folder("bert", "cls", labels=2), name="cls")
    with pytest.raises(HeadError, match="'cls' was trained for classification, not for token"):
        model.tag("a", adapters="cls")
    message = "MT5ForTokenClassification of transformers is not a head around the whole MT5Model"
    with pytest.raises(BackboneError, match=message):
        TokenClassification(TAGS).encode(LEARNT, load("mt5").backbone)
    with pytest.raises(SettingsError, match="two tags or more"):
        TokenClassification(("O",))
    with pytest.raises(SettingsError, match=r"'X-A' is none of O, B-… and I-…"):
        TokenClassification(("O", "X-A"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tags": ["O"]}, "field 'words' is missing, and 'tags' is of words"),
        ({"words": "the room", "tags": ["O"]}, "field 'words' should be a list of texts"),
        ({"words": ["the", "room"], "tags": [0, 1]}, "field 'tags' should be a list of texts"),
        ({"words": ["the", "room"], "tags": ["O"]}, "field 'tags' has 1 tags for the 2 words"),
        ({"words": ["room", "the"], "tags": ["O", "O"]}, "'the' is not in the text from char"),
        ({"words": ["the"], "tags": ["X-A"]}, "field 'tags': 'X-A' is none of O, B-… and I-…"),
        ({"words": ["the"], "tags": ["B-A"]}, "field 'tags': 'B-A' is not one of the tags"),
    ],
)
def test_bad_rows_name_file_line_and_field(load, fields, message):
    bad = Row("the room", where="tags.jsonl:3", fields=fields)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        TokenClassification(TAGS).encode([bad], load("bert").backbone)
    assert str(caught.value).startswith("tags.jsonl:3: ")


def test_rows_without_tags_cannot_train_and_words_are_read(load, tmp_path):
    task, model = TokenClassification(TAGS), load("bert")
    with pytest.raises(DataError, match=r"tags.jsonl:3: field 'tags' is missing"):
        task.check(task.encode([row("the room")], model.backbone))
    path = tmp_path / "a.jsonl"
    path.write_text('{"tokens": ["the", "room"], "ner": ["O", "B-PLACE"], "lang": "en"}\n')
    (read,) = read_data(
        path, {"words": "tokens", "tags": "ner", "language": "lang"}, fields=["tags"]
    )["train"]
    assert (read.text, read.language) == ("the room", "en")
    assert words_of(read) == (((0, 3), (4, 8)), ("O", "B-PLACE"))


def test_the_sample_sentences_are_sound():
    splits = read_data(ROOT / "recipes" / "entities")
    names = {}
    for split, rows in splits.items():
        assert {r.language for r in rows} == {"da", "de", "en", "es", "fr", "ru", "uk", "zh"}
        names[split] = set()
        for read in rows:
            (spans, tags), words = words_of(read), read.fields["words"]
            assert words == split_words(read.text)
            assert [read.text[a:b] for a, b in spans] == words
            for kind, first, behind in spans_of(tags):
                if kind in ("PERSON", "PLACE"):
                    names[split].add(read.text[spans[first][0] : spans[behind - 1][1]])
    assert not names["train"] & (names["dev"] | names["test"])
    texts = [{row.text for row in rows} for rows in splits.values()]
    assert sum(map(len, texts)) == len(set().union(*texts))  # none is in two splits
    assert len(splits["train"]) == 160
