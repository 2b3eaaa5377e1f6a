"""The frozen adapters below a run's rows: each language's, or on request its proxy.

Knows languages, adapters' metadata and what was asked for; knows no rows and no training.
"""

import logging
from collections.abc import Callable, Iterable

from adapters_hub.errors import AmbiguousTermError, NotFoundError
from adapters_hub.library import languages, lookup
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.library.row_terms import PROXY
from adapters_hub.runtime.core import Runtime

log = logging.getLogger(__name__)
AUTO = "auto"


def adapters_below(
    model: Runtime, asked: tuple[str, ...], tags: Iterable[str]
) -> dict[str, AdapterInfo]:
    """The frozen adapter for each language: of ``tags`` those that have one, or those asked for.

    Raises `NotFoundError` and `AmbiguousTermError` for a language that was asked for by its name.
    """
    if asked in (("none",), ()):
        return {}
    named = {languages.canonical(tag) for tag in asked if tag not in (AUTO, PROXY)}
    below = {}
    for tag in sorted({*tags} if AUTO in asked or not named else named):
        try:
            info = model.residents.of_language(tag)
        except AmbiguousTermError as error:
            if tag in named:
                raise
            log.warning("rows in %s go without a language adapter: %s", tag, error)
            continue
        if info is not None:
            below[tag] = info
        elif tag in named and PROXY not in asked:
            infos = model.library.list(fingerprint=model.backbone.fingerprint)
            where = str(model.library.root)
            raise NotFoundError(f"--over: {lookup.missing(f'lang:{tag}', infos, where)}")
    return below


def proxies_below(
    model: Runtime,
    asked: tuple[str, ...],
    tags: Iterable[str],
    say: Callable[[str], None],
) -> dict[str, Blend]:
    """The proxies of languages without an adapter, where ``proxy`` was asked for; says which."""
    below: dict[str, Blend] = {}
    if PROXY not in asked:
        return below
    for tag in sorted(tags):
        proxy = model.residents.proxy(tag)
        if proxy is None:
            say(f"--over proxy: no language with an adapter is related to {tag}")
            continue
        say(f"--over proxy: {tag} has no adapter; below its rows are {proxy.reason}")
        below[tag] = proxy.blend
    return below
