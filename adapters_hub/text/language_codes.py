"""The language tokens of multilingual encoder-decoders (M2M100, NLLB, mBART): a tag → its token.

Knows such a tokenizer by its table, and CLDR's distances; nothing is listed here.
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

_SAME = 1  # CLDR's distance of two names of one language, such as no and nb
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
    """The code of a language; of one that its readers read as well, with a logged warning.

    A code of another region only (``en`` for ``en-US``) is taken without one. Raises
    `BackboneError`, with the closest codes, for a language that the tokenizer does not have, and
    for one that it has in another script only: text in it would be another text.
    """
    codes = tuple(codes_of(backbone))
    by_tag = _by_tag(codes)
    if tag in by_tag:
        return by_tag[tag]
    nearest = languages.closest(tag, by_tag)
    if nearest is None:
        raise _no_code(tag, by_tag, backbone)
    offered, distance = nearest
    (language, script), (other_language, other_script) = map(_language_and_script, (tag, offered))
    if script != other_script:
        raise BackboneError(
            f"{backbone.name}: its tokenizer has no code for {tag} ({languages.name(tag)}), only "
            f"{by_tag[offered]}, which is in another script ({other_script}, not {script}); give "
            f"{offered!r} if that is what you want"
        )
    if language != other_language and distance > _SAME:
        _say_substitute(tag, by_tag[offered], backbone.name)
    return by_tag[offered]


def special_tokens(tag: str, backbone: Backbone) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text in a language."""
    codes, tokenizer = codes_of(backbone), backbone.tokenizer
    code, every = codes[code_for(tag, backbone)], set(codes.values())
    before, after = (
        [code if token in every else token for token in tokens]
        for tokens in (tokenizer.prefix_tokens, tokenizer.suffix_tokens)
    )
    return before, after


def decoder_start(tag: str, backbone: Backbone, start: int) -> list[int]:
    """What the decoder is given before it writes in a language.

    The configuration's start token, then the language's; the language's alone in the first mBART,
    which has the language behind a text's end, and so at its start when that is moved to the right.
    """
    codes = codes_of(backbone)
    code = codes[code_for(tag, backbone)]
    behind = any(token in codes.values() for token in backbone.tokenizer.suffix_tokens)
    return [code] if behind and backbone.config.model_type == "mbart" else [start, code]


def _no_code(tag: str, by_tag: Mapping[str, str], backbone: Backbone) -> BackboneError:
    """The error for a language without a code: it names those of near languages and names."""
    name = languages.name(tag)
    codes_by_name = {languages.name(offered): code for offered, code in by_tag.items()}
    alike = difflib.get_close_matches(name, codes_by_name, n=3, cutoff=0.0)
    ranked = sorted(by_tag, key=lambda offered: (languages.distance(tag, offered), offered))[:3]
    near = [*(by_tag[offered] for offered in ranked), *(codes_by_name[name] for name in alike)]
    return BackboneError(
        f"{backbone.name}: its tokenizer has no code for {tag} ({name}); the closest of its "
        f"{len(by_tag)} are {', '.join(dict.fromkeys(near))}"
    )


@lru_cache(maxsize=256)  # so that each is said once, not in every batch
def _say_substitute(tag: str, code: str, backbone: str) -> None:
    log.warning(
        "%s: its tokenizer has no code for %s (%s); %s, another language that its readers read, "
        "is taken",
        backbone,
        tag,
        languages.name(tag),
        code,
    )


def _language_and_script(tag: str) -> tuple[str | None, str | None]:
    """The language of a tag and its script, the likeliest one (CLDR) where the tag has none."""
    import langcodes

    whole = langcodes.Language.get(tag).maximize()
    return whole.language, whole.script


@lru_cache(maxsize=8)
def _by_tag(codes: tuple[str, ...]) -> dict[str, str]:
    """Canonical tag → code, the first of those that mean the same."""
    by_tag: dict[str, str] = {}
    for code in codes:
        try:
            tag = languages.canonical(re.sub("_XX$", "", code))
        except LanguageError:
            continue  # a code that was made up, such as that of a model's dialect
        by_tag.setdefault(tag, code)
    return by_tag
