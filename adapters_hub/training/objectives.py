"""How a language adapter is trained: what was asked for, else what the data and backbone allow.

Knows the names of objectives from what tasks declare, rows, and the outline of a checkpoint. Loads
no weights.
"""

from collections.abc import Mapping, Sequence

from adapters_hub.backbone.loading import outline
from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.tasks.registry import declaration_of, declarations
from adapters_hub.training.settings import Resolved


def objectives() -> dict[str, str]:
    """The name of each objective → the task that trains it."""
    return {name: task.name for task in declarations() for name in task.objectives}


def with_objective(resolved: Resolved, splits: Mapping[str, Sequence[Row]]) -> Resolved:
    """The settings with the task of ``--objective``; chosen, where neither is given.

    The origin of the setting, in the printed table, says why. Raises `SettingsError` for an
    objective that a task or the backbone does not go with.
    """
    settings, origins = resolved.settings, resolved.origins
    kind, has_head = outline(
        settings.backbone, settings.revision, trust_remote_code=settings.trust_remote_code
    )
    predicts = {"encoder": "masked", "decoder": "causal"}.get(kind) if has_head else None
    given = settings.objective
    if origins["task"] in ("default", "recipe"):
        chosen, why = (given, "") if given else _allowed(splits, kind, predicts)
    else:
        names = declaration_of(settings.task).objectives
        if not names:
            raise SettingsError(
                f"task={settings.task!r}: a language adapter is trained by one of "
                f"{', '.join(sorted(set(objectives().values())))}; lora_domain.py takes the others"
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
    settings = settings.changed(objective=chosen, task=task)
    shown = {"objective": why or origins["objective"], "task": f"objective {chosen}"}
    return Resolved(settings, {**origins, **{k: v for k, v in shown.items() if v}})


def _allowed(
    splits: Mapping[str, Sequence[Row]], kind: str, predicts: str | None
) -> tuple[str, str]:
    """The objective of a run that names none, and the reason in words."""
    paired = _are_pairs(splits)
    if paired and kind != "decoder":
        return "match", "rows are pairs: keeps the space in which domain adapters live"
    if predicts is not None:
        return predicts, f"the {kind}'s objective" + ("" if paired else "; rows are no pairs")
    raise SettingsError(
        "no objective fits: the checkpoint has no language-model head, and the rows are no pairs; "
        "give each a translation into a language that the backbone knows (a field positive, or "
        "rows of the same id), or take a backbone whose checkpoint has a head"
    )


def _are_pairs(splits: Mapping[str, Sequence[Row]]) -> bool:
    """Whether rows have a ``positive``, or share their ids with rows in other languages."""
    languages: dict[str, str | None] = {}
    for row in splits.get("train") or [row for rows in splits.values() for row in rows]:
        if row.fields.get("positive"):
            return True
        if row.key and languages.setdefault(row.key, row.language) != row.language:
            return True
    return False
