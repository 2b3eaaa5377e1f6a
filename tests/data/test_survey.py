"""One pass over texts: what is held out, whatever their order, and what may be trained on then."""

import random

import pytest

from adapters_hub.data.rows import Row
from adapters_hub.data.survey import Survey
from adapters_hub.errors import DataError


def row(number, language="de", key=None, size=20, domain=None):
    return Row(f"{language} {number}".ljust(size, "."), None, language, domain, key, f"f:{number}")


def train(rows):
    return [("train", row) for row in rows]


def test_groups_are_counted():
    rows = [row(1), row(2, domain="law"), row(3, "yo"), row(4)]
    survey = Survey.of([*train(rows), ("dev", row(5)), ("test", row(6))])
    assert survey.texts == {("de", None): 2, ("de", "law"): 1, ("yo", None): 1}
    assert survey.bytes == {("de", None): 40, ("de", "law"): 20, ("yo", None): 20}
    assert {group: row.where for group, row in survey.first.items()} == {
        ("de", None): "f:1",
        ("de", "law"): "f:2",
        ("yo", None): "f:3",
    }
    assert {row.text for row in survey.first.values()} == {""}
    assert ([row(5)], [row(6)]) == (survey.dev, survey.test)


def test_what_is_held_out_does_not_depend_on_the_order():
    rows = [row(number, language) for number in range(300) for language in ("de", "yo")]
    one = Survey.of(train(rows))
    random.Random(1).shuffle(rows)
    two = Survey.of(train(rows))
    assert {r.where for r in one.dev} == {r.where for r in two.dev}
    assert {r.where for r in one.test} == {r.where for r in two.test}
    for split in (one.dev, one.test):
        assert [sum(r.language == tag for r in split) for tag in ("de", "yo")] == [30, 30]
    left = list(one.train_rows(train(rows)))
    assert len(left) == 600 - 120
    assert not {r.text for r in left} & {r.text for r in (*one.dev, *one.test)}


def test_not_more_is_held_out_than_measuring_needs():
    many = Survey.of(train(map(row, range(20_000))))
    assert (len(many.dev), len(many.test)) == (500, 500)
    long = Survey.of(train(row(number, size=10_000) for number in range(5000)))
    for split in (long.dev, long.test):
        assert 26 <= len(split) <= 28  # 256 KiB
    few = Survey.of(train(map(row, range(3))))
    assert (len(few.dev), len(few.test)) == (1, 1) or len(few.dev) == 1


def test_translations_and_twins_of_held_out_texts_are_not_trained_on():
    rows = [row(n, language, key=f"k{n}") for n in range(200) for language in ("de", "yo", "ha")]
    rows += [Row(rows[n].text, None, "de", None, f"other{n}", f"g:{n}") for n in range(0, 600, 3)]
    survey = Survey.of(train(rows))
    held = [*survey.dev, *survey.test]
    left = list(survey.train_rows(train(rows)))
    assert left
    assert not {r.key for r in left} & {r.key for r in held}
    assert not {r.text for r in left} & {r.text for r in held}


def test_rows_of_one_id_are_in_one_split():
    rows = [row(n, key=f"k{n // 2}") for n in range(400)]
    survey = Survey.of(train(rows))
    assert survey.dev
    assert survey.test
    assert not {r.key for r in survey.dev} & {r.key for r in survey.test}


def test_splits_that_the_data_bring_stay_as_they_are():
    rows = [("train", row(n)) for n in range(100)] + [("dev", row(7)), ("test", row(200))]
    survey = Survey.of(rows)
    assert ([row(7)], [row(200)]) == (survey.dev, survey.test)
    assert len(list(survey.train_rows(rows))) == 99  # without the twin of dev
    only = Survey.of([r for r in rows if r[0] != "test"])
    assert only.dev == [row(7)]
    assert len(only.test) == 10


def test_it_comes_back_from_json():
    survey = Survey.of(train(row(n, language, key=f"é{n}") for n in range(50) for language in "ab"))
    again = Survey.from_json(survey.to_json())
    assert again == survey
    assert again.dev[0].columns == survey.dev[0].columns


def test_nothing_to_train_on():
    with pytest.raises(DataError, match="no train rows"):
        Survey.of([("test", row(1))])
