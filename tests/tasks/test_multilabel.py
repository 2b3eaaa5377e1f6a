"""Multi-label classification: any number of labels a row, their loss, metrics, files and use."""

import json

import pytest
import torch
from conftest import in_double, learn_task
from helpers.recipes import run
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import adapters_hub as ah
from adapters_hub.cli import main as command
from adapters_hub.data.reading import read_data
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, HeadError, SettingsError
from adapters_hub.inference.records import collect_records
from adapters_hub.library.adapter_file import MULTI_LABEL, read_adapter
from adapters_hub.tasks.classification import Classification
from adapters_hub.tasks.declarations.classification import ClassificationOptions
from adapters_hub.training.settings import TrainingSettings

LABELS = ("clean", "quiet", "rude")
ROWS = [
    Row("the room was clean and quiet", ("clean", "quiet"), "en"),
    Row("staff rude", ("rude",), "en"),
    Row("lovely view near station", (), "en"),
    Row("房间很干净", ("clean",), "zh"),
    Row("the room was quiet, staff rude and slow", ("quiet", "rude"), "en"),
    Row("服务差", ("rude",), "zh"),
]
TEXTS = [row.text for row in ROWS]
KINDS = ("bert", "modernbert", "qwen3", "mt5")


@pytest.fixture
def load(tiny, tmp_path):
    return lambda kind: ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")


def plain(kind, tiny):
    return AutoModelForSequenceClassification.from_pretrained(
        tiny(kind), num_labels=len(LABELS), problem_type=MULTI_LABEL
    )


# ── loss and metrics ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_transformers_class(tiny, load, lora_folder, kind):
    folder = lora_folder(kind, "cls", labels=3)
    model, task = load(kind), Classification(LABELS, multi_label=True)
    model.library.add(folder, name="cls", labels=LABELS, problem_type=MULTI_LABEL)
    batch = task.collate(task.encode(ROWS, model.backbone), model.backbone)
    want = torch.tensor([[1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]])
    assert torch.equal(batch["labels"], want.float())
    peft = PeftModel.from_pretrained(plain(kind, tiny), folder).eval()
    blends = model.blends(len(ROWS), "cls")
    with torch.no_grad(), model.bank.using(model.plan(blends)):
        losses = task.loss(model, batch, model.heads(blends))
        theirs = peft(**batch)
        each = torch.nn.BCEWithLogitsLoss(reduction="none")(theirs.logits, want.float()).mean(1)
        smooth = Classification(LABELS, label_smoothing=0.2, multi_label=True)
        smoothed = smooth.loss(model, batch, model.heads(blends))
        yes, no = theirs.logits.sigmoid().log(), (-theirs.logits).sigmoid().log()
        by_hand = -torch.where(want > 0, 0.9 * yes + 0.1 * no, 0.1 * yes + 0.9 * no).mean(1)
    torch.testing.assert_close(losses, each, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses.sum() / task.count(batch).sum(), theirs.loss)
    torch.testing.assert_close(smoothed, by_hand, atol=1e-5, rtol=1e-5)
    assert losses.std() > 1e-3


def test_metrics_by_hand():
    task = Classification(("a", "b", "c", "d"), multi_label=True)
    sets = [("ab", "a"), ("b", "bc"), ("", ""), ("a", "b"), ("", "c"), ("ab", "ba")]
    records = [{"label": list(gold), "predicted": list(own)} for gold, own in sets]
    # a: gold 3, predicted 2, right 2; b: 3, 3, 2; c: 0, 2, 0; d is nowhere
    found = task.metrics(records)
    assert found == pytest.approx(
        {
            "micro_f1": 2 * 4 / (6 + 7),
            "macro_f1": (4 / 5 + 4 / 6 + 0) / 3,
            "exact_match": 2 / 6,
        }
    )
    nothing = task.metrics([{"label": [], "predicted": []}])
    assert nothing == {"micro_f1": 1.0, "macro_f1": 1.0, "exact_match": 1.0}
    assert task.metrics([{"label": [], "predicted": ["a"]}])["macro_f1"] == 0.0
    with pytest.raises(DataError, match="no rows"):
        task.metrics([])


# ── learnt, saved, loaded ────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_what_is_learnt_is_kept_in_files(tiny, load, kind, tmp_path):
    model, task = load(kind), Classification(LABELS, multi_label=True)
    examples, trained = learn_task(model, task, ROWS, steps=200)
    blend = model.resolve("hotel")
    records = collect_records(model, task, examples, lambda row: blend)
    assert [record["label"] for record in records] == [list(row.label) for row in ROWS]
    assert task.metrics(records) == {"micro_f1": 1.0, "macro_f1": 1.0, "exact_match": 1.0}
    first = model.classify(TEXTS, "hotel")
    for row, found in zip(ROWS, first, strict=True):
        assert {label for label, share in found.items() if share >= 0.5} == set(row.label)
        assert list(found.values()) == sorted(found.values(), reverse=True)

    saved = trained.save(tmp_path / "saved")
    assert "| problem type | multi_label_classification |" in (saved / "README.md").read_text()
    for source in (saved, saved / "adapter_model.safetensors"):  # a lone file is whole
        again = load(kind)
        again.library.add(source, name="hotel", replace_existing=True)
        assert again.library.get("hotel").problem_type == MULTI_LABEL
        assert again.classify(TEXTS, "hotel") == first

    batch = task.collate(examples, model.backbone)
    del batch["labels"]
    exported = model.export("hotel", tmp_path / "exported")
    assert read_adapter(exported).info.problem_type == MULTI_LABEL
    merged = model.merge("hotel")
    assert merged.config.problem_type == MULTI_LABEL
    want = [[found[label] for label in LABELS] for found in first]
    for folder in (saved, exported):
        peft = PeftModel.from_pretrained(plain(kind, tiny), folder).eval()
        with torch.no_grad():
            shares = peft(**batch).logits.sigmoid()
        torch.testing.assert_close(shares, torch.tensor(want), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        shares = merged(**batch).logits.sigmoid()
    torch.testing.assert_close(shares, torch.tensor(want), atol=1e-4, rtol=1e-4)


def test_files_without_the_field_are_of_one_label(load, lora_folder):
    model = load("bert")
    model.library.add(lora_folder("bert", "one", labels=2), name="one", labels=("no", "yes"))
    info = model.library.get("one")
    old = {key: value for key, value in info.to_json().items() if key != "problem_type"}
    assert ah.AdapterInfo.from_json(old).problem_type is None
    assert sum(model.classify("the room", "one")[0].values()) == pytest.approx(1.0)
    with pytest.raises(TypeError, match="must be text"):
        ah.AdapterInfo.from_json({**old, "problem_type": 3})
    with pytest.raises(SettingsError, match="problem_type='several': choose one of single_label"):
        model.library.add(lora_folder("bert", "two", labels=2), problem_type="several")


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_a_mixed_batch_of_both_kinds_is_its_rows_alone(load, lora_folder, kind):
    model = in_double(load(kind))
    names = ("clean", "quiet", "rude")
    model.library.add(lora_folder(kind, "any", labels=3), labels=names, problem_type=MULTI_LABEL)
    model.library.add(lora_folder(kind, "just", labels=3), labels=names)  # the same names
    model.library.add(lora_folder(kind, "two", labels=2), labels=("bad", "good"))
    model.library.add(lora_folder(kind, "delta", r=2))
    adapters = ["any", "just", "two", "any + 0.5*delta", "just", "any"]
    mixed = model.classify(TEXTS, adapters, batch_size=4)
    for text, blend, found in zip(TEXTS, adapters, mixed, strict=True):
        (alone,) = model.classify(text, blend)
        assert found == pytest.approx(alone, abs=1e-6)
        total = sum(found.values())
        assert (abs(total - 1) > 1e-3) == ("any" in blend)


def test_a_blends_weights_are_fitted_on_several_labels(load, lora_folder):
    model = load("bert")
    folder = lora_folder("bert", "any", labels=3)
    model.library.add(folder, labels=LABELS, problem_type=MULTI_LABEL)
    found = ah.fit(model, "any", ROWS, steps=3, progress=False)
    task = Classification(LABELS, multi_label=True)
    batch = task.collate(task.encode(ROWS, model.backbone), model.backbone)
    blends = model.blends(len(ROWS), "any")
    with torch.no_grad(), model.bank.using(model.plan(blends)):
        want = task.loss(model, batch, model.heads(blends)).mean().item()
    assert found.before["rows"]["loss"] == pytest.approx(want, rel=1e-5)
    assert set(found.after["rows"]) == {"loss", "micro_f1", "macro_f1", "exact_match"}
    assert found.weights["any"] != 1.0
    with pytest.raises(DataError, match="'dirty' is not one of the labels"):
        ah.fit(model, "any", [Row("x", ("dirty",))], steps=1)


# ── data ─────────────────────────────────────────────────────────────────────────────────────────


def test_lists_of_labels_are_read_and_cells_only_when_told(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "x.jsonl"
    values = [["b", "a", "b"], [], "a;b", [1, 2.5], None]
    path.write_text("".join(json.dumps({"text": "x", "label": v}) + "\n" for v in values))
    read = lambda *options: [row.label for row in read_data(path, *options)["train"]]
    assert read() == [("b", "a"), (), "a;b", ("1", "2.5"), None]
    assert read(None, ";") == [("b", "a"), (), ("a", "b"), ("1", "2.5"), None]

    path = tmp_path / "x.csv"
    path.write_text('text,kinds\nx,a\nx,"b | a"\nx,\n')
    assert read({"label": "kinds"}) == ["a", "b | a", None]
    assert read({"label": "kinds"}, "|") == [("a",), ("b", "a"), ()]

    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": ["x", "y"], "label": [["a", "b"], []]}), path)
    assert read() == [("a", "b"), ()]
    assert Row("x", "a").labels == ("a",)
    assert Row("x").labels == Row("x", ()).labels == ()


@pytest.mark.parametrize("value", [[""], [None], [["a"]], [{"a": 1}], ["\udfff"]])
def test_what_is_no_label_is_named_by_file_line_and_field(tmp_path, value):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "x"}\n' + json.dumps({"text": "x", "kinds": value}) + "\n")
    with pytest.raises(DataError, match=r"x.jsonl:2: field 'kinds': .* is no label"):
        read_data(path, {"label": "kinds"})


def test_a_separator_with_nothing_beside_it_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\nx,a;\n")
    with pytest.raises(DataError, match=r"x.csv:2: field 'label': '' in \['a', ''\] is no label"):
        read_data(path, label_separator=";")
    with pytest.raises(SettingsError, match="label_separator=''"):
        TrainingSettings(label_separator="")


def test_one_list_makes_the_task_multi_label():
    settings = TrainingSettings(task="classification", label_smoothing=0.1)
    splits = {"train": [Row("x", "a"), Row("y", ("b", "c")), Row("z", ())], "test": [Row("t", "b")]}
    task = Classification.from_rows(settings.task_options, splits, {})
    assert task == Classification(("a", "b", "c"), label_smoothing=0.1, multi_label=True)
    just = Classification.from_rows(
        settings.task_options, {"train": [Row("x", "a"), Row("y", "b")]}, {}
    )
    assert just == Classification(("a", "b"), label_smoothing=0.1)


@pytest.mark.parametrize(
    ("train", "other", "message"),
    [
        (("a", "b"), Row("x", ("a", "z"), where="d:7"), "no train row has the label 'z' of this"),
        (("a", "b"), Row("x", None, where="d:7"), "is missing, .* needs it .an empty list is none"),
        ("b", Row("x", ("a",), where="d:7"), "of this dev row is a list, and no train row's is"),
    ],
)
def test_rows_that_do_not_fit_train_are_refused(train, other, message):
    splits = {"train": [Row("x", "a", where="t:1"), Row("y", train, where="t:2")], "dev": [other]}
    with pytest.raises(DataError, match=f"d:7: field 'label':? ?{message}"):
        Classification.from_rows(ClassificationOptions(), splits, {})


def test_a_list_is_refused_where_labels_exclude_each_other(load):
    row = Row("x", ("a",), where="d:7")
    with pytest.raises(DataError, match=r"d:7: field 'label' is a list, and a row has just one"):
        Classification(("a", "b")).encode([row], load("bert").backbone)


def test_rows_without_labels_are_used_but_not_trained_on(load):
    model, task = load("bert"), Classification(LABELS, multi_label=True)
    examples = task.encode([Row("x", where="d:7"), Row("y", ())], model.backbone)
    assert "labels" not in task.collate(examples, model.backbone)
    with pytest.raises(DataError, match="d:7: field 'label' is missing"):
        task.check(examples)
    task.check(examples[1:])


def test_a_head_of_one_output_has_no_labels(load, lora_folder):
    model = load("bert")
    model.library.add(lora_folder("bert", "one", labels=1), problem_type=MULTI_LABEL)
    with pytest.raises(HeadError, match="one output"):
        model.classify("the room", "one")


# ── the recipe ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_recipe_and_the_command_from_a_separated_column(
    tiny, tmp_path, monkeypatch, capsys, fresh_accelerate
):  # fmt: skip
    texts = {row.text: ";".join(row.label) for row in ROWS}
    lines = [f'"{text}",{labels},en' for text, labels in texts.items()]
    for split in ("train", "dev", "test"):
        body = "\n".join(["text,kinds,language", *lines * (2 if split == "train" else 1)])
        (tmp_path / f"{split}.csv").write_text(body + "\n")
    library = tmp_path / "library"
    data = [tmp_path / f"{split}.csv" for split in ("train", "dev", "test")]
    folder = tmp_path / "data"
    folder.mkdir()
    for path in data:
        path.rename(folder / path.name)
    run(
        "lora_domain.py", "--backbone", tiny("bert"), "--data", folder, "--library", library,
        "--task", "classification", "--columns", "label=kinds", "--label-separator", ";",
        "--domain", "hotel", "--steps", 60, "--batch-size", 12, "--learning-rate", "1e-2", "--cpu",
        "--label-smoothing", "0.05", monkeypatch=monkeypatch, cwd=tmp_path,
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "labels: clean, quiet, rude" in out
    info = ah.Library(library).get("hotel")
    assert (info.labels, info.problem_type) == (LABELS, MULTI_LABEL)
    assert info.metrics["macro-F1, hotel"] > 0.9
    model = ah.load_backbone(str(tiny("bert")), library=library)
    found = model.classify("staff rude", "hotel")[0]
    assert found["rude"] > 0.5 > found["clean"]

    arguments = ["fit", "hotel", "--data", str(folder), "--library", str(library)]
    arguments += ["--steps", "2", "-o", str(tmp_path / "x.blend.json")]
    assert command(arguments) == 1
    assert "say which column it is: --columns label=NAME" in capsys.readouterr().err
    arguments += ["--columns", "label=kinds"]
    assert command([*arguments, "--label-separator", ";"]) == 0
    assert "exact_match" in capsys.readouterr().out
    assert command(arguments) == 1
    assert "'clean;quiet' is not one of the labels" in capsys.readouterr().err


def test_the_command_adds_a_plain_folder_as_multi_label(lora_folder, tmp_path, capsys):
    folder = lora_folder("bert", "cls", labels=3)
    arguments = ["add", str(folder), "--library", str(tmp_path), "--labels", *LABELS]
    assert command([*arguments, "--problem-type", MULTI_LABEL]) == 0
    assert ah.Library(tmp_path).get("cls").problem_type == MULTI_LABEL
