"""One call from rows to a stored adapter: `adapters_hub.train`.

Knows how a call's arguments become the settings of a run; the run itself is that of the recipes.
"""

from collections.abc import Sequence

from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.runtime.core import Runtime
from adapters_hub.training.run import Experiment
from adapters_hub.training.settings import Resolved, TrainingSettings

_OF_MODEL = {"backbone", "revision", "library", "bits", "dtype", "attn_implementation"}
"""Settings that a loaded model has already."""


def train(
    model: Runtime | str,
    rows: Sequence[Row] | str,
    *,
    task: str = "classification",
    domain: str | None = None,
    language: str | None = None,
    **settings: object,
) -> AdapterInfo:
    """Train one adapter on rows, and store it in the library; returns what is known of it.

    ``model`` is a loaded one, in which the adapter is resident afterwards, or a backbone's name.
    ``rows`` are `Row`s, of which a share is held out for dev, or a file, a folder or a Hub data
    set. With a ``domain`` (or a ``name`` for rows of several) it is a domain adapter, trained over
    the frozen language adapters that the library has for its rows; with just a ``language``, a
    language adapter. ``settings`` are those of `TrainingSettings`, and the task's options.

    Raises `SettingsError`, `DataError` or `LibraryError` before it starts to train; Ctrl-C leaves a
    checkpoint, from which the same call goes on.
    """
    given: dict[str, object] = {"task": task, **settings}
    if domain is not None:
        given["domain"] = (domain,)
    if language is not None:
        given["language"] = (language,)
    if isinstance(rows, str):
        given["data"] = rows
    if language is not None and domain is None and "name" not in given:
        given["over"] = ("none",)
    call = "adapters_hub.train(…, " + ", ".join(f"{k}={v!r}" for k, v in given.items()) + ")"
    if isinstance(model, str):
        given["backbone"] = model
    elif clash := sorted(_OF_MODEL & given.keys()):
        raise SettingsError(f"{clash[0]}: set by the model that was given; leave it out")
    chosen = TrainingSettings.of(given)
    origins = {name: "call" if name in given else "default" for name in chosen.flat()}
    experiment = Experiment(
        Resolved(chosen, origins),
        model=None if isinstance(model, str) else model,
        rows=None if isinstance(rows, str) else rows,
        command=call,
        quiet=True,
    )
    if language is not None and domain is None and chosen.name is None:
        (name,) = experiment.languages
        fresh = experiment.new_adapter(name, language=name)
    else:
        name = experiment.domain_name()
        fresh = experiment.new_adapter(name, domain=experiment.domain(name))
    experiment.check_can_train(name)
    (adapter,), _ = experiment.train([fresh])
    saved = experiment.save(adapter)
    experiment.close()
    return saved if saved is not None else experiment.library.get(name)
