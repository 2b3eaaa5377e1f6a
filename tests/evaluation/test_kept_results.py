"""What a matrix measured is kept with its adapters, and the Hub's own readers find it there."""

import yaml
from helpers import WEIGHTS, write_peft_folder
from helpers.fake_hub import running_hub

from adapters_hub.evaluation.kept_results import keep_results, results_of
from adapters_hub.library.adapter_file import metadata, read_adapter
from adapters_hub.library.library import Library
from adapters_hub.library.results import Result


def column(*scores):
    return {"test": [*scores], "mean": 0.0, "low": 0.0, "high": 0.0, "blend": ""}


def cell(language, alone, both):
    return {
        "language": language, "domain": "hotel", "metric": "macro-F1", "rows": {"test": 50},
        "adapters": {"language": language, "domain": ["hotel.task.0", "hotel.task.1"]},
        "columns": {"bare": column(0.1, 0.1), "domain": column(*alone), "sum": column(*both)},
        "composed": {"sum": {}},
    }  # fmt: skip


CELLS = [cell("de", (0.5, 0.51), (0.7, 0.71)), cell("pt-BR", (0.4, 0.41), (0.6, 0.61))]


def matrix(folder):
    for number in (0, 1):
        source = write_peft_folder(folder / f"plain{number}", seed=number)
        name = f"hotel.task.{number}"
        info = read_adapter(source, name).info
        write_peft_folder(
            folder / "adapters" / name, seed=number,
            metadata=metadata(info, {"peft_type": "LORA", "r": 2, "lora_alpha": 4}),
        )  # fmt: skip
    return folder


def test_each_adapter_has_the_results_of_its_seed():
    kept = results_of(CELLS, "org/data")
    assert [*kept] == ["hotel.task.0", "hotel.task.1"]
    assert kept["hotel.task.1"][:2] == [
        Result("macro-F1", 0.51, "org/data", "de", "hotel", rows=50),
        Result("macro-F1", 0.71, "org/data", "de", "hotel", rows=50, blend="de + this adapter"),
    ]
    assert [result.value for result in kept["hotel.task.0"]] == [0.5, 0.7, 0.4, 0.6]
    (one, *_) = results_of(CELLS, "/home/me/reviews.csv", "{language}-{domain}")["hotel.task.0"]
    assert (one.data, one.benchmark) == ("reviews.csv", "de-hotel")


def test_they_are_written_once_into_the_files(tmp_path):
    folder = matrix(tmp_path)
    before = read_adapter(folder / "adapters/hotel.task.0")
    keep_results(folder, CELLS, "org/data")
    files = read_adapter(folder / "adapters/hotel.task.0")
    assert len(files.info.results) == 4
    assert files.header.tensors == before.header.tensors
    state = (folder / "adapters/hotel.task.0" / WEIGHTS).stat().st_ino
    keep_results(folder, CELLS, "org/data")
    assert (folder / "adapters/hotel.task.0" / WEIGHTS).stat().st_ino == state


def test_the_hub_reads_them_in_the_card(tmp_path, monkeypatch):
    from huggingface_hub import ModelCard

    keep_results(matrix(tmp_path), CELLS, "org/data")
    library = Library(tmp_path / "library")
    library.add(tmp_path / "adapters/hotel.task.0", name="hotel", domain="hotel")
    with running_hub(monkeypatch, tmp_path / "home") as hub:
        pushed = library.push("hotel", "me/hotel")
        files = hub.repositories["me/hotel"].commits[pushed.revision]
    card = ModelCard(files["README.md"].decode())
    found = [(r.dataset_config, r.metric_name, r.metric_value) for r in card.data.eval_results]
    assert found == [
        ("de", "macro-F1", 0.5), ("de", "macro-F1 of de + this adapter", 0.7),
        ("pt-BR", "macro-F1", 0.4), ("pt-BR", "macro-F1 of pt-BR + this adapter", 0.6),
    ]  # fmt: skip
    assert {r.dataset_type for r in card.data.eval_results} == {"org/data"}
    assert "| org/data (de, hotel) | test | macro-F1 | 0.5 | hotel |" in card.text
    assert not [path for path in files if path.startswith(".eval_results")]


def test_results_of_a_benchmark_are_files_of_their_own(tmp_path, monkeypatch):
    from huggingface_hub import parse_eval_result_entries

    keep_results(matrix(tmp_path), CELLS, "org/data", "{language}")
    library = Library(tmp_path / "library")
    library.add(tmp_path / "adapters/hotel.task.0", name="hotel")
    with running_hub(monkeypatch, tmp_path / "home") as hub:
        pushed = library.push("hotel", "me/hotel")
        files = hub.repositories["me/hotel"].commits[pushed.revision]
    entries = [
        entry
        for path, data in sorted(files.items())
        if path.startswith(".eval_results/") and path.endswith(".yaml")
        for entry in parse_eval_result_entries(yaml.safe_load(data))
    ]
    assert [(e.dataset_id, e.task_id, e.value) for e in entries] == [
        ("org/data", "de", 0.5), ("org/data", "de", 0.7),
        ("org/data", "pt-BR", 0.4), ("org/data", "pt-BR", 0.6),
    ]  # fmt: skip
    assert entries[1].notes == "macro-F1, de, hotel, 50 test rows, the blend de + this adapter"
    assert b"model-index" not in files["README.md"]
