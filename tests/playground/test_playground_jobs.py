"""One training beside the page: it ends in the library, is stopped, or says why not."""

import tempfile
import time
from pathlib import Path

import pytest
from conftest import WORDS
from helpers.playground import get, post, served

import adapters_hub as ah
from adapters_hub.playground import jobs

ROWS = "\n".join(f"{one} {other} {word}" for one in ("the room was", "staff", "never again")
                 for other in ("clean", "rude", "slow", "lovely") for word in WORDS[:4])  # fmt: skip
JOB = {"name": "mine", "rows": ROWS, "language": "de", "steps": 3, "batch_size": 4, "rank": 2}
RUNNING = ("starting", "training", "storing", "stopping")


@pytest.fixture
def server(play_model, tmp_path, lora_folder, monkeypatch):
    """A server with a library of its own, and a folder for all that is temporary."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    library = ah.Library(tmp_path / "library")
    folder = play_model.backbone.name
    library.add(lora_folder("qwen3", "de", task_type="CAUSAL_LM"), language="de", backbone=folder)
    with served(ah.load_backbone(folder, library=library)) as server:
        yield server


def until(server, states):
    """The job, when it is in one of some states."""
    end = time.monotonic() + 120
    while (job := get(server, "/api/job")[1])["state"] not in states:
        assert time.monotonic() < end, job
        time.sleep(0.05)
    return job


def left_behind():
    return [*Path(tempfile.gettempdir()).iterdir()]


@pytest.mark.slow
def test_a_job_ends_in_the_library(server):
    assert get(server, "/api/job")[1] == {"state": "none"}
    status, job = post(server, "/api/job", JOB)
    assert (status, job["state"], job["steps"]) == (200, "starting", 3)
    status, said = post(server, "/api/job", {**JOB, "name": "other"})
    assert (status, said["error"]) == (
        409,
        "'mine' is being trained; wait until it is done, or stop it",
    )
    asked = {"text": "the room", "blends": [{"de": 1}]}
    assert post(server, "/api/read", asked)[0] == 200  # the page goes on
    job = until(server, ("done", "failed", "stopped"))
    assert (job["state"], job["message"]) == ("done", "mine is in the library")
    assert [step for step, _ in job["loss"]] == [1, 2, 3]
    assert job["over"] == ["de"]
    assert sum(job["rows"].values()) == 48
    assert set(job["scores"]) == {"bare", "mine", "language + mine"}
    server.jobs.close()
    assert left_behind() == []
    info = server.model.library.get("mine")
    assert (info.domain, info.task, info.over, info.rank) == (
        "mine",
        "language-modeling",
        ("de",),
        2,
    )
    assert info.metrics["bits per byte, mine"] == job["scores"]["mine"]
    _, said = post(server, "/api/read", {"text": "the room", "blends": [{}, {"mine": 1}]})
    assert said["columns"][0]["bits"] != said["columns"][1]["bits"]
    status, said = post(server, "/api/job", JOB)
    assert (status, "already an adapter called 'mine'" in said["error"]) == (400, True)


@pytest.mark.slow
def test_a_job_is_stopped(server):
    post(server, "/api/job", {**JOB, "kind": "language", "steps": 5_000})
    assert (job := until(server, ("training", "failed")))["state"] == "training", job["message"]
    status, job = post(server, "/api/job/stop", {})
    assert (status, job["state"]) == (200, "stopping")
    job = until(server, ("done", "failed", "stopped"))
    assert job["state"] == "stopped"
    assert "nothing was added" in job["message"]
    server.jobs.close()
    assert "mine" not in server.model.library
    assert left_behind() == []


@pytest.mark.slow
def test_a_server_that_ends_ends_its_job(server):
    post(server, "/api/job", {**JOB, "steps": 100_000})
    process = server.jobs._job._process
    server.server_close()
    assert process.poll() is not None
    assert server.jobs.state()["state"] == "stopped"
    assert left_behind() == []


@pytest.mark.slow
def test_a_worker_that_fails_says_why(server, monkeypatch):
    job = {**JOB, "task": "classification", "format": "jsonl", "rows": '{"text": "the room"}\n'}
    post(server, "/api/job", job)
    job = until(server, ("done", "failed", "stopped"))
    assert job["state"] == "failed"
    assert "label" in job["message"]
    assert tempfile.gettempdir() not in job["message"]
    server.jobs.close()
    assert left_behind() == []

    monkeypatch.setattr(jobs.sys, "executable", "/bin/false")
    post(server, "/api/job", JOB)
    job = until(server, ("done", "failed", "stopped"))
    assert job["state"] == "failed"
    server.jobs.close()
    assert left_behind() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": ""}, "it is empty"),
        ({"rows": "text,label\na,b,c\n", "format": "csv"}, "rows.csv:2: the header has 2 cells"),
        ({"rows": "review\na\n", "format": "csv"}, "field 'text' is missing"),
        ({"rows": "review\na\n", "format": "csv", "columns": "text"}, "write NAME=COLUMN"),
        ({"name": "de"}, "already an adapter called 'de'"),
        ({"name": " "}, "it is empty"),
        ({"steps": 0}, "between 1 and"),
        ({"task": "magic"}, "choose one of"),
        ({"language": "Klingonish"}, "is not a language"),
        ({"kind": "language", "language": ""}, "say which language"),
        ({"learning_rate": "fast"}, "a number is needed"),
    ],
)
def test_what_cannot_be_trained_is_said_at_once(server, changes, words):
    status, said = post(server, "/api/job", {**JOB, **changes})
    assert (status, words in said["error"]) == (400, True), said
    assert tempfile.gettempdir() not in said["error"]
    assert get(server, "/api/job")[1] == {"state": "none"}
    assert left_behind() == []
