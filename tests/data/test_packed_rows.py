"""Documents in rows: none lost, none cut, few gaps; and back from disk."""

import random

import pytest

from adapters_hub.data.packing import PackedRows, Packer, write_rows


def packed(documents, limit):
    packer = Packer(limit)
    rows = [row for document in documents for row in packer.add(document)]
    return [*rows, *packer.rest()]


def test_each_document_is_whole_in_one_row():
    draw = random.Random(0)
    documents = [[number] * draw.randint(1, 64) for number in range(3000)]
    rows = packed(documents, 64)
    assert sorted(part for row in rows for part in row) == documents
    sizes = [sum(map(len, row)) for row in rows]
    assert max(sizes) <= 64
    assert sum(sizes) / (64 * len(rows)) > 0.95
    assert packed(documents, 64) == rows


def test_rows_come_out_while_documents_go_in():
    """So memory does not grow with the documents: a bounded number of rows is open."""
    packer = Packer(10)
    done = [row for number in range(1000) for row in packer.add([number] * 6)]
    assert len(done) == 1000 - 64
    assert len(list(packer.rest())) == 64
    assert list(packer.rest()) == []


def test_what_fits_nowhere_else_fills_a_row_alone():
    assert packed([[1] * 8, [2] * 8, [3] * 3], 8) == [[[1] * 8], [[2] * 8], [[3] * 3]]


def test_rows_come_back_from_disk(tmp_path):
    pytest.importorskip("datasets")
    rows = [(n % 3, [[n, n + 1], [70_000 + n] * (n % 5 + 1)]) for n in range(2500)]
    write_rows(tmp_path / "rows.arrow", iter(rows))
    read = PackedRows(tmp_path / "rows.arrow")
    assert len(read) == 2500
    for number in (0, 7, 999, 1000, 2499):
        group, documents = rows[number]
        ids, lengths = read[number]
        assert list(ids) == [token for part in documents for token in part]
        assert lengths == tuple(map(len, documents))
        assert read.groups[number] == group
        assert read.lengths[number] == len(ids)


def test_no_rows_are_a_file_too(tmp_path):
    pytest.importorskip("datasets")
    write_rows(tmp_path / "none.arrow", iter([]))
    assert len(PackedRows(tmp_path / "none.arrow")) == 0
