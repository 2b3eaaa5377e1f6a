"""Does adding a language adapter to a domain adapter help? Measure it, cell by cell.

    adapters-hub evaluate
    adapters-hub evaluate --task classification --data my/reviews \\
        --language en de da sv --domain hotel phone --source en --methods sum svd ties

For every language and domain of the data: the bare backbone, each adapter alone, both composed,
the source language's adapter kept, an adapter trained in the cell itself, and controls (a wrong
language's adapter, a random one of equal norm, a task adapter trained without language adapters);
several seeds, paired bootstrap over rows and seeds. Language adapters come from the library, what
the task needs is trained here. Each cell is a JSON file in --results; the same command goes on
where a run stopped, and only draws where nothing is left to do. Tables and pictures come from the
files alone: adapters-hub matrix RESULTS draws them again.
Several processes, also on a CPU: --processes 2, or by accelerate, whose own --cpu starts one:

    accelerate launch --multi_gpu --num_processes 2 -m adapters_hub.recipes.matrix --cpu
"""

from adapters_hub.evaluation.matrix_settings import MatrixSettings
from adapters_hub.evaluation.report import draw, read_cells, tables
from adapters_hub.recipes.recipe import Recipe, Result
from adapters_hub.training.settings import Resolved

SAMPLE = {"language": ("en", "de", "da", "uk"), "domain": ("hotel",), "seeds": 2}
"""Of the sample text, unless told otherwise: one domain, two languages the starter never saw."""


def evaluate_matrix(resolved: Resolved, command: str, silent: bool) -> Result:
    """Settings, cells, tables, pictures; raises what `Matrix` raises."""
    if resolved.origins["data"] == "default":
        resolved = resolved.defaults(**SAMPLE)
    from adapters_hub.evaluation.matrix import Matrix  # which brings in torch

    matrix = Matrix(resolved, command=command, quiet=silent)
    matrix.run()
    experiment, result = matrix.experiment, Result()
    if experiment.accelerator.is_main_process:
        cells = read_cells(matrix.results)
        text = tables(cells)
        readme = matrix.results / "README.md"
        readme.write_text(text + "\n", encoding="utf-8")
        experiment.print(f"\n{text}\n")
        pictures = draw(cells, matrix.results)
        for path in pictures:
            experiment.print(f"wrote {path}")
        result = {"written": [str(path) for path in (readme, *pictures)], "cells": cells}
    experiment.close()
    return result


RECIPE = Recipe(
    command="evaluate",
    description=__doc__,
    values={"rank": 8, "steps": 60, "batch_size": 16, "learning_rate": 2e-3},
    run=evaluate_matrix,
    kind=MatrixSettings,
)

if __name__ == "__main__":
    RECIPE.main()
