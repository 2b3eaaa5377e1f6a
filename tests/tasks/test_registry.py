"""Tasks are found by looking: what one declares is enough for flags, help and the registry."""

from dataclasses import fields

import pytest
from helpers import run_python

import adapters_hub as ah
from adapters_hub.errors import SettingsError
from adapters_hub.library.model_card import read_front_matter
from adapters_hub.tasks import declaration_of, task_class, task_names
from adapters_hub.tasks.generation import Generation
from adapters_hub.tasks.language_modeling import LanguageModeling

NEW = """
from dataclasses import dataclass
from adapters_hub.tasks.declaration import Declaration, TaskOptions, option

@dataclass(frozen=True, kw_only=True)
class PoetryOptions(TaskOptions):
    metre: str = option("iambic", "how it sounds")

DECLARATION = Declaration("poetry", "Poetry", "text-generation", PoetryOptions)
"""


def test_a_file_is_all_it_takes_to_declare_a_task_and_needs_no_torch(tmp_path):
    (tmp_path / "poetry.py").write_text(NEW)
    code = """
import io, sys, contextlib
from adapters_hub.tasks import declarations
declarations.__path__.append(sys.argv[1])
from adapters_hub.tasks import task_names
from adapters_hub.training.settings import parse_settings
resolved = parse_settings(["--task", "poetry", "--metre", "trochaic"])
assert resolved.settings.task_options.metre == "trochaic"
assert "metre" in resolved.table() and "stride" not in resolved.table()
assert "poetry" in task_names()
out = io.StringIO()
with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
    parse_settings(["--help"])
assert "task poetry:" in out.getvalue() and "how it sounds [iambic]" in out.getvalue()
assert not {"torch", "transformers", "peft", "numpy"} & set(sys.modules), "heavy"
"""
    run_python(code, tmp_path)


@pytest.mark.parametrize("name", task_names())
def test_a_task_is_what_its_declaration_says(name):
    declaration, task = declaration_of(name), task_class(name)
    assert task.name == declaration.name == name
    assert issubclass(task, declaration.options)
    assert task.declaration is declaration
    assert {f.name for f in fields(declaration.options)} <= {f.name for f in fields(task)}


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(SettingsError, match=r"task='telepathy': choose one of classification, gen"):
        declaration_of("telepathy")
    with pytest.raises(SettingsError, match="task='telepathy': choose one of"):
        ah.TrainingSettings(task="telepathy")


@pytest.mark.parametrize(
    ("kind", "task", "tag"),
    [
        ("bert", LanguageModeling(), "fill-mask"),
        ("qwen3", LanguageModeling(), "text-generation"),
        ("mt5", Generation(), "text-generation"),
    ],
)
def test_the_card_of_a_trained_adapter_has_the_hubs_tag(tiny, tmp_path, kind, task, tag):
    from peft import LoraConfig

    model = ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")
    info = ah.AdapterInfo("one", task=task.name)
    lora = LoraConfig(target_modules="all-linear")
    saved = task.new_adapter(info, model.backbone, lora).save(tmp_path / "one")
    assert read_front_matter(saved / "README.md")["pipeline_tag"] == tag
    assert model.library.add(saved).pipeline_tag == tag
