"""An adapter's ``README.md``: a model card with the Hub's fields, from and to `AdapterInfo`."""

import json
from collections.abc import Mapping
from pathlib import Path

from adapters_hub.errors import AdapterFileError
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.hub_fields import hub_id, language_fields, license_fields
from adapters_hub.library.results import model_index
from adapters_hub.library.safetensors_file import read_small

_MAX_BYTES = 1_000_000
_MAX_FRONT = 200_000  # letters of front matter
_MAX_SIGNS = 10_000  # of YAML's in it: a second to read, where usual cards have a hundred
_PROMPT = {"query": "before a query", "document": "before a document", "chat": "chat template"}


def write_card(info: AdapterInfo, source: str | None = None) -> str:
    """The card's text: YAML front matter, then what a reader wants to know.

    ``source`` is where it will be pulled from, such as ``hf://user/repo``.
    """
    return join_card(front_matter(info), card_body(info, source))


def front_matter(info: AdapterInfo) -> dict[str, object]:
    """The card's fields, in the form that the Hub takes."""
    base = hub_id(info.backbone)
    index = model_index(info.name, info.pipeline_tag or "text-generation", info.results)
    front: dict[str, object] = {
        "library_name": "peft",
        "base_model": base,
        "base_model_relation": "adapter" if base else None,
        **language_fields(info.language),
        **license_fields(info.license),
        "pipeline_tag": info.pipeline_tag,
        "datasets": [*info.datasets] or None,
        "tags": ["lora", "adapters_hub", *([f"domain:{info.domain}"] if info.domain else [])],
        "model-index": index or None,
    }
    return {key: value for key, value in front.items() if value is not None}


def join_card(front: Mapping[str, object], body: str) -> str:
    """A card of its fields and its text."""
    import yaml

    text = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n\n{body}"


def split_card(text: str) -> str:
    """What a card says below its fields."""
    if not text.startswith("---"):
        return text
    return text[3:].partition("\n---")[2].lstrip("\n")


def card_body(info: AdapterInfo, source: str | None = None) -> str:
    """The card's text below its fields."""
    rows = {
        "language": info.language,
        "domain": info.domain,
        "task": info.task,
        "labels": ", ".join(info.labels or ()),
        "problem type": info.problem_type,
        "pooling": info.pooling,
        **{_PROMPT.get(kind, kind): _code(text) for kind, text in info.prompts.items()},
        "backbone": info.backbone,
        "backbone fingerprint": info.fingerprint,
        "trained over": ", ".join(info.over),
        "rank": info.rank,
        "sites": info.sites,
        "parameters": f"{info.parameters:,}",
        **{metric: f"{value:.4g}" for metric, value in info.metrics.items()},
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value)
    pairs = "\n".join(
        f"| {name} | {pair.weight:g} | {pair.metric} | {pair.alone:.4g} | {pair.together:.4g} | "
        f"{pair.rows} |"
        for name, pair in sorted(info.pair_weights.items())
    )
    backbone = json.dumps(info.backbone or "…", ensure_ascii=False)
    loads = f"import adapters_hub as ah\n\nmodel = ah.load_backbone({backbone})\n"
    loads += f'model.use("{info.name}")'
    if source:
        loads = f"import adapters_hub as ah\n\nmodel = ah.load({json.dumps(source)})"
    measured = "\n".join(
        f"| {result.on} | {result.split} | {result.metric} | {result.value:.4g} | "
        f"{result.blend or info.name} |"
        for result in info.results
    )
    parts = [
        f"# {info.name}",
        info.description,
        f"| | |\n| --- | --- |\n{table}",
        f"```python\n{loads}\n```",
        f"{_RESULTS}\n{measured}" if measured else None,
        f"{_PAIRS}\n{pairs}" if pairs else None,
        _COMPANY.get(info.task or "") if info.language and not info.domain else None,
        f"Trained with:\n\n```sh\n{info.trained_with}\n```" if info.trained_with else None,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_RESULTS = "| data | split | metric | value | of |\n| --- | --- | --- | ---: | --- |"

_PAIRS = (
    "Language adapters beside this one, at the weight with the least loss on dev rows (0: adding "
    "hurts), which loading by language and domain uses:\n\n"
    "| adapter | weight | | alone | together | rows |\n| --- | ---: | --- | ---: | ---: | ---: |"
)

_COMPANY = {  # what a language adapter is good for beside others, by what it was trained for
    "retrieval": "Trained to find a text's pair (contrastive), for retrieval. That moves the space "
    "in which domain adapters live: added to adapters of other tasks it may help or hurt. So "
    "loading by language and domain leaves it out until a weight is measured "
    "(`adapters-hub fit --store`); or train one with `--objective match`.",
    "matching": "Trained so that a text's states are those of its translation in the frozen "
    "backbone (match). The space in which domain adapters live is meant to stay, so it is made to "
    "be added to them.",
}


def read_front_matter(path: Path) -> Mapping[str, object]:
    """The YAML front matter of a card, texts, lists and mappings; empty if there is none."""
    import yaml

    if not path.is_file():
        return {}
    text = read_small(path, _MAX_BYTES).decode(errors="replace")
    if not text.startswith("---"):
        return {}
    text = text[3:].split("\n---", 1)[0]
    if len(text) > _MAX_FRONT or sum(map(text.count, "\n,:[{-?&*")) > _MAX_SIGNS:
        raise AdapterFileError(f"{path}: its front matter is larger than any sound one")
    try:
        grows = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
        front = None if grows else yaml.load(text, Loader=yaml.BaseLoader)  # "no" is Norwegian
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise AdapterFileError(f"{path}: its front matter is not YAML ({error})") from None
    if grows:
        raise AdapterFileError(f"{path}: its front matter has aliases, which can grow huge")
    return front if isinstance(front, dict) else {}


def _code(text: str) -> str:
    """A text as code in a table's cell: on one line, without a bar that would end the cell."""
    return (
        f"`{text.encode('unicode_escape').decode() if not text.isprintable() else text}`".replace(
            "|", "\\|"
        )
    )
