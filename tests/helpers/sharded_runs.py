"""Trainings that give the same adapters on a whole backbone as on one that two processes share.

`main` is what each of two processes runs: every training, and what came of it to a file.
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

LINES = ["--no-resume", "--rank", "2", "--steps", "4", "--batch-size", "5",
         "--eval-every", "2", "--accumulation", "2", "--over", "none"]  # fmt: skip

RUNS = {
    "decoder": ("qwen3", "data", ["--task", "language-modeling"]),
    "head of the decoder": (
        "qwen3", "data", ["--task", "language-modeling", "--targets", "q_proj", "lm_head"]
    ),
    "recomputed": (
        "gemma3", "data", ["--task", "language-modeling", "--gradient-checkpointing"]
    ),
    "masked": ("bert", "data", ["--task", "language-modeling"]),
    "classification": ("bert", "data", ["--task", "classification"]),
    "head alone": ("bert", "data", ["--task", "classification"]),
    "decoder's classification": ("qwen3", "data", ["--task", "classification"]),
    "retrieval": ("bert", "pairs", ["--task", "retrieval"]),
    "matching": ("bert", "pairs", ["--task", "matching"]),
    "written": ("mt5", "answers", ["--task", "generation"]),
    "experts": (
        "qwen3-moe", "data", ["--task", "language-modeling", "--parameters", "gate_up_proj"]
    ),
    "pissa": ("qwen3", "data", ["--task", "language-modeling", "--init", "pissa"]),
    "eva": ("qwen3", "data", ["--task", "language-modeling", "--init", "eva"]),
}  # fmt: skip
"""By name: the tiny backbone's kind, the data, and settings."""


def learnt(name, backbone, data, folder):
    """The tensors of two adapters, one a language, and the scores of the test rows.

    With ten or fewer rows a process has a piece or a batch less than the other now and then.
    """
    from adapters_hub.evaluation.scores import scores_by_language
    from adapters_hub.tasks import cross_entropy
    from adapters_hub.training.run import Experiment
    from adapters_hub.training.settings import parse_settings

    cross_entropy.BLOCK_BYTES = 4 * 200 * 7  # several blocks, and not as many in each process
    given = [
        *LINES,
        *([] if "SHARDED_RUNS_ON_GPUS" in os.environ else ["--cpu"]),
        *RUNS[name][2],
        "--backbone",
        str(backbone),
        "--data",
        str(data),
    ]
    given += ["--library", str(folder / "library"), "--run-folder", str(folder / "runs")]
    experiment = Experiment(parse_settings([*given, "--language", "de", "da"]), quiet=True)
    tags = ["de", "da"]
    alone = name == "head alone"
    fresh = [experiment.new_adapter(tag, language=tag, head_only=alone) for tag in tags]
    adapters, progress = experiment.train(fresh, lambda row: tags.index(row.language))
    found = {
        f"{adapter.name} {number}": tensor.contiguous().cpu()
        for adapter in adapters
        for number, tensor in enumerate(adapter.parameters())
    }
    columns = {tag: lambda row, tag=tag: experiment.model.resolve(tag) for tag in tags}
    scores = scores_by_language(
        experiment.model, experiment.task.final(), experiment.examples["test"], columns,
        experiment.accelerator,
    )  # fmt: skip
    for metric, by_column in scores.items():
        for column, by_tag in by_column.items():
            found[f"{metric} {column}"] = torch.tensor([by_tag[tag] for tag in sorted(by_tag)])
    found["dev"] = torch.tensor([[*look.values()] for look in progress.history])
    found["tokens"] = torch.tensor([progress.tokens])
    return found, experiment


def main(folder, *names):
    """Run the trainings of these names, each process, and keep what the first one has."""
    folder = Path(folder)
    for name in names or RUNS:
        kind, data, _ = RUNS[name]
        found, experiment = learnt(name, folder / kind, folder / data, folder / name)
        process = experiment.accelerator.process_index
        held = [
            (local.numel(), whole)
            for local, whole in experiment.model.backbone.shards.local_parameters()
        ]
        found["held"] = torch.tensor(held)
        save_file(found, folder / f"{name} {process}.safetensors")
        print(name, "is done", flush=True)
    experiment.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
