"""Checkpoints: what they keep, where it comes back to, and to which run they belong."""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from conftest import TEXTS
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError, TrainingError
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.tasks.language_modeling import LanguageModeling
from adapters_hub.training.checkpoint import Checkpoint, Trainee
from adapters_hub.training.loop import train_adapters
from adapters_hub.training.settings import TrainingSettings

SETTINGS = TrainingSettings()


def trainee(device="cpu", steps=2):
    """One small adapter after some steps, with a best state."""
    torch.manual_seed(0)
    a, b = (torch.nn.Parameter(torch.randn(2, 2, device=device)) for _ in "AB")
    adapter = Adapter(AdapterInfo("a"), {"site": (a, b)}, {"site": 1.0})
    optimizer = torch.optim.AdamW([a, b], lr=0.1)
    made = Trainee(adapter, optimizer, [0.1])
    for step in range(steps):
        (a.sum() * b.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        made.remember(-step, step, higher_is_better=True)
    return made


def states(trainees):
    return [
        tensor
        for one in trainees
        for parameter in one.adapter.parameters()
        for _, tensor in [("", parameter), *sorted(one.optimizer.state[parameter].items())]
    ] + [tensor for one in trainees for tensor in one.best]


def test_everything_comes_back(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    old = [trainee(), trainee(steps=3)]
    history = [{"step": 1, "loss": 0.5}]
    Checkpoint(tmp_path, SETTINGS, {"x": 1}).save(old, history, 7, scaler)
    new, seen = [trainee(steps=0), trainee(steps=0)], []
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    assert Checkpoint(tmp_path, SETTINGS, {"x": 1}).load(new, seen, other) == 7
    assert seen == history
    assert other.get_scale() == 8.0
    for one, two in zip(states(old), states(new), strict=True):
        assert torch.equal(one, two)
    for name in ("best_score", "best_step", "waited", "stopped"):
        assert [getattr(t, name) for t in old] == [getattr(t, name) for t in new]


def test_all_of_it_comes_back_to_where_the_parameters_are(tmp_path):
    """A fused optimizer keeps even the step beside the parameter; ``meta`` stands for a GPU here."""
    Checkpoint(tmp_path, SETTINGS, {}).save([trainee()], [], 2)
    elsewhere = trainee("meta", steps=0)
    Checkpoint(tmp_path, SETTINGS, {}).load([elsewhere], [])
    assert {tensor.device.type for tensor in states([elsewhere])} == {"meta"}


def test_a_run_goes_on_only_with_what_it_began_with(tmp_path):
    Checkpoint(tmp_path, SETTINGS, {"examples": "abc", "over": {"de": "1"}}).save([], [], 2)
    for settings, facts, changed in (
        (SETTINGS, {"examples": "xyz", "over": {"de": "1"}}, "examples"),
        (SETTINGS, {"examples": "abc", "over": {"de": "2"}}, "over"),
        (SETTINGS, {"examples": "abc"}, "over"),
        (
            SETTINGS.changed(rank=3, steps=9),
            {"examples": "abc", "over": {"de": "1"}},
            "rank, steps",
        ),
    ):
        with pytest.raises(SettingsError, match=rf"settings or data \({changed}\); go on with"):
            Checkpoint(tmp_path, settings, facts).load([], [])
    same = SETTINGS.changed(save_every=5, run_folder="elsewhere", accumulation=4, threads=3)
    assert Checkpoint(tmp_path, same, {"examples": "abc", "over": {"de": "1"}}).load([], []) == 2


def as_an_earlier_version_wrote_it(folder, step, name="checkpoint"):
    """A folder of JSON and tensors, with the state of one trainee after two steps."""
    old = trainee()
    (folder / name).mkdir()
    tensors = {}
    for place, tensor in enumerate(old.adapter.parameters()):
        tensors[f"0/{place}/now"], tensors[f"0/{place}/best"] = tensor.detach(), old.best[place]
        tensors |= {f"0/{place}/{k}": v for k, v in old.optimizer.state[tensor].items()}
    save_file(tensors, folder / name / "state.safetensors")
    facts = {key: getattr(old, key) for key in ("best_score", "best_step", "waited", "stopped")}
    run = Checkpoint(folder, SETTINGS, {}).run
    state = {"step": step, "trainees": [facts], "history": [], "scaler": None, "run": run}
    (folder / name / "state.json").write_text(json.dumps(state))
    return old


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path):
    old, new = as_an_earlier_version_wrote_it(tmp_path, 4), trainee(steps=0)
    checkpoint = Checkpoint(tmp_path, SETTINGS, {})
    assert checkpoint.load([new], []) == 4
    for one, two in zip(states([old]), states([new]), strict=True):
        assert torch.equal(one, two)
    checkpoint.save([new], [], 5)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert checkpoint.load([trainee(steps=0)], []) == 5


def test_an_old_state_comes_back_only_where_it_is_the_newest(tmp_path):
    """``checkpoint.old`` is what an earlier version may have left behind."""
    as_an_earlier_version_wrote_it(tmp_path, 4, "checkpoint.old")
    checkpoint = Checkpoint(tmp_path, SETTINGS, {})
    assert checkpoint.load([trainee(steps=0)], []) == 0  # of a run that has finished
    (tmp_path / "checkpoint.partial").mkdir()
    assert checkpoint.load([trainee(steps=0)], []) == 4  # of one killed while it was saving
    checkpoint.save([trainee()], [], 6)
    assert checkpoint.load([trainee(steps=0)], []) == 6
    checkpoint.remove()
    assert checkpoint.load([trainee(steps=0)], []) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "no facts", "less", "text"])
def test_a_damaged_checkpoint_says_how_to_start_anew(tmp_path, damage):
    checkpoint = Checkpoint(tmp_path, SETTINGS, {})
    checkpoint.save([trainee()], [], 2)
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-8])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no facts":
        save_file({"x": torch.zeros(1)}, path)
    elif damage == "less":
        with safe_open(path, "pt") as file:
            save_file({"x": torch.zeros(1)}, path, file.metadata())
    else:
        path.write_bytes(whole.replace(b'\\"step\\": 2', b'\\"step\\": {'))
    assert path.read_bytes() != whole
    with pytest.raises(TrainingError, match=r"checkpoint.safetensors is damaged .*--no-resume"):
        checkpoint.load([trainee(steps=0)], [])


def test_a_folder_that_cannot_be_made_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"file.run: cannot be made .*--run-folder"):
        Checkpoint(tmp_path / "file" / "run", SETTINGS, {})


# ── as training uses them ────────────────────────────────────────────────────────────────────────

ROWS = [Row(text, language="en") for text in TEXTS[:4]]


class Interrupted(LanguageModeling):
    """Stops the run at its third step."""

    def loss(self, model, batch, heads):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return super().loss(model, batch, heads)


steps: list[int] = []


@pytest.fixture
def model(tiny, tmp_path, lora_folder):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("qwen3", "one"), name="en", language="en")
    return ah.load_backbone(str(tiny("qwen3")), library=library)


@pytest.fixture
def begun(model, tmp_path):
    """A run over ``en`` that was interrupted, as a function that runs it again with changes."""

    def again(task=LanguageModeling, rows=ROWS, dev=ROWS[:2], owners=(0, 0, 0, 0), batches=None):
        task = task()
        examples, looked_at = (task.encode(some, model.backbone) for some in (rows, dev))
        config = LoraConfig(r=2, target_modules="all-linear")
        new = [task.new_adapter(AdapterInfo(name), model.backbone, config) for name in ("a", "b")]
        over = model.resolve("en")
        return train_adapters(
            model, task, new, examples, owners, batches or [[0, 1], [2, 3], [0, 3], [1, 2]],
            TrainingSettings(save_every=1), Accelerator(cpu=True), folder=tmp_path / "run",
            over=lambda row: over if row.language == "en" else Blend(),
            dev=looked_at, dev_owners=[0] * len(looked_at),
        )  # fmt: skip

    steps.clear()
    with pytest.raises(KeyboardInterrupt):
        again(Interrupted)
    return again


SAME_LENGTH = [Row("the room was slow and quiet", language="en"), *ROWS[1:]]


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"rows": SAME_LENGTH}, "examples"),
        ({"dev": SAME_LENGTH[:2]}, "examples"),
        ({"rows": [Row(ROWS[0].text, language="de"), *ROWS[1:]]}, "examples"),
        ({"owners": (0, 1, 0, 0)}, "examples"),
        ({"batches": [[0, 1], [2, 3], [0, 3], [1, 3]]}, "batches"),
    ],
)
def test_other_text_of_equal_length_is_another_run(begun, model, changes, changed):
    lengths = [[len(e.input_ids) for e in LanguageModeling().encode(rows, model.backbone)]
               for rows in (ROWS, SAME_LENGTH)]  # fmt: skip
    assert lengths[0] == lengths[1]
    with pytest.raises(SettingsError, match=rf"\({changed}\)"):
        begun(**changes)
    _, progress = begun()
    assert progress.steps == 4
    assert math.isfinite(progress.history[-1]["loss"])


def test_another_frozen_adapter_below_is_another_run(begun, model, lora_folder):
    model.library.add(lora_folder("qwen3", "two"), name="en", language="en", replace_existing=True)
    model.drop("en")
    with pytest.raises(SettingsError, match=r"\(over\)"):
        begun()


def test_a_stopped_run_leaves_no_adapter_in_the_model(begun, model):
    assert model.bank.names() == ["en"]
