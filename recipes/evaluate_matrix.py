"""Does adding a language adapter to a domain adapter help? Measure it, cell by cell.

    accelerate launch recipes/evaluate_matrix.py
    accelerate launch recipes/evaluate_matrix.py --task classification --data my/reviews \\
        --language en de da sv --domain hotel phone --source en --methods sum svd ties
    accelerate launch --multi_gpu --num_processes 2 recipes/evaluate_matrix.py --cpu

For every language and domain of the data: the bare backbone, each adapter alone, both composed,
the source language's adapter kept, an adapter trained in the cell itself, and controls (a wrong
language's adapter, a random one of equal norm, a task adapter trained without language adapters);
several seeds, paired bootstrap over rows and seeds. Language adapters come from the library, what
the task needs is trained here. Each cell is a JSON file in --results; the same command goes on
where a run stopped, and only draws where nothing is left to do. Tables and pictures come from the
files alone: adapters-hub matrix RESULTS draws them again.
"""

from pathlib import Path

from adapters_hub.evaluation.matrix_settings import MatrixSettings
from adapters_hub.evaluation.report import draw, read_cells, tables
from adapters_hub.training.recipe import main
from adapters_hub.training.settings import parse_settings

RECIPE = {
    "data": str(Path(__file__).parent / "data"),
    "rank": 8,
    "steps": 60,
    "batch_size": 16,
    "learning_rate": 2e-3,
}
# The sample text, unless told otherwise: one domain, two languages the starter never saw.
SAMPLE = {"language": ("en", "de", "da", "uk"), "domain": ("hotel",), "seeds": 2}


def run() -> None:
    """Settings, cells, tables, pictures."""
    resolved = parse_settings(recipe=RECIPE, description=__doc__, kind=MatrixSettings)
    if resolved.origins["data"] == "recipe":
        resolved = resolved.defaults(**SAMPLE)
    from adapters_hub.evaluation.matrix import Matrix  # which brings in torch

    matrix = Matrix(resolved)
    matrix.run()
    experiment = matrix.experiment
    if experiment.accelerator.is_main_process:
        cells = read_cells(matrix.results)
        text = tables(cells)
        (matrix.results / "README.md").write_text(text + "\n", encoding="utf-8")
        print(f"\n{text}\n")
        for path in draw(cells, matrix.results):
            print(f"wrote {path}")
    experiment.close()


if __name__ == "__main__":
    main(run)
