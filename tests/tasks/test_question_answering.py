"""Extractive question answering: windows, offsets, the loss, answers, and PEFT's own logits."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import in_double, learn_task
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForQuestionAnswering

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.errors import BackboneError, DataError, HeadError, SettingsError
from adapters_hub.evaluation.scores import metrics_by
from adapters_hub.inference.records import collect_records
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.tasks.question_answering import (
    QuestionAnswering,
)

KINDS = ("bert", "xlm-roberta", "modernbert", "qwen3", "llama", "gpt2")
HEADS = {"modernbert": ["head", "classifier"]}  # the others call it qa_outputs


def row(context, question="what?", answer=None, **more):
    fields = {"question": question}
    if answer is not None:
        starts = [context.index(answer)] if answer else []
        fields["answers"] = {"text": [answer] if answer else [], "answer_start": starts}
    return Row(context, where="qa.jsonl:7", fields=fields, **more)


LEARNT = [
    row("the room was clean and quiet", "room?", "clean and quiet", language="en"),
    row("the staff was rude, never again", "staff?", "rude", language="en"),
    row("房间很干净服务差", "房间?", "干净", language="zh"),
    row("lovely view near station", "view?", "near station", language="en"),
    row("the room was slow", "staff?", "", language="en"),
    row("服务差", "房间?", "", language="zh"),
]


def plain(kind, tiny):
    """transformers' own class; where it calls the body otherwise than the checkpoint, told so."""
    renamed = {r"^model\.": "transformer."} if kind in ("qwen3", "llama") else None
    return AutoModelForQuestionAnswering.from_pretrained(tiny(kind), key_mapping=renamed)


@pytest.fixture
def load(tiny, tmp_path):
    return lambda kind: ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")


@pytest.fixture
def qa_folder(tiny, tmp_path):
    """(kind, name) → a PEFT folder for question answering that PEFT made, with random numbers."""

    def folder(kind, name, seed=0):
        base = plain(kind, tiny)
        config = LoraConfig(
            r=3, target_modules="all-linear", task_type="QUESTION_ANS",
            exclude_modules=["qa_outputs"], modules_to_save=HEADS.get(kind),
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


# ── windows ──────────────────────────────────────────────────────────────────────────────────────

LONG = "the room was clean. 房间很干净! staff 🙂 rude, (slow)  never again; lovely view " * 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [0, 5, 500])
def test_windows_see_every_character_and_overlap(load, kind, stride):
    model = load(kind)
    task = QuestionAnswering(max_length=32, stride=stride)
    examples = task.encode([row(LONG)], model.backbone)
    seen, previous = set(), None
    for example in examples:
        assert len(example.input_ids) <= 32
        offsets = example.target.offsets
        for start, end in offsets:
            seen.update(range(start, end))
        if previous is not None:
            shared = len(set(previous) & set(offsets))
            assert shared == stride if stride < 500 else shared > 5
            assert offsets[0][0] <= previous[-1][1] + 2
        previous = offsets
    assert {i for i, c in enumerate(LONG) if not c.isspace()} <= seen
    assert len(examples) > 5


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_stand_for_their_characters(load, kind):
    model = load(kind)
    context = "🙂 staff rude 房间很干净! 👩‍🍳 lovely"
    (example,) = QuestionAnswering().encode([row(context, "room?")], model.backbone)
    window = example.target
    tokens = model.backbone.tokenizer.convert_ids_to_tokens(example.input_ids)
    for place, (start, end) in enumerate(window.offsets):
        token = tokens[window.first + place].removeprefix("##")
        assert token == context[start:end] or token == "[UNK]"
    assert window.null == (0 if model.backbone.kind == "encoder" else len(tokens) - 1)
    assert tokens[window.null] == ("[CLS]" if model.backbone.kind == "encoder" else "[SEP]")


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
@pytest.mark.parametrize("answer", ["干净", "rude", "🙂", "(slow)", "lovely view"])
def test_targets_are_the_answer_in_each_window_that_has_it(load, kind, answer):
    model = load(kind)
    context, at = LONG, [m.start() for m in re.finditer(re.escape(answer), LONG)][3]
    asked = Row(
        context, fields={"question": "x", "answers": [{"text": answer, "answer_start": at}]}
    )
    held = 0
    for example in QuestionAnswering(max_length=32, stride=9).encode([asked], model.backbone):
        window = example.target
        inside = window.offsets[0][0] <= at and window.offsets[-1][1] >= at + len(answer)
        first, last = window.span
        if inside:
            start, end = (window.offsets[i - window.first][j] for i, j in ((first, 0), (last, 1)))
            assert (start, context[start:end]) == (at, answer)
            held += 1
        else:
            assert (first, last) == (window.null, window.null)
    assert held >= 1


def test_a_long_question_leaves_the_context_room(load):
    model = load("bert")
    asked = row(LONG, "the staff was rude " * 40, "干净")
    examples = QuestionAnswering(max_length=40, stride=4).encode([asked], model.backbone)
    assert all(len(e.target.offsets) > 10 and len(e.input_ids) <= 40 for e in examples[:-1])
    with pytest.raises(SettingsError, match="max_length=5: must be 7 or more"):
        QuestionAnswering(max_length=5).encode([asked], model.backbone)


def test_token_types_are_those_the_tokenizer_gives(load):
    from tokenizers.processors import TemplateProcessing

    for kind in ("bert", "qwen3"):  # of which the first alone knows what to do with them
        backbone = load(kind).backbone
        backbone.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        backbone.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        task = QuestionAnswering()
        examples = task.encode([row("the room", "x"), row("the room was", "x")], backbone)
        batch = task.collate(examples, backbone)
        if kind == "bert":
            assert batch["token_type_ids"].tolist() == [
                [0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]
            ]  # fmt: skip
        else:
            assert "token_type_ids" not in batch


# ── loss and answers by the plain formulas ───────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_loss_is_the_mean_of_two_cross_entropies(load, qa_folder, kind):
    model = load(kind)
    model.library.add(qa_folder(kind, "qa"), name="qa")
    task = QuestionAnswering()
    examples = task.encode(LEARNT, model.backbone)
    batch = task.collate(examples, model.backbone)
    blends = model.blends(len(examples), "qa")
    with torch.no_grad(), model.bank.using(model.plan(blends)):
        got = task.loss(model, batch, model.heads(blends))
        (logits,) = task.shell(model.backbone)(
            model.heads(blends),
            {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids") if k in batch},
        )
    for number, example in enumerate(examples):
        window = example.target
        places = [window.null, *range(window.first, window.first + len(window.offsets))]
        places = sorted(places)
        want = torch.nn.functional.cross_entropy(
            logits[number, places].T, torch.tensor([places.index(p) for p in window.span])
        )
        torch.testing.assert_close(got[number], want)


def test_the_best_span_is_the_best_of_all(load, qa_folder):
    """Every span of two windows by the definition, against what comes out."""
    model = load("bert")
    model.library.add(qa_folder("bert", "qa"), name="qa")
    task = QuestionAnswering(max_length=30, stride=6, max_answer_tokens=4, no_answer=None)
    examples = task.encode([row(LONG[:130])], model.backbone)
    assert len(examples) > 2
    blends = model.blends(len(examples), "qa")
    batch = task.collate(examples, model.backbone)
    with torch.no_grad(), model.bank.using(model.plan(blends)):
        logits = task.logits(model, batch, model.heads(blends))
        records = task.records(model, batch, model.heads(blends), examples)
    spans, near, nulls = {}, {}, []
    for example, (starts, ends) in zip(examples, logits.mT, strict=True):
        window, own = example.target, {}
        nulls.append(float(starts[window.null] + ends[window.null]))
        for i, (start, _) in enumerate(window.offsets):
            for j in range(i, min(i + 4, len(window.offsets))):
                score = float(starts[window.first + i] + ends[window.first + j])
                own[start, window.offsets[j][1]] = score
        for place in sorted(own, key=own.get, reverse=True):
            spans[place] = max(own[place], spans.get(place, own[place]))
        for place in sorted(own, key=own.get, reverse=True)[:20]:
            near[place] = max(own[place], near.get(place, own[place]))
    best = max(spans, key=spans.get)
    found = task.best(records)
    assert (found.start, found.end) == best
    assert found.text == LONG[slice(*best)]
    assert min(record["null"] for record in records) == pytest.approx(min(nulls))
    for over, text in ((min(nulls) - spans[best] + 1e-3, found.text), (None, found.text)):
        assert QuestionAnswering(no_answer=over).best(records).text == text
    refused = QuestionAnswering(no_answer=min(nulls) - spans[best] - 1e-3).best(records)
    assert (refused.text, refused.start, refused.end) == ("", None, None)
    shares = torch.tensor([min(nulls), *near.values()]).softmax(0)
    assert found.score == pytest.approx(float(shares[1 + list(near).index(best)]), rel=1e-4)
    assert refused.score == pytest.approx(float(shares[0]), rel=1e-4)


def test_metrics_put_windows_together_and_count_by_language():
    def record(question, gold, language, null, *spans):
        spans = [[score, 0, len(text), text] for score, text in spans]
        return {
            "question": question, "gold": gold, "language": language, "null": null, "spans": spans
        }  # fmt: skip

    records = [
        record(0, ["rude"], "en", 9.0, (1.0, "slow")),
        record(1, ["干净"], "zh", 0.0, (2.0, "很干净")),
        record(0, ["rude"], "en", 2.0, (3.0, "the rude")),  # the window that decides
        record(2, [], "en", 5.0, (4.0, "slow")),
        record(3, [], "en", 3.0, (4.0, "slow")),
    ]
    metrics = QuestionAnswering().metrics(records)
    assert metrics == pytest.approx(
        {
            "exact_match": 2 / 4, "f1": (1 + 0.8 + 1 + 0) / 4, "no_answer_accuracy": 1 / 2,
            "answerable_exact_match": 1 / 2, "answerable_f1": 0.9,
        }
    )  # fmt: skip
    always = QuestionAnswering(no_answer=None).metrics(records)
    assert always["no_answer_accuracy"] == 0
    assert "no_answer_accuracy" not in QuestionAnswering().metrics(records[:3])
    assert QuestionAnswering().metrics(records[3:]).keys() == {
        "exact_match", "f1", "no_answer_accuracy"
    }  # fmt: skip
    with pytest.raises(DataError, match="no rows to measure"):
        QuestionAnswering().metrics([])


# ── a whole life ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["bert", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_a_few_rows_are_learnt_saved_and_loaded(load, kind, tmp_path, tiny):
    model = load(kind)
    task = QuestionAnswering()
    examples, trained = learn_task(model, task, LEARNT)
    blend = model.resolve("hotel")
    records = collect_records(model, task, examples, lambda row: blend)
    assert task.metrics(records)["exact_match"] == 1.0
    assert task.metrics(records)["no_answer_accuracy"] == 1.0
    assert set(metrics_by(task, examples, records, lambda row: row.language)) == {"en", "zh"}

    questions = [r.fields["question"] for r in LEARNT]
    contexts = [r.text for r in LEARNT]
    answers = model.answer(questions, contexts, adapters="hotel")
    assert [a.text for a in answers] == ["clean and quiet", "rude", "干净", "near station", "", ""]
    for context, found in zip(contexts, answers, strict=True):
        assert 0 < found.score <= 1
        if found.text:
            assert context[found.start : found.end] == found.text
        else:
            assert found.start is found.end is None
    assert all(a.text for a in model.answer(questions, contexts, "hotel", no_answer=None))

    saved = trained.save(tmp_path / "saved")
    again = load(kind)
    again.library.add(saved, name="hotel")
    assert again.adapter("hotel").info.task == "question-answering"
    assert again.answer(questions, contexts, adapters="hotel") == answers
    assert again.library.get("hotel").labels is None
    assert "pipeline_tag: question-answering" in (saved / "README.md").read_text()


@pytest.mark.slow
def test_long_contexts_give_characters_of_the_whole(load):
    model = load("bert")
    learn_task(model, QuestionAnswering(), LEARNT)
    before = "lovely view 🙂 " * 40
    (found,) = model.answer("房间?", before + "房间很干净服务差", "hotel", no_answer=None)
    alone = model.answer("房间?", "房间很干净服务差", "hotel", no_answer=None)[0]
    assert alone.text == "干净"
    assert (before + "房间很干净服务差")[found.start : found.end] == found.text


@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3"])
def test_a_mixed_batch_is_its_rows_alone(load, qa_folder, lora_folder, kind):
    model = in_double(load(kind))
    for seed, name in enumerate(("one", "two")):
        model.library.add(qa_folder(kind, name, seed), name=name)
    model.library.add(lora_folder(kind, "three", r=2), name="three")
    adapters = ["one", "two", "one + 0.5*three", "two - three", "one", "two + three"]
    questions = [r.fields["question"] for r in LEARNT]
    contexts = [r.text * (1 + 9 * (n % 2)) for n, r in enumerate(LEARNT)]
    options = {"no_answer": None, "batch_size": 4}
    mixed = model.answer(questions, contexts, adapters, **options)
    for question, context, blend, found in zip(questions, contexts, adapters, mixed, strict=True):
        (alone,) = model.answer(question, context, blend, **options)
        assert (alone.text, alone.start, alone.end) == (found.text, found.start, found.end)
        assert alone.score == pytest.approx(found.score, rel=1e-5)
    assert len({(a.start, a.end) for a in mixed}) > 1


def test_one_text_stands_for_all_rows(load, qa_folder):
    model = load("bert")
    model.library.add(qa_folder("bert", "qa"), name="qa")
    model.use("qa")
    context = "the room was clean"
    both = model.answer(["room?", "clean?"], context)
    for found, question in zip(both, ("room?", "clean?"), strict=True):
        (alone,) = model.answer(question, context)
        assert found.score == pytest.approx(alone.score, abs=1e-5)
        assert replace(found, score=0.0) == replace(alone, score=0.0)
    assert len(model.answer("room?", [context, "staff rude"])) == 2
    assert model.answer([], []) == []
    with pytest.raises(SettingsError, match="2 questions for 1 contexts"):
        model.answer(["a", "b"], ["c"])
    with pytest.raises(DataError, match="row 1: the context is empty"):
        model.answer(["a", "b"], ["c", " "])
    with pytest.raises(DataError, match="row 0: field 'question'"):
        model.answer("", "c")
    with pytest.raises(SettingsError, match="batch_size=0"):
        model.answer("a", "c", batch_size=0)


# ── PEFT ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_pefts_logits_both_ways(tiny, load, qa_folder, lora_folder, inputs, tmp_path, kind):
    source = qa_folder(kind, "qa")
    model = in_double(load(kind))
    model.library.add(source, name="qa")
    model.library.add(lora_folder(kind, "one", r=2), name="one")
    assert model.adapter("qa").info.task == "question-answering"
    fresh = lambda: plain(kind, tiny)

    def ours(blend):
        blends = model.blends(4, blend)
        with torch.no_grad(), model.bank.using(model.plan(blends)):
            (logits,) = QuestionAnswering().shell(model.backbone)(model.heads(blends), inputs)
        return logits

    @torch.no_grad()
    def theirs(module):
        out = module.double().eval()(**inputs)
        return torch.stack([out.start_logits, out.end_logits], -1).float()

    want = theirs(PeftModel.from_pretrained(fresh(), source))
    saved = model.adapter("qa").save(tmp_path / "saved")
    torch.testing.assert_close(ours("qa"), want, atol=1e-5, rtol=1e-5)
    back = theirs(PeftModel.from_pretrained(fresh(), saved))
    torch.testing.assert_close(back, want, atol=1e-5, rtol=1e-5)
    both = ours("qa - 0.7*one")
    folder = model.export("qa - 0.7*one", tmp_path / "both")
    exported = theirs(PeftModel.from_pretrained(fresh(), folder))
    torch.testing.assert_close(exported, both, atol=1e-5, rtol=1e-5)
    merged = model.merge("qa - 0.7*one")
    assert type(merged) is type(fresh())
    torch.testing.assert_close(theirs(merged), both, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_trained_over_a_frozen_language_adapter_it_loads_in_peft(
    tiny, load, lora_folder, tmp_path, inputs, kind
):
    model = load(kind)
    model.library.add(lora_folder(kind, "zh", r=2), name="zh", language="zh")
    below = model.resolve("zh")
    frozen = [t.clone() for t in model.adapter("zh").parameters()]
    over = lambda row: below if row.language == "zh" else ah.Blend()
    task = QuestionAnswering()
    examples, trained = learn_task(model, task, LEARNT, over=over, steps=240)
    for old, new in zip(frozen, model.adapter("zh").parameters(), strict=True):
        assert torch.equal(old, new)
    blend = model.resolve("hotel")
    records = collect_records(model, task, examples, lambda row: over(row) + blend)
    assert task.metrics(records)["exact_match"] == 1.0
    saved = trained.save(tmp_path / "saved")
    peft = PeftModel.from_pretrained(plain(kind, tiny), saved).eval()
    with torch.no_grad(), model.bank.using(model.plan(model.blends(4, "hotel"))):
        (got,) = task.shell(model.backbone)([(trained.head, None)], inputs)
        want = peft(**inputs)
    torch.testing.assert_close(got[..., 0], want.start_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[..., 1], want.end_logits, atol=1e-4, rtol=1e-4)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mt5", "MT5ForQuestionAnswering of transformers is not a head around the whole MT5Model"),
        ("gemma3", "no AutoModelForQuestionAnswering for gemma3_text"),
        ("m2m100", "no AutoModelForQuestionAnswering for m2m_100"),
    ],
)
def test_where_transformers_has_no_such_class_it_is_said(load, kind, message):
    with pytest.raises(BackboneError, match=message):
        QuestionAnswering().encode(LEARNT, load(kind).backbone)


def test_a_head_of_another_task_is_refused(load, lora_folder, qa_folder):
    model = load("bert")
    model.library.add(lora_folder("bert", "cls", labels=2), name="cls")
    model.library.add(qa_folder("bert", "qa"), name="qa")
    model.library.add(lora_folder("bert", "one"), name="one")
    with pytest.raises(HeadError, match="'cls' was trained for classification, not for question"):
        model.answer("a", "b", adapters="cls")
    with pytest.raises(HeadError, match="'qa' was trained for question-answering, not for class"):
        model.classify("a", adapters="qa")
    with pytest.raises(HeadError, match="2 adapters"):
        model.answer("a", "b", adapters="qa + cls")
    with pytest.raises(HeadError, match="no adapter of 'one' has a task head"):
        model.answer("a", "b", adapters="one")


def test_a_tokenizer_without_offsets_is_refused(load):
    model = load("bert")
    model.backbone.tokenizer = SimpleNamespace(is_fast=False)
    with pytest.raises(BackboneError, match="does not say where tokens are"):
        QuestionAnswering().encode(LEARNT, model.backbone)


@pytest.mark.parametrize("options", [{"stride": -1}, {"max_answer_tokens": 0}])
def test_settings_that_cannot_work_are_refused(options):
    with pytest.raises(SettingsError, match=next(iter(options))):
        QuestionAnswering(**options)


def test_a_lone_head_has_its_class(load, tmp_path):
    """`Adapter` without factors: the head of a run's first, bare column."""
    model = load("bert")
    task = QuestionAnswering()
    head = task.new_adapter(AdapterInfo(name="head", task=task.name), model.backbone, None)
    assert isinstance(head, Adapter)
    model.add(head)
    assert len(model.answer("a", "the room", adapters="head", no_answer=None)[0].text) > 0
