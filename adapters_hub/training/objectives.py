"""How a language adapter is trained: what was asked for, else what the data and backbone allow.

Knows the names of objectives from what tasks declare, rows, and the outline of a checkpoint. Loads
no weights.
"""

from collections.abc import Iterable, Mapping, Sequence

from adapters_hub.backbone.checkpoint import Checkpoint, outline
from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.tasks.registry import declaration_of, declarations
from adapters_hub.training.settings import Resolved

# 300 steps of pairs bring the states nearer and the sum with a domain adapter no further.
_DEFAULTS = {"match": {"steps": 150}}


def objectives() -> dict[str, str]:
    """The name of each objective → the task that trains it."""
    return {name: task.name for task in declarations() for name in task.objectives}


def with_objective(resolved: Resolved, splits: Mapping[str, Sequence[Row]]) -> Resolved:
    """The settings with the task of ``--objective``; chosen, where neither is given.

    The origin of the setting, in the printed table, says why. Raises `SettingsError` for an
    objective that a task or the backbone does not go with.
    """
    settings, origins = resolved.settings, resolved.origins
    checkpoint = Checkpoint(
        settings.backbone, settings.revision, trust_remote_code=settings.trust_remote_code
    )
    kind, has_head = outline(checkpoint)
    predicts = {"encoder": "masked", "decoder": "causal"}.get(kind) if has_head else None
    given = settings.objective
    if origins["task"] in ("default", "recipe"):
        chosen, why = (given, "") if given else _allowed(splits, kind, predicts)
    else:
        names = declaration_of(settings.task).objectives
        if not names:
            raise SettingsError(
                f"task={settings.task!r}: a language adapter is trained by one of "
                f"{', '.join(sorted(set(objectives().values())))}; train domain takes the others"
            )
        if given and given not in names:
            raise SettingsError(
                f"objective={given!r} is not of task={settings.task!r}; leave out one of them"
            )
        chosen = given or (names[0] if len(names) == 1 else predicts or names[0])
        why = f"task {settings.task}"
    if chosen in ("masked", "causal") and predicts not in (None, chosen):
        raise SettingsError(
            f"objective={chosen!r}: {settings.backbone} is of the kind {kind!r}, whose objective "
            f"is {predicts!r}"
        )
    task = objectives()[chosen]
    defaults = {
        name: value
        for name, value in _DEFAULTS.get(chosen, {}).items()
        if origins[name] in ("default", "recipe")
    }
    settings = settings.changed(objective=chosen, task=task, **defaults)
    shown = {"objective": why or origins["objective"]}
    shown |= dict.fromkeys(("task", *defaults), f"objective {chosen}")
    return Resolved(settings, {**origins, **{k: v for k, v in shown.items() if v}})


def _allowed(
    splits: Mapping[str, Sequence[Row]], kind: str, predicts: str | None
) -> tuple[str, str]:
    """The objective of a run that names none, and the reason in words."""
    rows = [row for split in splits.values() for row in split]
    if kind != "decoder" and any(row.fields.get("positive") for row in rows):
        return "match", "rows have a positive: keeps the space in which domain adapters live"
    if predicts is not None:
        why = "; rows have no positive" if kind == "encoder" else ""
        return predicts, f"the objective of {kind}s{why}"
    if kind != "decoder" and _share_ids(rows):
        return "match", "no head, and languages share ids: taken for translations of each other"
    raise SettingsError(
        "no objective fits: the checkpoint has no language-model head, and the rows are no pairs; "
        "give each a translation into a language that the backbone knows (a field positive, or "
        "rows of the same id), or take a backbone whose checkpoint has a head"
    )


def _share_ids(rows: Iterable[Row]) -> bool:
    """Whether rows of different languages have the same id.

    Those of text files are the numbers of their lines, which need not be translations. So it is
    asked only where nothing else could be learnt.
    """
    languages: dict[str, str | None] = {}
    return any(
        languages.setdefault(row.key, row.language) != row.language for row in rows if row.key
    )
