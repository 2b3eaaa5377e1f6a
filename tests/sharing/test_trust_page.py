"""The commands of docs/trust.md are run as they stand."""

import re
import shlex

import pytest
import yaml
from helpers import ROOT, lora_config, lora_tensors, write_peft_folder

from adapters_hub.cli import main
from adapters_hub.library.library import Library
from adapters_hub.library.trust import TrustPolicy
from adapters_hub.sharing.doctor import CHECKS

PAGE = (ROOT / "docs/trust.md").read_text(encoding="utf-8")
pytest.importorskip("model_signing.signing")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAPTERS_HUB_LIBRARY", "adapters")
    tensors = {name: tensor * 0.1 for name, tensor in lora_tensors().items()}
    config = lora_config(base_model_name_or_path="org/base")
    write_peft_folder(tmp_path / "downloads/de", tensors=tensors, config=config)
    run = []
    for line in "".join(blocks("sh")).splitlines():
        program, *arguments = shlex.split(line)
        if program == "adapters-hub":
            assert main(arguments) == 0, (line, capsys.readouterr())
            run.append(arguments[0])
        elif arguments[:2] == ["-m", "model_signing"]:
            from click.testing import CliRunner
            from model_signing._cli import main as model_signing

            result = CliRunner().invoke(model_signing, arguments[2:])
            assert result.exit_code == 0, result.output
            run.append("model_signing")
    assert run == ["doctor", "doctor", "import", "sign", "verify", "model_signing"]


def test_the_policy(tmp_path, monkeypatch):
    from adapters_hub.sharing.signing import new_key

    (text,) = blocks("yaml")
    assert yaml.safe_load(text)["keys"] == {"ops": "ops.pub", "partner": "partner.pub"}
    for name in ("ops", "partner"):
        new_key(tmp_path / name)
    (tmp_path / "trust.yaml").write_text(text)
    policy = TrustPolicy.read(Library(tmp_path).root)
    assert policy.keys("test-1") is None
    assert [key.name for key in policy.keys("de-AT")] == ["ops", "partner"]


def test_what_the_page_says_is_there():
    assert CHECKS
    for path in re.findall(r"`((?:tests|sharing)/[\w/.]+)`", PAGE):
        assert (ROOT / path).exists() or (ROOT / "adapters_hub" / path).exists(), path
    for path in re.findall(r"python (tests/\S+\.py)", PAGE):
        assert (ROOT / path).is_file()
