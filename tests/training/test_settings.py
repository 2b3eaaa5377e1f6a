from dataclasses import FrozenInstanceError, fields

import pytest

from adapters_hub.errors import AdaptersHubError, SettingsError
from adapters_hub.tasks.registry import declarations
from adapters_hub.training.settings import TrainingSettings, parse_settings

NAMES = list(TrainingSettings().flat())
OPTIONS = {f.name for declared in declarations() for f in fields(declared.options)} - {"max_length"}


def yaml_file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def parsed(*arguments):
    return parse_settings(arguments).settings


def test_nothing_given_is_the_defaults():
    resolved = parse_settings([])
    assert resolved.settings == TrainingSettings()
    assert resolved.origins == dict.fromkeys(NAMES, "default")


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--steps", "20"], "steps", 20),
        (["--learning-rate", "5e-4"], "learning_rate", 5e-4),
        (["--learning-rate", "1"], "learning_rate", 1.0),
        (["--name", "hotel"], "name", "hotel"),
        (["--domain", "hotel", "bank"], "domain", ("hotel", "bank")),
        (["--replace"], "replace", True),
        (["--no-resume"], "resume", False),
        (["--schedule", "linear"], "schedule", "linear"),
        (["--mixed-precision", "no"], "mixed_precision", "no"),
        (["--lora-alpha", "16"], "lora_alpha", 16.0),
        (["--language", "de", "sw"], "language", ("de", "sw")),
        (["--language", "de,sw"], "language", ("de", "sw")),
        (["--language", "de,", "sw , it"], "language", ("de", "sw", "it")),
        (["--language"], "language", ()),
        (["--over", "none"], "over", ("none",)),
        (["--columns", "text=review", "label=a=b"], "columns", {"text": "review", "label": "a=b"}),
        (["--data", "100%"], "data", "100%"),
        (["--bits", "8"], "bits", 8),
        (["--dtype", "auto"], "dtype", "auto"),
        (["--attn-implementation", "eager"], "attn_implementation", "eager"),
    ],
)
def test_flags(arguments, name, value):
    resolved = parse_settings(arguments)
    assert getattr(resolved.settings, name) == value
    assert type(getattr(resolved.settings, name)) is type(value)
    assert resolved.origins[name] == "command line"


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("steps: 20", "steps", 20),
        ("batch-size: 4", "batch_size", 4),
        ("learning_rate: 0.5", "learning_rate", 0.5),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("learning_rate: 1e-3", "learning_rate", 1e-3),
        ("lora_alpha: null", "lora_alpha", None),
        ("replace: true", "replace", True),
        ("mixed_precision: no", "mixed_precision", "no"),
        ("mixed_precision: bf16", "mixed_precision", "bf16"),
        ("mixed_precision: null", "mixed_precision", None),
        ("language: [de, sw]", "language", ("de", "sw")),
        ("language: [no, de]", "language", ("no", "de")),
        ("language: no", "language", ("no",)),
        ("language: de, sw", "language", ("de", "sw")),
        ("language:", "language", ()),
        ("columns: {text: review}", "columns", {"text": "review"}),
        ("columns: text=review", "columns", {"text": "review"}),
        ("columns:", "columns", {}),
        ("name: größe", "name", "größe"),
    ],
)
def test_yaml(tmp_path, text, name, value):
    path = yaml_file(tmp_path, text)
    resolved = parse_settings(["--config", path])
    assert getattr(resolved.settings, name) == value
    assert type(getattr(resolved.settings, name)) is type(value)
    assert resolved.origins[name] == path


def test_flags_win_over_yaml_and_yaml_over_the_recipe(tmp_path):
    path = yaml_file(tmp_path, "steps: 2\nrank: 2\n")
    recipe = {"steps": 1, "rank": 1, "seed": 1, "task": "classification"}
    resolved = parse_settings(["--config", path, "--steps", "3"], recipe)
    got = resolved.settings
    assert (got.steps, got.rank, got.seed, got.task) == (3, 2, 1, "classification")
    origins = {name: resolved.origins[name] for name in ("steps", "rank", "seed", "clip")}
    assert origins == {"steps": "command line", "rank": path, "seed": "recipe", "clip": "default"}


def test_an_empty_yaml_file_changes_nothing(tmp_path):
    assert parsed("--config", yaml_file(tmp_path, "# nothing\n")) == TrainingSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepps: 20", "'stepps' is no setting"),
        ("steps: many", "steps='many' should be of type int"),
        ("steps: 2.5", "steps=2.5 should be of type int"),
        ("steps: true", "steps=True should be of type int"),
        ("replace: 1", "replace=1 should be of type bool"),
        ("learning_rate: true", "learning_rate=True should be of type float"),
        ("learning_rate: fast", "learning_rate='fast' should be of type float"),
        ("name: [hotel]", "name=['hotel'] should be of type str"),
        ("steps:", "steps=None should be of type int"),
        ("columns: [text]", "write NAME=COLUMN"),
        ("columns: 5", "write NAME=COLUMN"),
        ("- steps", "a YAML mapping"),
        ("steps: [", "not YAML"),
        ("steps: 2001-13-45", "not YAML"),
    ],
)
def test_what_is_wrong_in_yaml_is_said_with_the_file(tmp_path, text, message):
    path = yaml_file(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        parse_settings(["--config", path])
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert isinstance(caught.value, AdaptersHubError)


def test_yaml_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(SettingsError, match="No such file"):
        parse_settings(["--config", str(tmp_path / "missing.yaml")])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00steps")
    with pytest.raises(SettingsError, match="not YAML"):
        parse_settings(["--config", str(tmp_path / "binary.yaml")])


@pytest.mark.parametrize("text", ["schedule: quadratic", "schedule: true", "mixed_precision: 16"])
def test_a_wrong_choice_in_yaml_names_the_choices(tmp_path, text):
    with pytest.raises(SettingsError, match=r"choose one of (cosine, linear|no, bf16)"):
        parse_settings(["--config", yaml_file(tmp_path, text)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--schedule", "quadratic"], "invalid choice: 'quadratic'"),
        (["--stepps", "2"], "--stepps"),
    ],
)
def test_a_wrong_flag_ends_with_a_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_settings(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_columns_need_a_column():
    with pytest.raises(SettingsError, match="command line: columns: write NAME=COLUMN"):
        parse_settings(["--columns", "text"])


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"seed": -1},
        {"seed": 2**40},
        {"eval_every": -1},
        {"head_learning_rate": float("nan")},
        {"lora_alpha": -4.0},
        {"batch_size": -1},
        {"rank": 0},
        {"max_length": 0},
        {"accumulation": 0},
        {"dropout": 1.5},
        {"dropout": float("nan")},
        {"warmup": -0.1},
        {"over_share": 2.0},
        {"label_smoothing": -1.0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"bits": 5},
        {"dtype": "int8"},
        {"schedule": "quadratic"},
        {"mixed_precision": "fp8"},
        {"options": 3},
    ],
)
def test_values_that_cannot_work(values):
    (name,) = values
    with pytest.raises(SettingsError, match=f"^{name}="):
        TrainingSettings(**values)
    with pytest.raises(SettingsError, match=f"^{name}="):
        TrainingSettings().changed(**values)


def test_starts_are_for_layers():
    with pytest.raises(SettingsError, match=r"init='pissa' is for layers, and parameters=experts"):
        TrainingSettings(init="pissa", parameters=("experts.down_proj",))


def test_settings_cannot_be_changed_but_copied():
    settings = TrainingSettings()
    with pytest.raises(FrozenInstanceError):
        settings.steps = 5
    assert settings.changed(steps=5).steps == 5
    assert settings.steps == TrainingSettings().steps


def test_the_table_lists_every_setting_with_value_and_origin(tmp_path):
    path = yaml_file(tmp_path, "rank: 77")
    table = parse_settings(["--config", path, "--language", "de", "sw"], {"seed": 5}).table()
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
    assert list(rows) == [
        n for n in NAMES if n not in OPTIONS or n in ("mask_probability", "packing")
    ]
    assert rows["rank"] == ["77", path]
    assert rows["language"] == ["de", "sw", "command", "line"]
    assert rows["seed"] == ["5", "recipe"]
    assert rows["domain"] == ["-", "default"]
    assert len({line.rstrip().rfind("default") for line in table.splitlines()} - {-1}) == 1


def test_help_lists_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_settings(["--help"], {"rank": 77}, "What this recipe does.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "What this recipe does." in text
    for name in NAMES:
        assert f"--{name.replace('_', '-')} " in text
    assert "LoRA rank [77]" in text
    assert "[cosine]" in text


def test_two_runs_do_not_share_columns():
    TrainingSettings().columns["text"] = "review"
    assert TrainingSettings().columns == {}


def test_a_recipes_later_defaults_give_way_to_what_was_chosen():
    resolved = parse_settings(["--name", "mine"], recipe={"rank": 3})
    changed = resolved.defaults(name="demo", replace=True, rank=5)
    assert (changed.settings.name, changed.settings.replace) == ("mine", True)
    assert changed.settings.rank == 3
    assert (changed.origins["name"], changed.origins["replace"]) == ("command line", "recipe")
    assert resolved.origins["replace"] == "default"


def test_what_was_left_open_is_filled_in_and_the_table_says_by_whom(tmp_path):
    left = parse_settings([]).filled("accelerate", mixed_precision="bf16", seed=5)
    assert (left.settings.mixed_precision, left.settings.seed) == ("bf16", 0)
    rows = {line.split()[0]: line.split()[1:] for line in left.table().splitlines()}
    assert rows["mixed_precision"] == ["bf16", "accelerate"]
    for chosen in (
        parse_settings(["--mixed-precision", "no"]),
        parse_settings([], {"mixed_precision": "no"}),
        parse_settings(["--config", yaml_file(tmp_path, "mixed_precision: no")]),
    ):
        assert chosen.filled("accelerate", mixed_precision="bf16") == chosen
    with pytest.raises(SettingsError, match="mixed_precision='fp8': choose one of no, bf16, fp16"):
        parse_settings([]).filled("accelerate", mixed_precision="fp8")


# ── the words of PEFT and transformers, and what tasks have of their own ─────────────────────────


@pytest.mark.parametrize(
    ("theirs", "ours", "text", "value"),
    [
        ("r", "rank", "4", 4),
        ("lora_dropout", "dropout", "0.1", 0.1),
        ("max_grad_norm", "clip", "0.5", 0.5),
        ("lr_scheduler_type", "schedule", "linear", "linear"),
        ("target_modules", "targets", "q_proj,v_proj", ("q_proj", "v_proj")),
        ("target_modules", "targets", r".*\.(q|v)_proj.{1,2}", (r".*\.(q|v)_proj.{1,2}",)),
        ("max_steps", "steps", "9", 9),
        ("gradient_accumulation_steps", "accumulation", "2", 2),
    ],
)
def test_pefts_and_transformers_words_are_taken_everywhere(tmp_path, theirs, ours, text, value):
    by_flag = parse_settings([f"--{theirs.replace('_', '-')}", text])
    assert by_flag.settings == TrainingSettings(**{ours: value})
    assert by_flag.origins[ours] == "command line"
    path = yaml_file(
        tmp_path, f"{theirs}: '{text}'" if isinstance(value, str | tuple) else f"{theirs}: {text}"
    )
    assert parse_settings(["--config", path]).settings == by_flag.settings
    assert TrainingSettings(**{theirs: value}) == by_flag.settings
    assert TrainingSettings().changed(**{theirs: value}) == by_flag.settings
    assert parse_settings([], {theirs: value}).origins[ours] == "recipe"


def test_one_setting_by_two_names_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="settings: r and rank are one setting"):
        TrainingSettings(r=4, rank=8)
    with pytest.raises(SettingsError, match=r"run.yaml: clip and max_grad_norm are one setting"):
        parse_settings(["--config", yaml_file(tmp_path, "clip: 1\nmax-grad-norm: 2")])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ((".*q_proj", "v_proj"), "give one regular expression"),
        (("(q_proj",), "no regular expression"),
    ],
)
def test_targets_that_are_no_one_pattern(targets, message):
    with pytest.raises(SettingsError, match=message):
        TrainingSettings(target_modules=targets)


def test_options_of_a_task_are_given_by_name_and_kept():
    settings = TrainingSettings(task="retrieval", temperature=0.1, max_length=32)
    assert (settings.task_options.temperature, settings.task_options.max_length) == (0.1, 32)
    assert settings.changed(query_prompt="q: ").task_options.temperature == 0.1
    assert settings.changed(temperature=0.05) == TrainingSettings(task="retrieval", max_length=32)
    other = settings.changed(task="question-answering", stride=3)
    assert other.task_options.stride == 3
    assert other.value("temperature") == other.flat()["temperature"] == 0.1
    with pytest.raises(SettingsError, match=r"^temperature=0"):
        TrainingSettings(temperature=0.0)
    with pytest.raises(SettingsError, match="pooling='max': choose one of mean, cls, last"):
        parse_settings([], {"pooling": "max"})


def test_help_puts_each_setting_into_a_group(capsys):
    with pytest.raises(SystemExit):
        parse_settings(["--help"])
    text = capsys.readouterr().out
    groups = [part.splitlines() for part in text.split("\n\n")]
    having = {lines[0]: "\n".join(lines) for lines in groups}
    assert "--temperature" in having["task retrieval:"]
    assert "--max-new-tokens" in having["task generation, translation:"]
    assert "--target-language" in having["task translation:"]
    assert "--rank" in having["adapter:"]
    assert "--r " in having["adapter:"]
    assert set(having["options:"].split()) >= {"--config"}
    assert "--steps" not in having["options:"]
