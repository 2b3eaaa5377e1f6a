"""The language tokens of multilingual encoder-decoders (M2M100, NLLB, mBART): a tag → its token.

Knows such a tokenizer by its own table, and CLDR's distances; nothing is listed here.
"""

import difflib
import logging
import re
from collections.abc import Mapping
from functools import lru_cache

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import BackboneError, LanguageError
from adapters_hub.library import languages

log = logging.getLogger(__name__)

_CODE = re.compile(r"[a-z]{2,3}_[A-Za-z]{2,4}")


def codes_of(backbone: Backbone) -> dict[str, int]:
    """A tokenizer's codes for languages → token ids; empty where it has none."""
    tokenizer = backbone.tokenizer
    if backbone.kind != "encoder-decoder" or not hasattr(tokenizer, "src_lang"):
        return {}
    table: Mapping[str, int] = getattr(tokenizer, "lang_code_to_id", None) or {
        token: tokenizer.convert_tokens_to_ids(token)
        for token in map(str, tokenizer.added_tokens_decoder.values())
        if _CODE.fullmatch(token)
    }
    return dict(table)


def code_for(tag: str, backbone: Backbone) -> str:
    """The code of a language, or of one in the same script that its readers read as well.

    One that stands in is said, unless it is the same language (CLDR's distance 0).

    Raises `BackboneError`, with the closest codes, for a language that the tokenizer has not.
    """
    by_tag = _by_tag(tuple(codes_of(backbone)))
    code = by_tag.get(tag)
    if code is None:
        script = languages.script(tag)
        alike = [other for other in by_tag if languages.script(other) == script]
        if near := languages.closest(tag, alike):
            code = by_tag[near[0]]
            if near[1]:
                log.warning("%s: no code for %s; %s stands in", backbone.name, tag, code)
    if code is None:
        name = languages.name(tag)
        names = {languages.name(other): code for other, code in by_tag.items()}
        alike = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
        ranked = sorted(by_tag, key=lambda other: (languages.distance(tag, other), other))[:3]
        codes = dict.fromkeys([*(by_tag[other] for other in ranked), *(names[a] for a in alike)])
        raise BackboneError(
            f"{backbone.name}: its tokenizer has no code for {tag} ({name}); the closest of its "
            f"{len(by_tag)} are {', '.join(codes)}"
        )
    return code


def special_tokens(tag: str, backbone: Backbone) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text in a language."""
    codes, tokenizer = codes_of(backbone), backbone.tokenizer
    own, every = codes[code_for(tag, backbone)], set(codes.values())
    before, after = (
        [own if token in every else token for token in tokens]
        for tokens in (tokenizer.prefix_tokens, tokenizer.suffix_tokens)
    )
    return before, after


def decoder_start(tag: str, backbone: Backbone, start: int) -> list[int]:
    """What the decoder is given before it writes in a language.

    The configuration's start token, then the language's; the language's alone in the first mBART,
    which has the language behind a text's end, and so at its start when that is moved to the right.
    """
    own = codes_of(backbone)[code_for(tag, backbone)]
    behind = any(token in codes_of(backbone).values() for token in backbone.tokenizer.suffix_tokens)
    return [own] if behind and backbone.config.model_type == "mbart" else [start, own]


@lru_cache(maxsize=8)
def _by_tag(codes: tuple[str, ...]) -> dict[str, str]:
    """Canonical tag → code, the first of those that mean the same."""
    found: dict[str, str] = {}
    for code in codes:
        try:
            tag = languages.canonical(re.sub("_XX$", "", code))
        except LanguageError:
            continue  # a code that was made up, such as that of a model's own dialect
        found.setdefault(tag, code)
    return found
