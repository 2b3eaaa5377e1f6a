"""Augmentation in training: the same draws whatever is cut how, train rows alone, and errors."""

import pytest
import torch
from accelerate import Accelerator
from conftest import TEXTS, VOCABULARY
from helpers.augmenting import load, of, rows_of, write_dictionary, write_translations
from helpers.recipes import launch
from helpers.tokenizers import unigram
from helpers.training import assert_same
from peft import LoraConfig
from safetensors.torch import load_file

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.tasks.registry import task_class
from adapters_hub.training.augmentation import augmenter_of
from adapters_hub.training.loop import train_adapters
from adapters_hub.training.run import Experiment
from adapters_hub.training.settings import Resolved

BATCHES = [[0, 3, 5, 7], [1, 2, 4, 6], [8, 9, 10, 11], [0, 2, 4, 8], [1, 3, 9, 11], [5, 6, 7, 10]]
ALL = {"subword": 0.3, "span": 0.2, "codeswitch": 0.5, "mixup": 0.4}


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def dictionary(tmp_path):
    return write_dictionary(tmp_path)


@pytest.fixture
def translations(tmp_path):
    return write_translations(tmp_path)


@pytest.fixture
def with_unigram(tiny, tmp_path):
    """The folder of a tiny backbone, with a tokenizer like XLM-R's."""

    def folder(kind):
        model = ah.load_backbone(str(tiny(kind))).backbone.model
        path = tmp_path / f"unigram-{kind}"
        model.save_pretrained(path)
        tokenizer = unigram([*TEXTS, *map(str, range(12))], most=VOCABULARY)
        tokenizer.save_pretrained(path)
        return path

    return folder


def fit(model, task_name, accelerator, values, names=("a",), batches=BATCHES, owners=None, **more):
    """Train adapters on the rows of a task, with the augmentation of the settings."""
    rows = rows_of(task_name)
    kind = task_class(task_name)
    task = kind.from_rows(values.task_options, {"train": rows, "dev": [], "test": []}, {})
    augmenter = augmenter_of(values, task, model.backbone, rows)
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
    adapters = [
        task.new_adapter(
            AdapterInfo(name=name, labels=task.labels, task=task.name),
            model.backbone, config, seed=sum(map(ord, name)),
        )
        for name in names
    ]  # fmt: skip
    return train_adapters(
        model, task, adapters, task.encode(rows, model.backbone), owners or [0] * len(rows),
        batches, values, accelerator, augmenter=augmenter, **more,
    )  # fmt: skip


# ── what must not change a draw ──────────────────────────────────────────────────────────────────


def test_off_is_bit_equal_and_asks_for_nothing(tiny, tmp_path, accelerator):
    model = load(tiny("bert"), tmp_path)
    values = of("classification")
    assert augmenter_of(values, None, model.backbone, rows_of("classification")) is None
    (off,), progress = fit(model, "classification", accelerator, values)
    (again,), _ = fit(model, "classification", accelerator, values)
    assert_same(off, again, atol=0, rtol=0)
    assert progress.augmented == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "kind", "augment"),
    [
        ("classification", "bert", ALL),
        ("classification", "qwen3", ALL),
        ("language-modeling", "qwen3", {"subword": 0.3, "codeswitch": 0.5}),
        ("retrieval", "bert", {"subword": 0.3, "span": 0.3, "codeswitch": 0.5}),
    ],
)
def test_accumulation_changes_nothing(task, kind, augment, tiny, tmp_path, accelerator, dictionary):
    model = load(tiny(kind), tmp_path)
    values = of(task, augment=augment, augment_data=dictionary)
    (whole,), progress = fit(model, task, accelerator, values)
    (cut,), of_cut = fit(model, task, accelerator, values.changed(accumulation=3))
    assert_same(whole, cut, atol=5e-4 if task == "retrieval" else 2e-5)  # whose loss is sharp
    assert progress.augmented == of_cut.augmented
    assert progress.augmented["rows"] == 24
    assert all(progress.augmented[f"{name} rows"] > 0 for name in augment)
    (plain,), _ = fit(model, task, accelerator, of(task))
    apart = [
        (a - b).abs().max() for a, b in zip(plain.parameters(), whole.parameters(), strict=True)
    ]
    assert max(apart) > 1e-3


@pytest.mark.slow
def test_adapters_trained_together_equal_those_trained_alone(
    tiny, tmp_path, accelerator, dictionary
):
    model = load(tiny("bert"), tmp_path)
    values = of("classification", augment=ALL, augment_data=dictionary)
    owners = [n % 2 for n in range(12)]
    together, _ = fit(
        model, "classification", accelerator, values, ("first", "second"), owners=owners
    )
    for number, (name, adapter) in enumerate(zip(("first", "second"), together, strict=True)):
        mine = [[i for i in batch if owners[i] == number] for batch in BATCHES]
        (alone,), _ = fit(model, "classification", accelerator, values, (name,), batches=mine)
        assert_same(adapter, alone)


@pytest.mark.parametrize("at", [2, 4])
def test_a_run_that_was_resumed_lands_in_the_same_place(
    at, tiny, tmp_path, accelerator, dictionary, monkeypatch
):
    model = load(tiny("qwen3"), tmp_path)
    values = of("classification", augment=ALL, augment_data=dictionary, save_every=at)
    (whole,), _ = fit(model, "classification", accelerator, values)
    folder, steps = tmp_path / "run", []

    def stop(*_, **__):
        steps.append(1)
        if len(steps) == at + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(accelerator, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(model, "classification", accelerator, values, folder=folder)
    (resumed,), progress = fit(model, "classification", accelerator, values, folder=folder)
    assert_same(whole, resumed, atol=0, rtol=0)
    assert progress.augmented["rows"] == 4 * (len(BATCHES) - at)


def test_a_checkpoint_is_of_one_dictionary(tiny, tmp_path, accelerator, dictionary, monkeypatch):
    model = load(tiny("qwen3"), tmp_path)
    values = of(
        "classification", augment={"codeswitch": 0.5}, augment_data=dictionary, save_every=1
    )

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "wait_for_everyone", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(model, "classification", accelerator, values, folder=tmp_path / "run")
    with open(dictionary, "a", encoding="utf-8") as file:
        file.write("never\tjamais\tfr\n")
    with pytest.raises(SettingsError, match=r"other settings or data .*augmentation"):
        fit(model, "classification", accelerator, values, folder=tmp_path / "run")


def test_each_time_a_row_is_drawn_it_is_another_one(tiny, tmp_path, dictionary):
    model = load(tiny("bert"), tmp_path)
    values = of("classification", augment={"span": 0.3, "codeswitch": 0.5}, augment_data=dictionary)
    rows = rows_of("classification")
    task = task_class("classification").from_rows(values.task_options, {"train": rows}, {})
    augmenter = augmenter_of(values, task, model.backbone, rows)
    examples = task.encode(rows, model.backbone)
    drawn = [augmenter.draw(step, [0, 0], examples, [0] * 12, 3) for step in range(6)]
    texts = [(draw[0].row.text, draw[1].row.text) for draw in drawn]
    assert len({text for pair in texts for text in pair}) > 6
    again = augmenter.draw(3, [0, 0], examples, [0] * 12, 3)
    assert (again[0].row.text, again[1].row.text) == texts[3]
    other_seed = augmenter.draw(3, [0, 0], examples, [0] * 12, 4)
    assert (other_seed[0].row.text, other_seed[1].row.text) != texts[3]
    assert all(e.row.text == row.text for e, row in zip(examples, rows, strict=True))


# ── each method on each task ─────────────────────────────────────────────────────────────────────

OFFERED = {
    "classification": ("subword", "span", "codeswitch", "mixup", "translate"),
    "language-modeling": ("subword", "codeswitch"),
    "token-classification": ("subword", "span", "codeswitch"),
    "question-answering": ("subword",),
    "retrieval": ("subword", "span", "codeswitch", "translate"),
    "generation": ("subword", "span", "codeswitch"),
    "translation": ("subword",),
}
CASES = [
    (task, kind, method)
    for task, some in OFFERED.items()
    for method in some
    for kind in ("bert", "qwen3")
    if not (task in ("generation", "translation") and kind == "bert")  # which writes nothing
    and (task, kind, method) != ("token-classification", "qwen3", "span")
]


@pytest.mark.parametrize(("task", "kind", "method"), CASES)
def test_each_method_on_each_task(
    task, kind, method, with_unigram, tmp_path, accelerator, dictionary, translations
):
    model = load(with_unigram(kind), tmp_path)
    data = {"codeswitch": dictionary, "translate": translations}.get(method)
    values = of(task, augment={method: 0.5}, augment_data=data)
    (adapter,), progress = fit(model, task, accelerator, values, batches=BATCHES[:3])
    assert progress.augmented[f"{method} rows"] > 3
    assert "left rows" not in progress.augmented
    assert all(tensor.isfinite().all() for tensor in adapter.parameters())


@pytest.mark.parametrize("kind", ["mt5", "m2m100"])
@pytest.mark.parametrize("method", ["subword", "span", "codeswitch"])
def test_an_encoder_decoder_reads_changed_rows(
    kind, method, tiny, tmp_path, accelerator, dictionary
):
    model = load(tiny(kind), tmp_path)
    data = dictionary if method == "codeswitch" else None
    values = of("generation", augment={method: 0.5}, augment_data=data)
    _, progress = fit(model, "generation", accelerator, values, batches=BATCHES[:2])
    assert progress.augmented[f"{method} rows"] > 3


def examples_of(task_name, model, values, step=0):
    rows = rows_of(task_name)
    kind = task_class(task_name)
    task = kind.from_rows(values.task_options, {"train": rows, "dev": [], "test": []}, {})
    augmenter = augmenter_of(values, task, model.backbone, rows)
    examples = task.encode(rows, model.backbone)
    draw = augmenter.draw(step, range(len(examples)), examples, [0] * len(examples), 3)
    return task, examples, list(draw)


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_answers_stay_where_they_are(kind, with_unigram, tmp_path):
    model = load(with_unigram(kind), tmp_path)
    values = of("question-answering", augment={"subword": 1.0}, max_length=24, stride=4)
    changed = 0
    for step in range(5):
        _, usual, drawn = examples_of("question-answering", model, values, step)
        for before, after in zip(usual, drawn, strict=True):
            first, last = (place - after.target.first for place in after.target.span)
            if after.target.span[0] == after.target.null:
                continue  # this window does not hold it
            (answer,) = after.row.fields["answers"]["text"]
            text = after.row.text[after.target.starts[first] : after.target.ends[last]]
            assert answer in text
            assert len(text) <= len(answer) + 5
            changed += before.input_ids != after.input_ids
    assert changed > 20


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
@pytest.mark.parametrize("method", ["subword", "span", "codeswitch"])
def test_tags_stay_with_their_words(kind, method, with_unigram, tmp_path, dictionary):
    if (kind, method) == ("qwen3", "span"):
        return  # refused, see below
    model = load(with_unigram(kind), tmp_path)
    data = dictionary if method == "codeswitch" else None
    values = of("token-classification", augment={method: 0.5}, augment_data=data)
    _, usual, drawn = examples_of("token-classification", model, values)
    assert any(a.input_ids != b.input_ids for a, b in zip(usual, drawn, strict=True))
    for before, after in zip(usual, drawn, strict=True):
        assert after.target.tags == before.target.tags
        assert None not in after.target.places
        assert len(after.row.fields["words"]) == len(before.row.fields["words"])
        tokens = model.backbone.tokenizer.convert_ids_to_tokens(after.input_ids)
        for word, place in zip(after.row.fields["words"], after.target.places, strict=True):
            piece = tokens[place].lstrip("▁")
            assert piece in word if kind == "qwen3" else word.startswith(piece)


def test_windows_of_a_long_text_are_drawn_as_windows(with_unigram, tmp_path):
    model = load(with_unigram("qwen3"), tmp_path)
    values = of("language-modeling", augment={"subword": 1.0}, max_length=16)
    text = "the room 1 was clean 2 and quiet 3 staff rude 4 and slow 5 never again 6 lovely view 7"
    rows = [Row(text, language="en"), Row(TEXTS[0], language="en")]
    task = task_class("language-modeling").from_rows(values.task_options, {"train": rows}, {})
    augmenter = augmenter_of(values, task, model.backbone, rows)
    examples = task.encode(rows, model.backbone)
    windows = sum(example.row is rows[0] for example in examples)
    assert windows > 2
    draw = list(augmenter.draw(0, range(len(examples)), examples, [0] * len(examples), 3))
    decode = model.backbone.tokenizer.decode
    parts = [decode(e.input_ids, skip_special_tokens=True) for e in draw[:windows]]
    starts = [text.replace(" ", "").index(part.replace(" ", "")) for part in parts]
    assert starts == sorted(set(starts))
    assert draw[windows].row is rows[1]


def test_a_translated_row_is_in_its_language(
    tiny, tmp_path, translations, accelerator, lora_folder
):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("bert", "one"), name="fr", language="fr")
    model = ah.load_backbone(str(tiny("bert")), library=library)
    french, seen = model.resolve("fr"), []
    values = of("classification", augment={"translate": 0.5}, augment_data=translations)

    def over(row):
        seen.append((row.language, row.fields.get("augmented"), row.label))
        return french if row.language == "fr" else Blend()

    fit(model, "classification", accelerator, values, over=over)
    assert {(language, mark) for language, mark, _ in seen} == {("en", None), ("fr", "translate")}


# ── train rows alone ─────────────────────────────────────────────────────────────────────────────


def experiment(tiny, tmp_path, rows, kind="bert", **values):
    values = {"task": "classification", "backbone": str(tiny(kind)), "cpu": True, "rank": 2,
              "steps": 4, "batch_size": 6, "library": str(tmp_path / "library"), "domain": (),
              "run_folder": str(tmp_path / "runs"), "name": "a", **values}  # fmt: skip
    chosen = ah.TrainingSettings.of(values)
    origins = dict.fromkeys(chosen.flat(), "call")
    return Experiment(Resolved(chosen, origins), rows=rows, quiet=True)


def test_dev_and_test_rows_are_never_augmented(tiny, tmp_path, dictionary, monkeypatch):
    rows = rows_of("classification")
    splits = {"train": rows[:8], "dev": rows[8:10], "test": rows[10:]}
    run = experiment(tiny, tmp_path, splits, augment=ALL, augment_data=dictionary)
    plain = experiment(tiny, tmp_path, splits)
    looked, trained = [], []
    collate = type(run.task).collate

    def watched(task, examples, backbone, seed=0):
        (trained if torch.is_grad_enabled() else looked).extend(examples)
        return collate(task, examples, backbone, seed)

    monkeypatch.setattr(type(run.task), "collate", watched)
    run.train([run.new_adapter("a")])
    for split in ("dev", "test"):
        assert [e.input_ids for e in run.examples[split]] == [
            e.input_ids for e in plain.examples[split]
        ]
        assert not any("augmented" in row.fields for row in run.splits[split])
    assert {id(example) for example in looked} == {id(example) for example in run.examples["dev"]}
    assert any("augmented" in example.row.fields for example in trained)
    dev = {row.key for row in (*splits["dev"], *splits["test"])}
    assert not dev & {example.row.key for example in trained}


def test_translations_of_dev_rows_are_not_drawn(tiny, tmp_path, translations):
    rows = rows_of("classification")
    splits = {"train": rows[:8], "dev": rows[8:10], "test": rows[10:]}
    run = experiment(tiny, tmp_path, splits, augment={"translate": 1.0}, augment_data=translations)
    assert run.augmenter.material.translations.keys() == {f"None/{n}" for n in range(8)}
    assert run.augmenter.languages == {"fr"}


def test_a_summary_is_printed(tiny, tmp_path, dictionary, capsys):
    rows = rows_of("classification")
    run = experiment(tiny, tmp_path, rows, augment=ALL, augment_data=dictionary)
    run.print = print
    run.train([run.new_adapter("a")])
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("augmented"))
    assert line.startswith("augmented, of 24 rows drawn: codeswitch ")
    assert "words), span " in line
    assert line.endswith("mixup 24 rows")


# ── two processes ────────────────────────────────────────────────────────────────────────────────

PROGRAM = """
import sys
from accelerate import Accelerator
from peft import LoraConfig
from safetensors.torch import save_file
import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.tasks.registry import task_class
from adapters_hub.training.augmentation import augmenter_of
from adapters_hub.training.loop import train_adapters

accelerator = Accelerator(cpu=True)
model = ah.load_backbone(sys.argv[1], library=sys.argv[2])
name, augment = sys.argv[5], {"subword": 0.3, "span": 0.3, "codeswitch": 0.5}
augment |= {"mixup": 0.4} if name == "classification" else {}
values = ah.TrainingSettings(
    task=name, learning_rate=0.01, resume=False, cpu=True, augment=augment, augment_data=sys.argv[4]
)
texts = ["the room was clean and quiet", "staff rude and slow", "never again", "lovely view"]
rows = [Row(f"{text} {n}", "ab"[n % 2], "en", fields={"positive": f"{n} {text}"})
        for n, text in enumerate(texts * 2)]
task = task_class(name).from_rows(values.task_options, {"train": rows}, {})
info = ah.AdapterInfo(name="a", labels=task.labels, task=task.name)
lora = LoraConfig(r=2, target_modules="all-linear")
batches = [[0, 1, 2, 3], [4, 5, 6, 7], [0, 2, 5, 7], [1, 3, 4], [2, 6], [0, 7, 3, 1]]
(trained,), progress = train_adapters(
    model, task, [task.new_adapter(info, model.backbone, lora, 0)],
    task.encode(rows, model.backbone), [0] * 8, batches, values, accelerator,
    augmenter=augmenter_of(values, task, model.backbone, rows),
)
if accelerator.is_main_process:
    tensors = {str(n): t.contiguous() for n, t in enumerate(trained.parameters())}
    save_file(tensors, sys.argv[3], {k: str(v) for k, v in progress.augmented.items()})
accelerator.end_training()
"""


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "retrieval"])
def test_two_processes_give_the_adapter_of_one(task, tiny, tmp_path, dictionary):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    results = []
    for processes in (1, 2):
        path = tmp_path / f"{processes}.safetensors"
        running = launch(
            program, tiny("bert"), tmp_path / "library", path, dictionary, task,
            processes=processes, cwd=tmp_path,
        )  # fmt: skip
        output, _ = running.communicate(timeout=300)
        assert running.returncode == 0, output
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            results.append((load_file(path), file.metadata()))
    (one, counts), (two, counts_of_two) = results
    assert counts == counts_of_two
    assert int(counts["rows"]) == 21
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=1e-4, rtol=1e-3)
