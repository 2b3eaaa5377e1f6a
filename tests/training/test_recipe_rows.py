"""What the recipes make of the rows they are given: languages, labels, splits, names."""

import json

import pytest
from conftest import WORDS
from helpers.recipes import run

import adapters_hub as ah
from adapters_hub.cli import main as adapters_hub_command
from adapters_hub.errors import LibraryError


def texts_file(path, rows):
    """A file of rows, each (text, other fields); the texts are of words the tokenizer knows."""
    lines = [json.dumps({"text": text, **fields}) for text, fields in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def plain_texts(count, **fields):
    return [(" ".join([WORDS[n % 5], WORDS[n % 7], WORDS[n % 11]]), fields) for n in range(count)]


@pytest.fixture
def language(tiny, tmp_path, monkeypatch):
    """Run ``lora_language.py`` for two steps on a file of rows."""

    def start(rows, *arguments, name="texts.jsonl"):
        path = texts_file(tmp_path / name, rows)
        common = ["--backbone", tiny("qwen3"), "--data", path, "--library", "library", "--cpu"]
        common += ["--steps", 2, "--rank", 2, "--batch-size", 4, *arguments]
        run("lora_language.py", *common, monkeypatch=monkeypatch, cwd=tmp_path)
        return ah.Library(tmp_path / "library")

    return start


@pytest.mark.parametrize("flags", [[], ["--name", "mine"]])
def test_texts_that_name_no_language_are_in_the_one_asked_for(language, flags, capsys):
    library = language(plain_texts(60), "--language", "Danish", *flags)
    (info,) = library.list()
    assert (info.name, info.language) == (flags[-1] if flags else "da", "da")
    assert set(info.metrics) == {"bits per byte, bare", "bits per byte, adapted"}
    assert "| da " in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--name", "mine"]])
def test_of_several_languages_a_row_must_name_its_own(language, tmp_path, flags):
    rows = [*plain_texts(30, lang="da"), *plain_texts(30, lang="sv"), *plain_texts(1)]
    message = r"texts.jsonl:61: field 'lang' is missing, and it could be any of da, sv"
    with pytest.raises(SystemExit, match=message):
        language(rows, "--language", "da", "sv", "--columns", "language=lang", *flags)
    assert not (tmp_path / "library").exists()


def test_rows_of_an_undetermined_language_are_left_out_where_it_must_be_known(language, capsys):
    rows = [*plain_texts(30, lang="da"), *plain_texts(30, lang="sv"), *plain_texts(1, lang="und")]
    library = language(rows, "--language", "da", "sv", "--columns", "language=lang")
    assert [info.name for info in library.list()] == ["da", "sv"]
    assert "left out: 1 of " in capsys.readouterr().out


@pytest.fixture
def domain(tiny, tmp_path, monkeypatch):
    """Run ``lora_domain.py`` for two steps on texts in da and sv, and on more rows in each split."""

    def start(rows, *arguments):
        (tmp_path / "data").mkdir()
        hotel = [plain_texts(12, language=tag, domain="hotel") for tag in ("da", "sv")]
        for split in ("train", "dev", "test"):
            texts_file(tmp_path / "data" / f"{split}.jsonl", [*hotel[0], *hotel[1], *rows])
        common = ["--backbone", tiny("qwen3"), "--data", "data", "--library", "library", "--cpu"]
        common += ["--steps", 2, "--rank", 2, "--batch-size", 4, *arguments]
        run("lora_domain.py", *common, monkeypatch=monkeypatch, cwd=tmp_path)

    return start


def test_a_row_of_an_undetermined_language_is_trained_and_measured_on(domain, capsys, caplog):
    domain(plain_texts(1, language="und", domain="hotel"))
    out = capsys.readouterr().out
    assert "rows: {'train': 25, 'dev': 25, 'test': 25}" in out
    assert "| - " in out
    assert "closest" not in caplog.text


def test_a_domain_adapter_of_a_language_without_rows_is_refused(domain):
    message = r"no train rows in fr \(have: da, sv; 1 name no language\): leave it out"
    with pytest.raises(SystemExit, match=message):
        domain(plain_texts(1, domain="hotel"), "--language", "da", "fr")


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (["da"], "1 of 25 train rows name no language: taken as da"),
        (["da", "sv"], "1 of 25 train rows name no language: they fit any, and see no language"),
    ],
)
def test_rows_without_a_language_are_counted(domain, capsys, tags, said):
    domain(plain_texts(1, domain="hotel"), "--language", *tags)
    assert said in capsys.readouterr().out


def test_one_language_by_two_names_is_one_adapter(language):
    library = language(plain_texts(60, language="da"), "--language", "da", "Danish", "dan")
    assert [info.name for info in library.list()] == ["da"]


def test_a_language_without_rows_gets_no_adapter(language, tmp_path):
    with pytest.raises(SystemExit, match=r"texts.jsonl: no train rows in sv \(have: da\)"):
        language(plain_texts(60, language="da"), "--language", "da", "sv")
    assert not list(tmp_path.glob("library/*"))


def test_without_test_rows_there_is_an_adapter_and_no_table(language, capsys):
    library = language(
        plain_texts(2, language="da"), "--language", "da"
    )  # too few to hold some out
    (info,) = library.list()
    assert info.metrics == {}
    out = capsys.readouterr().out
    assert "no test rows, so there is no table" in out
    assert "| language" not in out


def test_texts_that_are_all_for_testing_cannot_train(language):
    with pytest.raises(
        SystemExit, match=r"no train rows; by the names of its files, all are for test"
    ):
        language(plain_texts(9), "--language", "da", name="my_test.jsonl")


def test_an_adapter_has_the_figures_of_its_own_language_only(language, capsys):
    rows = [*plain_texts(60, language="da"), (WORDS[0], {"language": "sv"})]
    library = language([*rows, ("rude slow", {"language": "sv"})], "--language", "da", "sv")
    assert "| sv " not in capsys.readouterr().out  # no row of it was held out
    assert library.get("da").metrics
    assert library.get("sv").metrics == {}


def test_an_adapter_is_not_trained_over_itself(language, lora_folder, tmp_path):
    ah.Library(tmp_path / "library").add(lora_folder("qwen3", "one"), name="da", language="da")
    rows = [*plain_texts(60, language="da"), *plain_texts(60, language="sv")]
    flags = ["--language", "da", "sv", "--over", "auto", "--replace"]
    message = "'da' would be trained over itself: it is the frozen adapter below rows in da"
    with pytest.raises(SystemExit, match=message):
        language(rows, *flags)
    library = language(rows, *flags, "--name", "nordic")
    assert library.get("nordic").over == ("da",)


def test_a_trained_adapter_outlives_what_fails_after_it(language, tmp_path, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("adapters_hub.evaluation.scores.metrics_by", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        language(plain_texts(60), "--language", "da")
    library = ah.Library(tmp_path / "library")
    assert library.get("da").metrics == {}
    assert not library.verify("da")


def test_a_trained_adapter_that_the_library_refuses_is_kept(language, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise LibraryError("no space left")

    monkeypatch.setattr(ah.Library, "add", full)
    with pytest.raises(
        SystemExit, match="no space left\nThe trained adapter is not lost"
    ) as caught:
        language(plain_texts(60), "--language", "da")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    command = str(caught.value).partition("adapters-hub ")[2]
    assert adapters_hub_command(command.split()) == 0
    assert ah.Library(tmp_path / "library").get("da").language == "da"


def test_a_domain_learns_from_rows_that_name_no_language(tiny, tmp_path, monkeypatch, capsys):
    texts_file(tmp_path / "texts.jsonl", plain_texts(60))
    run(
        "lora_domain.py", "--backbone", tiny("qwen3"), "--data", "texts.jsonl", "--name", "mine",
        "--library", "library", "--cpu", "--steps", 2, "--rank", 2, "--batch-size", 4,
        monkeypatch=monkeypatch, cwd=tmp_path,
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "| - " in out
    assert "not trained on" not in out
    assert ah.Library(tmp_path / "library").get("mine").metrics


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, r"field 'stars' is missing \(there: text\), and classification needs it"),
        ("mixed", "field 'stars': no train row has the label 'mixed' of this {split} row"),
    ],
)
def test_labels_are_checked_in_every_split_before_training(
    tiny, tmp_path, monkeypatch, split, label, message
):
    (tmp_path / "data").mkdir()
    for name in ("train", "dev", "test"):
        rows = [*plain_texts(4, stars="good"), *plain_texts(4, stars="bad")]
        rows += plain_texts(1, **({"stars": label} if label else {})) if name == split else []
        texts_file(tmp_path / "data" / f"{name}.jsonl", rows)
    with pytest.raises(SystemExit, match=rf"{split}.jsonl:9: {message.format(split=split)}"):
        run(
            "lora_domain.py", "--backbone", tiny("qwen3"), "--data", "data", "--library", "library",
            "--task", "classification", "--name", "mine", "--columns", "label=stars", "--cpu",
            monkeypatch=monkeypatch, cwd=tmp_path,
        )  # fmt: skip
    assert not (tmp_path / "library").exists()
