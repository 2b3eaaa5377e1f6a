import json
import math

import pytest
from helpers.data_files import RECORDS, write

from adapters_hub.data.reading import read_data
from adapters_hub.errors import DataError


def test_unknown_names_of_columns(tmp_path):
    with pytest.raises(DataError, match=r"columns: \['txt'\] is none of text, label"):
        read_data(write(tmp_path / "x.jsonl", RECORDS), {"txt": "review"})


def test_the_message_names_the_column_as_the_file_does(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"review": "a", "lang": "hotel"}])
    with pytest.raises(DataError, match="field 'body' is missing"):
        read_data(path, {"text": "body"})
    with pytest.raises(DataError, match="field 'lang': 'hotel' is not a language"):
        read_data(path, {"text": "review", "language": "lang"})


def test_nan_is_no_value(tmp_path):
    """Data frames write it where a cell is empty; "nan" is also a language, Min Nan."""
    file = tmp_path / "x.jsonl"
    empty = dict.fromkeys(("label", "language", "domain", "id"), math.nan)
    file.write_text("".join(json.dumps({"text": f"a {n}", **empty}) + "\n" for n in range(3)))
    for row in read_data(file)["train"]:
        assert (row.label, row.language, row.domain, row.key) == (None, None, None, None)


@pytest.mark.parametrize("label", ['{"a": 1}', '["a", NaN]', "[[1]]"])
def test_what_is_no_label_is_refused(tmp_path, label):
    (tmp_path / "x.jsonl").write_text(f'{{"text": "a", "label": {label}}}\n')
    with pytest.raises(DataError, match=r"x\.jsonl:1: field 'label': .* is no label"):
        read_data(tmp_path / "x.jsonl")


def test_labels_that_look_alike_are_one(tmp_path):
    labels = ["caf\u00e9", "cafe\u0301", "pos", "pos ", "\u200bpos", "\ufeffpos"]
    write(
        tmp_path / "a.csv", [{"text": f"row {n}", "label": label} for n, label in enumerate(labels)]
    )
    assert [row.label for row in read_data(tmp_path / "a.csv")["train"]] == [
        "caf\u00e9", "caf\u00e9", "pos", "pos", "pos", "pos",
    ]  # fmt: skip
    write(tmp_path / "b.jsonl", [{"text": "x", "label": ["pos ", "\u200bpos", "neg"]}])
    assert read_data(tmp_path / "b.jsonl")["train"][0].label == ("pos", "neg")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"stars": "label"}, r"\['stars'\] is none of text, .*:2 has the columns review, stars, "
         r"lang: write --columns label=stars$"),
        ({"text": "review", "txt": "stars"}, r"\['txt'\] is none of .*the columns review, stars, "
         r"lang: write --columns FIELD=NAME$"),
        ({}, r":2: field 'text' is missing \(there: review, stars, lang\); say which column it is: "
         r"--columns text=NAME$"),
        ({"text": "body"}, r":2: field 'body' is missing \(there: .*\); name one of these: "
         r"--columns text=NAME$"),
        ({"text": "review", "label": "star"}, r"rows.csv: field 'star' is missing \(there: review, "
         r"stars, lang\); name one of these: --columns label=NAME$"),
        ({"text": "review", "answer": "reply"}, r"rows.csv: field 'reply' is missing"),
    ],
)  # fmt: skip
def test_columns_that_are_not_there_are_named_with_the_flag_to_type(tmp_path, columns, message):
    file = write(tmp_path / "rows.csv", [{"review": "good", "stars": 1, "lang": "de"}])
    with pytest.raises(DataError, match=message):
        read_data(file, columns, fields=["answer"])


@pytest.mark.parametrize("swapped", [{"text": "label"}, {"text": "notes", "domain": "label"}])
def test_the_two_sides_of_a_column_may_be_swapped(tmp_path, swapped):
    records = [{"text": "good", "notes": "a", "domain": "good"}]
    field = "text" if swapped["text"] == "label" else "domain"
    with pytest.raises(
        DataError, match=rf"sides of {field}=label swapped.*--columns label={field}$"
    ):
        read_data(write(tmp_path / "rows.jsonl", records), swapped)


def test_a_column_that_only_some_files_have_is_no_mistake(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b", "stars": 2}])
    write(tmp_path / "b.jsonl", [{"text": "c"}])
    rows = read_data(tmp_path, {"label": "stars"})["train"]
    assert [row.label for row in rows] == [None, "2", None]
    assert rows[0].columns.lacking("label") == "field 'stars' is missing (there: text)"


def test_an_empty_cell_is_no_missing_column(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na,\n")
    (row,) = read_data(tmp_path / "rows.csv")["train"]
    assert row.columns.lacking("label") == "field 'label' is empty"
    assert row.columns.lacking("words", ", and tags need it") == (
        "field 'words' is missing (there: text, label), and tags need it; say which column it is: "
        "--columns words=NAME"
    )


@pytest.mark.parametrize("tag", ["und", "UND", "mul", "zxx", "und-Latn", "mis_Cyrl"])
def test_an_undetermined_language_is_none(tmp_path, tag):
    (tmp_path / "de.jsonl").write_text(
        json.dumps({"text": "a", "language": tag}) + '\n{"text": "b"}\n'
    )
    assert [row.language for row in read_data(tmp_path)["train"]] == [None, "de"]
