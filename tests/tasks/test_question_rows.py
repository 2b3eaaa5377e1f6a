"""Rows of questions and answers: how they are read, and what is refused, by file, line and field."""

import re

import pytest
from helpers import ROOT

import adapters_hub as ah
from adapters_hub.data.reading import read_data
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError
from adapters_hub.tasks.question_answering import QuestionAnswering, gold_spans, question_of


@pytest.fixture
def bert(tiny, tmp_path):
    return ah.load_backbone(str(tiny("bert")), library=tmp_path / "library").backbone


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "field 'question' is missing"),
        ({"question": " "}, "field 'question' is ' ', not a question"),
        ({"question": 3}, "field 'question' is 3, not a question"),
        (
            {"answers": {"text": ["rude"], "answer_start": [3]}},
            "field 'answers': 'rude' is not at character 3 of the text ('ff r' is); it is at 6",
        ),
        (
            {"answers": [{"text": "kind", "answer_start": 6}]},
            "'kind' is not at character 6 of the text ('rude' is); the text does not have it",
        ),
        (
            {"answers": {"text": ["rude"], "answer_start": []}},
            "field 'answers' needs as many 'answer_start' as 'text'",
        ),
        ({"answers": "rude"}, "field 'answers' is 'rude'; it should be"),
        ({"answers": {"text": ["rude"], "answer_start": [-1]}}, "'rude' at -1 is no text at"),
        ({"answers": {"text": [" "], "answer_start": [5]}}, "' ' at 5 is no text at"),
        ({"answer": "rude"}, "field 'answer': 'rude' at None is no text at a character"),
        ({"answer": "rude", "answer_start": "six"}, "field 'answer': 'rude' at 'six' is no text"),
    ],
)
def test_bad_rows_name_file_line_and_field(bert, fields, message):
    fields = {"question": "x", **fields} if fields else fields
    bad = Row("staff rude", where="qa.jsonl:7", fields=fields)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        QuestionAnswering().encode([bad], bert)
    assert str(caught.value).startswith("qa.jsonl:7: ")


def test_rows_without_answers_cannot_train(bert):
    task, bare = QuestionAnswering(), Row("x", where="qa.jsonl:7", fields={"question": "q"})
    with pytest.raises(DataError, match=r"qa.jsonl:7: field 'answers' is missing"):
        task.check(task.encode([bare], bert))


def test_answers_are_read_from_every_format(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"context": "staff rude", "question": "q", "answers": {"text": ["rude", "staff rude"],'
        ' "answer_start": [6, 0]}}\n'
        '{"context": "staff rude", "question": "q", "answers": {"text": [], "answer_start": []}}\n'
    )
    (tmp_path / "b.csv").write_text(
        "text,frage,answer,answer_start\nstaff rude,q,rude,6\nstaff rude,q,,\n"
    )
    rows = read_data(tmp_path / "a.jsonl")["train"]
    assert [gold_spans(r) for r in rows] == [(("rude", 6), ("staff rude", 0)), ()]
    rows = read_data(tmp_path / "b.csv", {"question": "frage"}, fields=["question"])["train"]
    assert [gold_spans(r) for r in rows] == [(("rude", 6),), ()]
    assert rows[0].fields["question"] == "q"
    assert gold_spans(Row("x")) is None


@pytest.mark.parametrize("folder", ["questions", "data/hotel"])
def test_the_sample_questions_are_sound(folder):
    splits = read_data(ROOT / "recipes" / folder)
    asked = {split: {r.key for r in rows} for split, rows in splits.items()}
    assert not asked["train"] & asked["test"] | asked["train"] & asked["dev"]
    for rows in splits.values():
        golds = [gold_spans(r) for r in rows]
        assert {r.language for r in rows} == {"da", "de", "en", "es", "fr", "ru", "uk", "zh"}
        assert all(question_of(r) for r in rows)
        assert golds.count(()) == (len(golds) / 2 if folder == "questions" else 0)
    hotel = read_data(ROOT / "recipes" / "data" / "hotel")
    texts = {r.text for rows in hotel.values() for r in rows}
    assert {r.text for rows in splits.values() for r in rows} <= texts
