"""Training: what one step does for each adapter, and that runs can stop, go on and be split."""

import math
import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import TEXTS
from helpers.training import assert_same, settings
from peft import LoraConfig

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, SettingsError, TrainingError
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.tasks.classification import Classification
from adapters_hub.tasks.language_modeling import LanguageModeling
from adapters_hub.training.accelerator import check_accelerator
from adapters_hub.training.loop import train_adapters

ROWS = [
    Row(f"{text} {n}", language="en" if n % 2 else "de") for n, text in enumerate(TEXTS[:4] * 3)
]
BATCHES = [[0, 3, 5, 7], [1, 2, 4, 6], [8, 9, 10, 11], [0, 2, 4, 8], [1, 3, 9, 11], [5, 6, 7, 10]]


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def new(model, name, task=None, seed=0, **lora):
    task = task or LanguageModeling()
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", **lora)
    info = AdapterInfo(name=name, labels=task.labels, task=task.name)
    return task.new_adapter(info, model.backbone, config, seed)


def fit(model, names, accelerator, batches=BATCHES, owners=None, task=None, rows=ROWS, **options):
    """Train adapters of these names; ``owners`` of rows default to their language."""
    task = task or LanguageModeling()
    examples = task.encode(rows, model.backbone)
    owners = owners or [0] * len(rows)
    values = options.pop("settings", None) or settings()
    adapters = [new(model, name, task, seed=sum(map(ord, name))) for name in names]
    return train_adapters(
        model, task, adapters, examples, owners, batches, values, accelerator, **options
    )


@pytest.fixture
def model(tiny, tmp_path):
    return ah.load_backbone(str(tiny("qwen3")), library=tmp_path / "library")


def test_adapters_trained_together_equal_those_trained_alone(model, accelerator):
    owners = [n % 2 for n in range(len(ROWS))]
    uneven = [*BATCHES, [0, 2, 4], [1], [6, 8, 10]]
    (a, b), _ = fit(model, ["first", "second"], accelerator, uneven, owners)
    for number, (name, together) in enumerate((("first", a), ("second", b))):
        mine = [[i for i in batch if owners[i] == number] for batch in uneven]
        (alone,), _ = fit(model, [name], accelerator, mine)
        assert_same(together, alone)
    assert any(
        (x - y).abs().max() > 1e-3 for x, y in zip(a.parameters(), b.parameters(), strict=True)
    )


def test_an_adapter_absent_from_a_batch_does_not_move(model, accelerator):
    owners = [n % 2 for n in range(len(ROWS))]
    short = [[1, 3, 5], [7, 9, 11]]
    with_tail = [*short, [0, 2], [4, 6], [8, 10]]  # the second adapter is not in the tail
    constant = settings(schedule="constant", warmup=0.0)
    (_, early), _ = fit(model, ["first", "second"], accelerator, short, owners, settings=constant)
    (_, late), _ = fit(
        model, ["first", "second"], accelerator, with_tail, owners, settings=constant
    )
    assert_same(early, late, atol=0, rtol=0)


@pytest.mark.parametrize("pieces", [2, 3, 4])
def test_accumulation_changes_nothing(model, accelerator, pieces):
    (whole,), _ = fit(model, ["a"], accelerator)
    (cut,), _ = fit(model, ["a"], accelerator, settings=settings(accumulation=pieces))
    assert_same(whole, cut)


def test_gradient_checkpointing_changes_nothing_with_mixed_rows(
    tiny, tmp_path, accelerator, lora_folder
):
    trained = []
    for checkpointing in (False, True):
        library = ah.Library(tmp_path / str(checkpointing))
        library.add(lora_folder("qwen3", "one"), name="de", language="de")
        model = ah.load_backbone(str(tiny("qwen3")), library=library)
        if checkpointing:
            model.enable_gradient_checkpointing()
        german = model.resolve("de")
        over = lambda row, german=german: german if row.language == "de" else Blend()
        (adapter,), _ = fit(model, ["a"], accelerator, over=over)
        trained.append(adapter)
    assert_same(*trained)


def test_only_the_adapter_learns(model, accelerator, lora_folder):
    model.library.add(lora_folder("qwen3", "one"), name="de", language="de")
    german = model.resolve("de")
    before = {k: v.clone() for k, v in model.backbone.model.state_dict().items()}
    frozen = [t.clone() for t in model.adapter("de").parameters()]
    (adapter,), progress = fit(model, ["a"], accelerator, over=lambda row: german)
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.model.state_dict().items())
    assert all(map(torch.equal, model.adapter("de").parameters(), frozen))
    assert all(b.abs().max() > 0 for _, b in adapter.factors.values())
    assert progress.steps == len(BATCHES)
    assert not any(t.requires_grad for t in adapter.parameters())


class Failing(LanguageModeling):
    """Does something at one step of the run, once."""

    def loss(self, model, batch, heads):
        calls.append(1)
        if len(calls) == 4:
            trouble()
        return super().loss(model, batch, heads)


calls: list[int] = []


def trouble():
    raise RuntimeError("not set")


@pytest.mark.parametrize("how", ["control-c", "crash"])
def test_a_run_that_was_stopped_goes_on_to_the_same_adapter(
    model, accelerator, tmp_path, monkeypatch, how
):
    handler = signal.getsignal(signal.SIGINT)
    (want,), _ = fit(model, ["a"], accelerator)
    calls.clear()

    def crash():
        raise RuntimeError("the machine died")

    stop = crash if how == "crash" else lambda: signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(f"{__name__}.trouble", stop)
    values = settings(save_every=2)
    expected = RuntimeError if how == "crash" else KeyboardInterrupt
    with pytest.raises(expected):
        fit(model, ["a"], accelerator, task=Failing(), folder=tmp_path, settings=values)
    assert (tmp_path / "checkpoint.safetensors").exists()
    assert not list(tmp_path.rglob("*.pt")) + list(tmp_path.rglob("*.bin"))
    before = len(calls)
    assert "a" not in model.bank  # nothing half-trained answers to the name
    (got,), progress = fit(
        model, ["a"], accelerator, task=Failing(), folder=tmp_path, settings=values
    )
    assert len(calls) - before < len(BATCHES)
    assert progress.steps == len(BATCHES)
    assert_same(got, want, atol=1e-6, rtol=1e-5)
    assert not (tmp_path / "checkpoint.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_checkpoint_of_other_settings_is_not_mixed_in(model, accelerator, tmp_path, monkeypatch):
    calls.clear()
    monkeypatch.setattr(f"{__name__}.trouble", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match=r"interrupted after step 4.*goes on"):
        fit(model, ["a"], accelerator, task=Failing(), folder=tmp_path)
    with pytest.raises(SettingsError, match="--no-resume"):
        fit(model, ["a"], accelerator, folder=tmp_path, settings=settings(learning_rate=0.5))
    fresh = settings(learning_rate=0.5, resume=False)
    _, progress = fit(model, ["a"], accelerator, folder=tmp_path, settings=fresh)
    assert progress.steps == len(BATCHES)


def test_the_best_on_dev_is_kept_and_patience_stops(model, accelerator):
    task = LanguageModeling()
    dev = task.encode([Row("房间很干净"), Row("房间")], model.backbone)  # nothing like the rows
    values = settings(learning_rate=0.02, schedule="constant", eval_every=1, patience=2)
    _, progress = fit(
        model, ["a"], accelerator, BATCHES * 20, dev=dev, dev_owners=[0] * 2, settings=values
    )
    assert progress.steps < len(BATCHES) * 20
    from adapters_hub.inference.records import collect_records

    kept = task.metrics(collect_records(model, task, dev, lambda row: model.resolve("a")))
    scores = [look[f"dev_{task.metric}/a"] for look in progress.history]
    assert kept[task.metric] == pytest.approx(min(scores), rel=1e-5)
    assert min(scores) < scores[-1]


class Scaling:
    """An accelerator with the loss scaler that fp16 has on a GPU, here on the CPU."""

    def __init__(self, accelerator, scale=4.0):
        self.accelerator = accelerator
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)

    def __getattr__(self, name):
        return getattr(self.accelerator, name)

    def backward(self, loss):
        self.scaler.scale(loss).backward()


def test_a_loss_scaler_changes_nothing(model, accelerator):
    (plain,), _ = fit(model, ["a"], accelerator)
    scaling = Scaling(accelerator)
    (scaled,), _ = fit(model, ["a"], scaling)
    assert_same(plain, scaled)
    assert scaling.scaler.get_scale() == 4.0 * 2 ** (len(BATCHES) // 2)


@pytest.mark.parametrize("wrap", [Scaling, lambda accelerator: accelerator])
def test_a_batch_whose_adapters_have_all_stopped_is_passed_over(model, accelerator, wrap):
    """The first adapter gets no better on dev and stops; the second's only row comes much later."""
    dev = LanguageModeling().encode([Row("房间很干净")], model.backbone)
    values = settings(learning_rate=0.5, schedule="constant", eval_every=1, patience=1)
    owners = [n % 2 for n in range(len(ROWS))]
    batches = [[0, 2, 4, 6]] * 30 + [[1]]
    (_, second), progress = fit(
        model, ["first", "second"], wrap(accelerator), batches, owners,
        dev=dev, dev_owners=[0], settings=values.changed(warmup=0.0),
    )  # fmt: skip
    stopped = [look["loss"] for look in progress.history if "dev_bits/first" not in look]
    assert 2 < len(stopped) < len(batches)
    assert len(set(stopped[:-1])) == 1  # no step, no new loss
    assert math.isfinite(stopped[0])
    assert progress.steps == len(batches)
    assert any(b.abs().max() > 0 for _, b in second.factors.values())


def test_a_process_without_a_row_can_scale(model, accelerator):
    """Two processes, one row: the one without it has nothing to scale, and must still unscale."""

    class Second(Scaling):
        num_processes, process_index = 2, 1

        def reduce(self, tensor, how):
            return tensor

        def gather(self, tensor):
            return tensor

    (adapter,), _ = fit(model, ["a"], Second(accelerator), [[0], [1]])
    assert all(t.isfinite().all() for t in adapter.parameters())


def test_the_look_at_dev_is_at_the_precision_of_training(tiny, tmp_path, fresh_accelerate):
    class Watched(LanguageModeling):
        def loss(self, model, batch, heads):
            seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
            return super().loss(model, batch, heads)

    seen = []
    model = ah.load_backbone(str(tiny("qwen3")), library=tmp_path)
    dev = LanguageModeling().encode(ROWS, model.backbone)
    fit(
        model, ["a"], Accelerator(cpu=True, mixed_precision="bf16"), task=Watched(),
        dev=dev, dev_owners=[0] * len(dev),
    )  # fmt: skip
    assert {grad for grad, _ in seen} == {True, False}
    assert all(autocast for _, autocast in seen)


def test_each_adapter_has_a_name_of_its_own(model, accelerator):
    with pytest.raises(SettingsError, match=r"the same name.*\['a', 'b', 'a'\]"):
        fit(model, ["a", "b", "a"], accelerator)


@pytest.mark.parametrize("names", [["de"], ["da", "de"]])
def test_an_adapter_is_never_trained_over_itself(model, accelerator, lora_folder, names):
    model.library.add(lora_folder("qwen3", "one"), name="de", language="de")
    german = model.resolve("de")
    with pytest.raises(TrainingError, match=r"'de' is trained here, so it cannot be a frozen"):
        fit(model, names, accelerator, over=lambda row: german)
    assert "da" not in model.bank


def test_accumulation_by_accelerate_is_refused():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    try:
        with pytest.raises(SettingsError, match=r"gradient_accumulation_steps=4.*--accumulation 4"):
            check_accelerator(accelerator)
    finally:
        Accelerator(cpu=True, gradient_accumulation_steps=1)


@pytest.mark.parametrize("where", ["train", "dev"])
def test_a_row_without_a_label_stops_the_run_before_it_starts(tiny, tmp_path, accelerator, where):
    model = ah.load_backbone(str(tiny("bert")), library=tmp_path)
    task = Classification(("no", "yes"))
    rows = [Row("the room", "yes"), Row("never again", "no")]
    missing = [Row("lovely view", None, where="reviews.csv:7")]
    dev = task.encode(rows + missing * (where == "dev"), model.backbone)
    with pytest.raises(DataError, match=r"reviews.csv:7: field 'label' is missing"):
        fit(
            model, ["a"], accelerator, [[0, 1]] * 3, task=task,
            rows=rows + missing * (where == "train"), dev=dev, dev_owners=[0] * len(dev),
        )  # fmt: skip
    assert "a" not in model.bank


def test_a_loss_that_is_not_finite_stops_the_run(model, accelerator):
    class Broken(LanguageModeling):
        def loss(self, model, batch, heads):
            return super().loss(model, batch, heads) * float("nan")

    with pytest.raises(TrainingError, match=r"nan at step 1.*learning rate"):
        fit(model, ["a"], accelerator, task=Broken())


def test_mixed_precision_learns_and_keeps_full_precision_factors(tiny, tmp_path, fresh_accelerate):
    model = ah.load_backbone(str(tiny("qwen3")), library=tmp_path)
    (adapter,), _ = fit(model, ["a"], Accelerator(cpu=True, mixed_precision="bf16"))
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in adapter.parameters())
    assert any(b.abs().max() > 0 for _, b in adapter.factors.values())


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_training_over_a_quantised_backbone(tiny, tmp_path, accelerator, bits):
    pytest.importorskip("bitsandbytes")
    model = ah.load_backbone(str(tiny("qwen3")), library=tmp_path, bits=bits)
    (adapter,), progress = fit(
        model, ["a"], accelerator, BATCHES * 3, dev=LanguageModeling().encode(ROWS, model.backbone),
        dev_owners=[0] * len(ROWS), settings=settings(eval_every=1),
    )  # fmt: skip
    scores = [look["dev_bits/a"] for look in progress.history]
    assert min(scores) < scores[0]
    assert adapter.factors


@pytest.mark.slow
def test_users_example_english_and_chinese_two_labels(tiny, tmp_path, accelerator):
    """Tokenise a few English and Chinese sentences, two labels, train, evaluate, save, load back."""
    rows = [
        Row("the room was clean and quiet", "positive", "en"),
        Row("lovely view near the station", "positive", "en"),
        Row("rude staff and slow", "negative", "en"),
        Row("never again", "negative", "en"),
        Row("房间很干净", "positive", "zh"),
        Row("我们很喜欢", "positive", "zh"),
        Row("服务很差", "negative", "zh"),
        Row("酒店不好", "negative", "zh"),
    ]
    library = ah.Library(tmp_path)
    model = ah.load_backbone(str(tiny("bert")), library=library)
    task = Classification(("negative", "positive"))
    batches = [list(range(8))] * 40
    (adapter,), _ = fit(
        model, ["reviews"], accelerator, batches, task=task, rows=rows,
        settings=settings(task="classification", learning_rate=0.02),
    )  # fmt: skip
    from adapters_hub.evaluation.scores import metrics_by
    from adapters_hub.inference.records import collect_records

    examples = task.encode(rows, model.backbone)
    records = collect_records(model, task, examples, lambda row: model.resolve("reviews"))
    assert task.metrics(records)["accuracy"] == 1.0
    assert set(metrics_by(task, examples, records, lambda row: row.language)) == {"en", "zh"}
    library.add(adapter.save(tmp_path / "saved"), domain="reviews")
    again = ah.load_backbone(str(tiny("bert")), library=library)
    for row, found in zip(rows, again.classify([r.text for r in rows], "reviews"), strict=True):
        assert next(iter(found)) == row.label


def test_saved_folder_is_peft_and_keeps_what_it_was_trained_for(model, accelerator, tmp_path):
    (adapter,), _ = fit(model, ["a"], accelerator)
    folder = adapter.save(tmp_path / "a")
    assert sorted(p.name for p in Path(folder).iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    info = ah.Library(tmp_path / "library").add(folder)
    assert (info.name, info.task, info.rank) == ("a", "language-modeling", 2)
