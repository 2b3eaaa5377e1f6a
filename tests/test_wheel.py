"""The wheel: it holds what git holds and no leftovers, and works from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT

hatchling_wheel = pytest.importorskip("hatchling.builders.wheel")

LEFTOVERS = (
    "adapters/my-hotel/adapter_config.json", "adapters/.lock", "adapters/.index.json",
    "adapters/.changes", "adapters/.tmp/x", "adapters_hub/__pycache__/x.pyc",
    "adapters_hub/adapters/x.py", "runs/my-hotel.bits.png", "dist/x.whl",
    "recipes/data/__pycache__/x.pyc", ".hypothesis/x",
)  # fmt: skip
PLACES = {
    "adapters_hub/": "adapters_hub/",
    "adapters/": "adapters_hub/adapters/",
    "recipes/data/": "adapters_hub/samples/data/",
    "recipes/entities/": "adapters_hub/samples/entities/",
    "recipes/questions/": "adapters_hub/samples/questions/",
}


@pytest.fixture(scope="module")
def tracked():
    """The files that git holds, of a checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no checkout of git")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def checkout(tracked, tmp_path_factory):
    """A copy of what git holds, with what the demo and the tests leave beside it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name in LEFTOVERS[:6] + LEFTOVERS[7:]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("left over")
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    """The wheel of that, built as pip builds it, without a network."""
    target = tmp_path_factory.mktemp("dist")
    (built,) = hatchling_wheel.WheelBuilder(str(checkout)).build(directory=str(target))
    return built


def test_the_wheel_holds_what_git_holds(wheel, tracked):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        there + name.removeprefix(here)
        for name in tracked
        for here, there in PLACES.items()
        if name.startswith(here)
    }
    assert inside == expected
    assert "adapters_hub/starter/model.safetensors" in inside


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """Run ``python -m adapters_hub`` from the unpacked wheel, in an empty folder."""
    site, empty = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    environment = {
        **os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    environment.pop("ADAPTERS_HUB_LIBRARY", None)

    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "adapters_hub", *arguments], cwd=empty, env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    command.folder = empty
    return command


@pytest.mark.slow
def test_a_newcomer_in_an_empty_folder(run):
    shown = run("demo", "--json")
    assert shown.returncode == 0, shown.stderr
    lines = json.loads(shown.stdout)["lines"]
    assert len(lines) == 12
    bits = {(line["language"], line["column"]): line["bits_per_byte"] for line in lines}
    for tag in ("da", "uk", "en"):
        assert bits[tag, "language + domain"] < bits[tag, "bare backbone"]

    missing = run("show", "lang:sw")
    assert missing.returncode == 1
    assert "Train one: adapters-hub train language --language sw --data FILE" in missing.stderr
    assert "recipes/" not in missing.stderr

    trained = run("train", "language", "--language", "da", "--name", "mine", "--steps", "2",
                  "--batch-size", "4", "--json", "--quiet")  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    (path,) = json.loads(trained.stdout)["written"]
    assert (run.folder / path / "adapter_config.json").is_file()
    assert (
        "adapters-hub train language --language da" in (run.folder / path / "README.md").read_text()
    )
    assert trained.stderr == ""

    cut = run("train", "domain", "--steps", "1", "--batch-size", "4", "--domain", "bank",
              "--name", "ours", "--language", "en", "--quiet")  # fmt: skip
    assert cut.returncode == 0, cut.stderr
    assert cut.stdout.splitlines()[0].endswith("ours")
