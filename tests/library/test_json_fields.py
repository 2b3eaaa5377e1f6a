"""Fields of JSON objects: read as what they must be, or refused by name."""

import math

import pytest

from adapters_hub.library.json_fields import (
    Fields,
    as_count,
    as_line,
    as_number,
    as_text,
    dict_of,
    tuple_of,
)

DATA = {"name": "de", "labels": ["a", "b"], "metrics": {"f1": 0.5, "rows": 3}, "note": None}


def test_fields_are_read_as_what_they_are():
    fields = Fields(DATA)
    assert fields.need("name", as_text) == fields.need("name", as_line) == "de"
    assert fields.get("labels", tuple_of(as_text)) == ("a", "b")
    assert fields.get("metrics", dict_of(as_number)) == {"f1": 0.5, "rows": 3}
    assert fields.get("note", as_text) is None
    assert fields.get("absent", as_text) is None


@pytest.mark.parametrize(
    ("value", "read", "said"),
    [
        (5, as_text, "x: must be text"),
        ("a\nb", as_line, "x: a text of one line holds what cannot be printed"),
        ("a\x1b[31m", as_line, "x: a text of one line holds what cannot be printed"),
        ("1", as_number, "x: not a number, or too large for one"),
        (math.inf, as_number, "x: not a number, or too large for one"),
        (math.nan, as_number, "x: not a number, or too large for one"),
        (10**400, as_number, "x: not a number, or too large for one"),
        (1.5, as_count, "x: not a count"),
        (-1, as_count, "x: not a count"),
        ("ab", tuple_of(as_text), "x: must be a list"),
        (["a", 1], tuple_of(as_text), "x: must be text"),
        (["a"], dict_of(as_text), "x: must be an object"),
        ({"f\n1": "high"}, dict_of(as_number), r"x: 'f\n1': not a number, or too large for one"),
    ],
)
def test_what_a_field_must_not_be_is_said_with_its_name(value, read, said):
    with pytest.raises(TypeError) as caught:
        Fields({"x": value}).get("x", read)
    assert str(caught.value) == said


def test_what_must_be_there_and_must_be_an_object():
    with pytest.raises(TypeError, match=r"^x is missing$"):
        Fields({"x": None}).need("x", as_text)
    with pytest.raises(TypeError, match=r"^must be an object$"):
        Fields([DATA])
