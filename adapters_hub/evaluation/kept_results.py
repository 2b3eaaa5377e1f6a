"""A matrix's numbers, kept with the adapters that it trained, for their cards and the Hub.

Knows the cells' files and the folder of adapters beside them; no model, no torch.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from adapters_hub.evaluation.cell_file import CellFile, Cells
from adapters_hub.library.adapter_file import read_adapter
from adapters_hub.library.atomic import new_folder
from adapters_hub.library.hub_fields import hub_id
from adapters_hub.library.results import Result
from adapters_hub.library.writing import write_adapter


def results_of(cells: Cells, data: str, benchmark: str | None = None) -> dict[str, list[Result]]:
    """Task adapter → its results on test: alone, and composed with each language's adapter.

    ``benchmark`` is the task's id in the data set, a benchmark on the Hub; ``{language}`` and
    ``{domain}`` in it stand for a cell's.
    """
    kept: dict[str, list[Result]] = defaultdict(list)
    named = hub_id(data) or Path(data).name
    for cell in cells:
        task = benchmark and _filled(benchmark, cell)
        for number, name in enumerate(cell["adapters"]["domain"]):
            for column in ("domain", *cell["composed"]):
                if column not in cell["columns"]:
                    continue
                both = f"{cell['adapters']['language']} + this adapter"
                made = both if column == "sum" else f"{both} ({column})"
                kept[name].append(
                    Result(
                        metric=cell["metric"],
                        value=cell["columns"][column]["test"][number],
                        data=named,
                        language=cell["language"],
                        domain=cell["domain"],
                        rows=cell["rows"]["test"],
                        blend=None if column == "domain" else made,
                        benchmark=task,
                    )
                )
    return kept


def keep_results(folder: Path, cells: Cells, data: str, benchmark: str | None = None) -> None:
    """Write them into the files of the adapters in a matrix's folder."""
    for name, results in results_of(cells, data, benchmark).items():
        place = folder / "adapters" / name
        if not place.is_dir():
            continue
        files = read_adapter(place, name)
        if files.info.results != tuple(results):
            with new_folder(place) as stage:
                write_adapter(files, replace(files.info, results=tuple(results)), stage)


def _filled(text: str, cell: CellFile) -> str:
    return text.replace("{language}", cell["language"]).replace("{domain}", cell["domain"] or "")
