"""Numbers of the import graph: modules, imports, circles, layers, and imports that go up.

python docs/import_graph.py [FOLDER]: the package below FOLDER, such as another checkout [this one].
"""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "adapters_hub"

Graph = dict[str, set[str]]


def circles(graph: Graph) -> list[set[str]]:
    """Groups of modules that reach each other (strongly connected), each module in one group."""
    reach: Graph = {}
    for start in graph:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting.extend(new)
        reach[start] = seen
    groups: list[set[str]] = []
    left = set(graph)
    while left:
        module = min(left)
        groups.append({module} | {other for other in reach[module] if module in reach[other]})
        left -= groups[-1]
    return groups


def layers(graph: Graph) -> int:
    """The longest chain of imports, where a circle counts as one."""
    groups = circles(graph)
    group_of = {module: number for number, group in enumerate(groups) for module in group}
    heights: dict[int, int] = {}

    def height(number: int) -> int:
        if number not in heights:
            below = {group_of[to] for module in groups[number] for to in graph[module]}
            heights[number] = 1 + max((height(n) for n in below - {number}), default=0)
        return heights[number]

    return max((height(number) for number in range(len(groups))), default=0)


def upward(graph: Graph, floors: list[str]) -> list[tuple[str, str]]:
    """Imports from a room to one above it; ``floors`` from the top, as in pyproject.toml."""
    floor = {room.strip(): n for n, rooms in enumerate(floors) for room in rooms.split("|")}

    def of(module: str) -> int | None:
        parts = module.split(".")
        return floor.get(parts[1]) if len(parts) > 1 else None

    return sorted(
        (one, two)
        for one, imported in graph.items()
        for two in imported
        if (a := of(one)) is not None and (b := of(two)) is not None and b < a
    )


def imports() -> Graph:
    """The package's modules, each with those it imports."""
    import grimp

    built = grimp.build_graph(PACKAGE, cache_dir=None, exclude_type_checking_imports=False)
    return {
        module: set(built.find_modules_directly_imported_by(module)) for module in built.modules
    }


def main(folder: Path) -> None:
    """Print the numbers of the package that lies in ``folder``."""
    sys.path.insert(0, str(folder))
    graph = imports()
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    floors = contracts["tool"]["importlinter"]["contracts"][0]["layers"]
    loops = [group for group in circles(graph) if len(group) > 1]
    print(f"modules {len(graph)}, imports {sum(map(len, graph.values()))}")
    print(f"circles {len(loops)}, modules in them {sum(map(len, loops))}")
    print(f"layers {layers(graph)}, imports that go up {len(upward(graph, floors))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
