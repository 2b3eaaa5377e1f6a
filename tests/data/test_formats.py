import csv
import gzip
import importlib
import json
import sys

import pytest
from helpers.data_files import RECORDS, facts, write

from adapters_hub.data.reading import read_data
from adapters_hub.errors import DataError


def zstd():
    return importlib.import_module(
        "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    )


def test_quotes_are_text_in_tsv(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text('text\tlabel\n"Great" he said\tgood\n"never closed\tbad\nplain\tgood\n')
    rows = read_data(path)["train"]
    assert [row.text for row in rows] == ['"Great" he said', '"never closed', "plain"]
    assert [row.label for row in rows] == ["good", "bad", "good"]


def test_carriage_returns_that_are_no_accident(tmp_path):
    for name, content in (
        ("quoted.csv", b'text,label\n"two\rlines",1\nb,2\n'),
        ("windows.csv", b'text,label\r\n"two\rlines",1\r\nb,2'),
        ("old_mac.csv", b'text,label\r"two\rlines",1\rb,2\r'),
        ("old_mac.tsv", b"text\tlabel\ra\t1\rb\t2\r"),
    ):
        (tmp_path / name).write_bytes(content)
        rows = read_data(tmp_path / name)["train"]
        first = "a" if name.endswith(".tsv") else "two\rlines"
        assert [(row.text, row.label) for row in rows] == [(first, "1"), ("b", "2")], name


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_cell_may_be_a_whole_book(tmp_path, suffix):
    limit = csv.field_size_limit()
    path = tmp_path / f"x{suffix}"
    path.write_text("text\n" + "word " * 40_000 + "\n")
    assert len(read_data(path)["train"][0].text) == 200_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz", "rows.jsonl.gz", "rows.jsonl.zst"])
def test_arrays_and_compressed_files(tmp_path, name):
    text = json.dumps(RECORDS, indent=1)
    if "jsonl" in name:
        text = "\n".join(json.dumps(record) for record in RECORDS)
    data = text.encode()
    if name.endswith(".gz"):
        data = gzip.compress(data)
    if name.endswith(".zst"):
        data = zstd().compress(data[:50]) + zstd().compress(data[50:])  # in two frames
    (tmp_path / name).write_bytes(data)
    whole = write(tmp_path / "plain.jsonl", RECORDS)
    expected = facts(read_data(whole)["train"])
    assert facts(read_data(tmp_path / name)["train"]) == expected
    whole.unlink()
    assert facts(read_data(tmp_path)["train"]) == expected


def test_an_array_of_something_else_and_a_cut_file_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "one"}, 2]')
    with pytest.raises(DataError, match="item 2 of the array is 2"):
        read_data(tmp_path / "a.json")
    rows = "".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(20_000)).encode()
    for name, whole in (
        ("b.jsonl.gz", gzip.compress(rows)),
        ("c.jsonl.zst", zstd().compress(rows)),
    ):
        for damaged in (whole[:-200], b"nonsense" * 9):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(DataError, match="damaged after line"):
                read_data(tmp_path / name)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_csv_as_excel_writes_it(tmp_path, mark):
    lines = ["text", "label"], ["one, two", "good"], ["three", "bad"]
    (tmp_path / "a.csv").write_text("\n".join(mark.join(line) for line in lines))
    rows = read_data(tmp_path / "a.csv")["train"]
    assert [(row.text, row.label) for row in rows] == [("one, two", "good"), ("three", "bad")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, name, encoding):
    content = {
        "a.jsonl": '{"text": "é ไทย"}\n{"text": "b"}\n',
        "a.json": '[{"text": "é ไทย"}, {"text": "b"}]',
        "a.txt": "é ไทย\nb\n",
    }.get(name, "text\né ไทย\nb\n")
    mark = "\ufeff" if encoding == "utf-16-be" else ""  # the others write theirs
    data = (mark + content).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert [row.text for row in read_data(tmp_path / name)["train"]] == ["é ไทย", "b"]


@pytest.mark.parametrize(
    ("encoding", "command"),
    [
        ("latin-1", r"Latin-1.*iconv -f LATIN1 -t UTF-8 {path} > NEW"),
        (
            "utf-16-le",
            r"UTF-16LE without a byte order mark.*iconv -f UTF-16LE -t UTF-8 {path} > NEW",
        ),
        (
            "utf-16-be",
            r"UTF-16BE without a byte order mark.*iconv -f UTF-16BE -t UTF-8 {path} > NEW",
        ),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_other_encodings_are_named_with_the_command_that_mends_them(
    tmp_path, name, encoding, command
):
    (tmp_path / name).write_bytes('{"text": "é"}\n'.encode(encoding))
    said = command.format(path=tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: not UTF-8 text.*{said}"):
        read_data(tmp_path / name)


def test_a_cut_file_in_utf_16_is_damaged(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"text": "é"}\n'.encode("utf-16")[:-1])
    with pytest.raises(DataError, match=r"a.jsonl: damaged after line 0 .*mark says utf-16"):
        read_data(tmp_path / "a.jsonl")


def test_bytes_that_are_no_text_are_said_by_line(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n' * 30_000 + b'{"text": "\xe9"}\n')
    with pytest.raises(DataError, match=r"not UTF-8 text \(.*, after line 29\d\d\d\)"):
        read_data(tmp_path / "x.jsonl")
