"""Tasks: a head, how rows are encoded, a loss, metrics. What trains or measures sees a `Task` only.

A task is two files of one name: in `declarations` what flags, cards and messages need of it (no
torch), here the task itself. `registry` finds them; no other place lists tasks.
"""

from adapters_hub.tasks.registry import declaration_of, make_task, task_class, task_names

__all__ = ["declaration_of", "make_task", "task_class", "task_names"]
