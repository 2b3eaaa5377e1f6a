import json
from collections import defaultdict

import pytest
from helpers.data_files import RECORDS, facts, write

from adapters_hub.data.reading import check_languages, read_data, select, with_held_out
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".CSV", ".JSONL"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    splits = read_data(write(tmp_path / f"reviews{suffix}", RECORDS))
    assert list(splits) == ["train"]
    assert facts(splits["train"]) == [
        ("Das Zimmer war ruhig.", "good", "de", None, "None/1"),
        ('She said "no", twice', "bad", "en", None, "None/2"),
        ("两个字\tand a tab", "bad", "zh", None, "None/3"),
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_columns_are_renamed_and_the_rest_is_kept(tmp_path, suffix):
    records = [{"review": "fine", "stars": 0, "lang": "pt_br", "year": 2020, "text": "not this"}]
    columns = {"text": "review", "label": "stars", "language": "lang"}
    (row,) = read_data(write(tmp_path / f"x{suffix}", records), columns)["train"]
    assert facts([row]) == [("fine", "0", "pt-BR", None, None)]
    assert {name: str(value) for name, value in row.fields.items()} == {
        "year": "2020",
        "text": "not this",
    }


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("de.dev.jsonl", "dev"),
        ("validation-00000-of-00001.jsonl", "dev"),
        ("valid.jsonl", "dev"),
        ("val.jsonl", "dev"),
        ("reviews-test.csv", "test"),
        ("reviews_test.csv", "test"),
        ("Reviews_Dev_0.csv", "dev"),
        ("reviews.jsonl", "train"),
        ("contest.jsonl", "train"),
        ("developers.jsonl", "train"),
    ],
)
def test_the_split_is_said_by_the_name(tmp_path, name, split):
    assert list(read_data(write(tmp_path / name, RECORDS))) == [split]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("test/0.csv", "test"),
        ("hotel/my-test/part/0.csv", "test"),
        ("test/dev/0.csv", "dev"),
        ("test/train.csv", "train"),
        ("contest/0.csv", "train"),
    ],
)
def test_the_split_may_be_said_by_a_folder_below_the_root(tmp_path, name, split):
    root = tmp_path / "test"  # what the root is called says nothing
    (root / name).parent.mkdir(parents=True)
    write(root / name, RECORDS)
    assert list(read_data(root)) == [split]


def test_a_name_that_says_two_splits(tmp_path):
    path = write(tmp_path / "train_and_test.csv", RECORDS)
    with pytest.raises(DataError, match=r"train_and_test.csv: its name says test and train"):
        read_data(path)


def test_hidden_files_are_no_data(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "a"}])
    for name in (".ipynb_checkpoints/a-checkpoint.jsonl", ".a.jsonl", "b/.git/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, [{"text": "copy"}])
    assert [row.text for row in read_data(tmp_path)["train"]] == ["a"]
    hidden = tmp_path / ".hidden"
    hidden.mkdir()
    write(hidden / "a.jsonl", [{"text": "asked for"}])
    assert [row.text for row in read_data(hidden)["train"]] == ["asked for"]


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("de.jsonl", "de"),
        ("de_test.jsonl", "de"),
        ("de.train.jsonl", "de"),
        ("train.sw.jsonl", "sw"),
        ("reviews.jsonl", None),
        ("hotel.jsonl", None),
        ("train.jsonl", None),
        ("my.long.name.jsonl", None),
    ],
)
def test_the_language_may_be_said_by_the_name(tmp_path, name, language):
    records = [{"text": "a"}, {"text": "b", "language": "it"}]
    (rows,) = read_data(write(tmp_path / name, records)).values()
    assert [row.language for row in rows] == [language, "it"]


def test_a_folder_is_all_its_files(tmp_path):
    (tmp_path / "hotel").mkdir()
    write(tmp_path / "hotel" / "de.train.jsonl", [{"text": "a"}])
    write(tmp_path / "hotel" / "de.test.csv", [{"text": "b"}])
    (tmp_path / "it.train.tsv").write_text("text\nc\n")
    (tmp_path / "README.md").write_text("no data")
    splits = read_data(str(tmp_path))
    assert [(row.text, row.language) for row in splits["train"]] == [("a", "de"), ("c", "it")]
    assert [(row.text, row.language) for row in splits["test"]] == [("b", "de")]


def test_rows_know_where_they_come_from(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n\n  \n{"text": "b"}\n')
    assert [row.where for row in read_data(path)["train"]] == [f"{path}:1", f"{path}:4"]
    path = tmp_path / "x.csv"
    path.write_text('text,label\n"two\nlines",1\nnext,2\n')
    rows = read_data(path)["train"]
    assert [row.text for row in rows] == ["two\nlines", "next"]
    assert rows[1].where == f"{path}:4"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", RECORDS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_data(path)["train"][0].text == RECORDS[0]["text"]


def test_translations_of_one_item_have_one_key_per_domain(tmp_path):
    records = [
        {"text": "a", "domain": "hotel", "id": 7},
        {"text": "b", "domain": "hotel", "id": "7"},
        {"text": "c", "domain": "bank", "id": 7},
    ]
    keys = [row.key for row in read_data(write(tmp_path / "x.jsonl", records))["train"]]
    assert keys == ["hotel/7", "hotel/7", "bank/7"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", "{file}: empty"),
        ("x.jsonl", b"\n \n", "{file}: empty"),
        ("x.csv", b"", "{file}: empty"),
        ("x.csv", b"text,label\n", "{file}: empty"),
        ("x.jsonl", b'{"text": "a"}\n{"label": 1}\n',
         "{file}:2: field 'text' is missing (there: label)"),
        ("x.jsonl", b'{"text": "  "}\n', "{file}:1: field 'text' is empty"),
        ("x.jsonl", b'{"text": null}\n', "{file}:1: field 'text' is empty"),
        ("x.jsonl", b'{"text": 5}\n', "{file}:1: field 'text' is 5, not text"),
        ("x.csv", b"text,label\na,1\n,2\n", "{file}:3: field 'text' is empty"),
        ("x.csv", b"words,label\na,1\n",
         "{file}:2: field 'text' is missing (there: words, label)"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "b", "language": "hotel"}\n',
         "{file}:2: field 'language': 'hotel' is not a language"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', "{file}:2: not JSON"),
        ("x.jsonl", b'["a"]\n', "{file}:1: one JSON object a line"),
        ("x.jsonl", b"[" * 100_000, "{file}:1: not JSON"),
        ("x.jsonl", b'{"text": "caf\xe9"}\n', "{file}: not UTF-8"),
        ("x.csv", b"text\ncaf\xe9\n", "{file}: not UTF-8"),
        ("x.csv", b"text,label\nHello, world,good\n",
         "{file}:2: the header has 2 cells, this row 3: a comma in a cell needs quotes"),
        ("x.csv", b'text,label\n"two\nlines",1\nabc\n', "{file}:4: the header has 2 cells, this row 1: an empty cell needs"),
        ("x.csv", b"text,text\na,b\n", "{file}:1: the header has 'text' twice"),
        ("x.csv", b'text,label\na,1\n"b,2\nc,3\nd,4\n', "{file}:3: not CSV from here on"),
        ("x.csv", b'text,label\n"a"b,1\n', "{file}:2: not CSV"),
        ("x.tsv", b"text\tlabel\na\tb\tc\n",
         "{file}:2: the header has 2 cells, this row 3: a cell cannot hold a tab"),
        ("x.csv", b'text,label\na,1\n"b,2\nc,3\n"d,4\n', "{file}:3: not CSV from here on"),
        ("x.csv", b'text,label\na,1\n"b,2\nc,3\nd",4,5\n',
         "{file}:3: the header has 2 cells, this row 3: a comma in a cell needs quotes; the row "
         "goes on to line 5: perhaps a quote in it is not closed"),
        ("x.tsv", b"text\tlabel\na\t1\nb\rc\t2\n",
         "{file}:3: a carriage return (CR) in a cell ends this line, and the header's ends "
         "otherwise: put a blank in its place"),
        ("x.tsv", b"text\r\na\rb\r\n", "{file}:2: a carriage return (CR) in a cell"),
        ("x.csv", b"text,label\nb\rc,2\n",
         "{file}:2: a carriage return (CR) in a cell ends this line, and the header's ends "
         "otherwise: put a blank in its place, or put the cell in quotes"),
        ("x.tsv", b'text\tlabel\n"two\nlines"\t1\n',
         "{file}:2: the header has 2 cells, this row 1: an empty cell needs its separator too; a "
         "cell cannot hold a tab or a line end, since quotes are text in TSV"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "b \\ud83d"}\n',
         "{file}:2: field 'text' holds half a surrogate pair"),
        ("x.jsonl", b'{"text": "a", "label": "\\udfff"}\n', "{file}:1: field 'label' holds half"),
        ("x.jsonl", b'{"text": "a", "answer": "\\udfff"}\n', "{file}:1: field 'answer' holds half"),
        ("x.parquet", b"PAR1 no parquet", "{file}: not Parquet"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_file_line_and_field(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_data(path)
    assert str(caught.value).startswith(message.format(file=path))


def test_escaped_characters_of_json_are_text(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "fine 😀"}) + "\n")
    assert "ud83d" in path.read_text()
    assert read_data(path)["train"][0].text == "fine 😀"


def test_classes_in_a_list_have_names_too(monkeypatch):
    datasets = pytest.importorskip("datasets")
    tags = datasets.ClassLabel(names=["O", "B-PLACE"])
    features = datasets.Features(
        tokens=datasets.List(datasets.Value("string")), ner_tags=datasets.List(tags)
    )
    table = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[0, 1]]}, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, streaming: {"train": table})
    columns = {"words": "tokens", "tags": "ner_tags"}
    (read,) = read_data("owner/names", columns, fields=["tags"])["train"]
    assert (read.text, read.fields) == ("a b", {"words": ["a", "b"], "tags": ["O", "B-PLACE"]})


def test_the_classes_of_a_hub_data_set_have_names_whatever_their_column(monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        review=datasets.Value("string"), stars=datasets.ClassLabel(names=["bad", "good"])
    )
    table = datasets.Dataset.from_dict(
        {"review": ["a", "b", "c", "d"], "stars": [0, 1, -1, None]}, features=features
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name, streaming: {"validation": table})
    rows = read_data("some/set", {"text": "review", "label": "stars"})["dev"]
    assert [row.label for row in rows] == ["bad", "good", None, None]


@pytest.mark.parametrize("source", ["missing.jsonl", "./missing/folder", "no such data"])
def test_what_does_not_exist(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        read_data(source)


def test_a_folder_without_data(tmp_path):
    with pytest.raises(DataError, match=r"no \.jsonl"):
        read_data(tmp_path)


def test_select_by_language_and_domain():
    rows = [
        Row("a", language="de", domain="hotel"),
        Row("b", language="de"),
        Row("c", language="pt-BR", domain="bank"),
        Row("d"),
    ]

    def texts(**choice):
        return "".join(row.text for row in select(rows, **choice))

    assert texts() == "abcd"
    assert texts(language=["German"]) == "abd"
    assert texts(language=["pt_br"]) == "cd"
    assert texts(language=["pt"]) == "d"
    assert texts(domain=["hotel"]) == "abd"
    assert texts(language=["de", "pt-BR"], domain=["bank"]) == "bcd"
    assert texts(domain=["bank", "hotel"]) == "abcd"


def translated(items):
    languages = ("de", "en", "sw")
    return [
        Row(f"{tag} text of {item}", language=tag, key=f"hotel/{item}")
        for item in range(items)
        for tag in languages
    ]


def test_held_out_keeps_translations_together():
    rows = translated(600)
    splits = with_held_out({"train": rows}, share=0.1)
    assert sorted(row.text for part in splits.values() for row in part) == sorted(
        row.text for row in rows
    )
    sides = defaultdict(set)
    for name, part in splits.items():
        for row in part:
            sides[row.key].add(name)
    assert all(len(names) == 1 for names in sides.values())
    for name in ("dev", "test"):
        assert 0.05 < len(splits[name]) / len(rows) < 0.15


def test_held_out_puts_equal_texts_on_one_side():
    rows = [Row(f"text {n % 50}") for n in range(200)]
    splits = with_held_out({"train": rows}, share=0.2)
    texts = [{row.text for row in part} for part in splits.values()]
    assert sum(map(len, texts)) == len(set().union(*texts)) == 50


def test_held_out_does_not_depend_on_order_or_on_other_rows():
    rows = translated(100)
    one, other = with_held_out({"train": rows}), with_held_out({"train": rows[150:][::-1]})
    assert {r.text for r in other["dev"]} == {r.text for r in one["dev"]} & {
        r.text for r in rows[150:]
    }
    assert one["dev"]


def test_splits_that_the_data_bring_are_left_alone():
    given = {"train": translated(50), "test": [Row("a test")], "dev": [Row("a dev")]}
    assert with_held_out(given) == given
    cut = with_held_out({"train": translated(200), "test": [Row("a test")]})
    assert cut["test"] == [Row("a test")]
    assert cut["dev"]
    assert len(cut["dev"]) + len(cut["train"]) == 600


def test_questions_on_one_context_stay_together_in_every_language():
    """XQuAD's ids are a question's, equal in all languages; its contexts hold several questions."""
    rows = [
        Row(f"context {context} in {language}", language=language, key=f"{context}-{question}")
        for context in range(60)
        for question in range(4)
        for language in ("en", "de")
    ]
    splits = with_held_out({"train": rows}, share=0.2)
    sides = defaultdict(set)
    for name, rows in splits.items():
        assert rows
        for row in rows:
            sides[row.key.partition("-")[0]].add(name)
    assert all(len(names) == 1 for names in sides.values())
    assert len(sides) == 60


def test_joined_rows_are_cut_in_the_shares_asked_for():
    rows = [Row(f"context {n // 6}", key=str(n)) for n in range(3000)]
    splits = with_held_out({"train": rows}, share=0.1)
    for name in ("dev", "test"):
        assert 0.06 < len(splits[name]) / len(rows) < 0.14


def test_every_text_file_named_after_a_language_is_read_and_others_are_named(tmp_path, caplog):
    names = {
        "de.txt": "de", "yue.txt": "yue", "pt_BR.txt": "pt-BR", "zh-Hant.txt": "zh-Hant",
        "deu_Latn.train.txt": "de",
    }  # fmt: skip
    for name in (*names, "LICENSE.txt"):
        (tmp_path / name).write_text("a line\n")
    write(tmp_path / "new.jsonl", [{"text": "a word, not Newari"}])
    rows = read_data(tmp_path)["train"]
    tags = {row.where.rpartition("/")[2].partition(":")[0]: row.language for row in rows}
    assert tags == {**names, "new.jsonl": None}
    assert "LICENSE.txt" in caplog.text


@pytest.mark.parametrize("name", ["eval", "evaluation", "validation_matched", "VAL", "dev"])
def test_what_is_for_choosing_is_not_trained_on(tmp_path, name):
    write(tmp_path / "train.jsonl", [{"text": "one"}])
    write(tmp_path / f"{name}.jsonl", [{"text": "two"}])
    splits = read_data(tmp_path)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1, "dev": 1}


def test_texts_that_look_alike_stay_on_one_side():
    pairs = [[Row(f"caf\u00e9 {n}"), Row(f"cafe\u0301 {n}")] for n in range(200)]
    splits = with_held_out({"train": [row for pair in pairs for row in pair]})
    sides = defaultdict(set)
    for split, rows in splits.items():
        for row in rows:
            sides[row.text.rpartition(" ")[2]].add(split)
    assert all(len(side) == 1 for side in sides.values())
    assert {split for side in sides.values() for split in side} == {"train", "dev", "test"}


def test_a_language_that_no_row_is_in_is_named_with_those_that_there_are():
    rows = [Row("a", language="de"), Row("b", language="en"), Row("c")]
    check_languages(rows, ["German", "en"], "my.csv")
    message = r"my.csv: no train rows in fr, sv \(have: de, en; 1 name no language\): leave it out"
    with pytest.raises(DataError, match=message):
        check_languages(rows, ["French", "de", "sv"], "my.csv")
