"""Prompts: a row's fields set into a template, perhaps a chat template, and as token ids.

Knows templates, tokenizers, and that adapters keep the template they were trained with; does not
know training, targets or generation.
"""

import operator
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import BackboneError, DataError, HeadError, SettingsError
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.core import Runtime
from adapters_hub.text.tokenising import cut, filler, surroundings

_KEY, _CHAT = "prompt", "chat"
_TURN = "<what the user says>"  # to find the place of in a chat template


@dataclass(frozen=True)
class Prompt:
    """A template over a row's fields, such as ``"{text}\\n"``; ``{{`` and ``}}`` are braces.

    ``chat`` makes the filled template a user's turn in the tokenizer's own chat template. Raises
    `SettingsError` for a template that is none.
    """

    template: str
    chat: bool = False

    def __post_init__(self) -> None:
        if not self.names:
            raise SettingsError(
                f"prompt={self.template!r}: name a field in braces, such as {{text}}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The fields it needs."""
        return tuple(name for _, name in self._parts() if name is not None)

    def fill(self, fields: Mapping[str, Any], where: str = "") -> str:
        """The template with a row's fields in it; `DataError` for one that the row has not."""
        out = []
        for text, name in self._parts():
            out.append(text)
            if name is None:
                continue
            value = fields.get(name)
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                what = "is missing" if value is None else f"is {value!r}, not text"
                have = ", ".join(sorted(fields)) or "none"
                raise DataError(
                    f"{where or 'a row'}: field {name!r} {what}, and the prompt "
                    f"{self.template!r} needs it (there: {have})"
                )
            out.append(str(value))
        return "".join(out)

    def stored(self) -> dict[str, str]:
        """What an adapter keeps of it; see `AdapterInfo.prompts`."""
        return {_KEY: self.template, **({_CHAT: "yes"} if self.chat else {})}

    def _parts(self) -> list[tuple[str, str | None]]:
        """(text, the field behind it); attributes, indices and formats are no part of a prompt."""
        try:
            parts = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise SettingsError(f"prompt={self.template!r}: {error}; write {{{{ for a {{") from None
        for _, name, form, conversion in parts:
            if name is not None and (form or conversion or not name.isidentifier()):
                raise SettingsError(
                    f"prompt={self.template!r}: {{{name}}} should be just a field's name; write "
                    "{{ for a {"
                )
        return [(text, name) for text, name, _, _ in parts]


def stored_prompt(info: AdapterInfo) -> Prompt | None:
    """The prompt an adapter was trained with, if it keeps one."""
    if _KEY not in info.prompts:
        return None
    return Prompt(info.prompts[_KEY], info.prompts.get(_CHAT) == "yes")


def prompt_of(model: Runtime, blend: Blend) -> Prompt | None:
    """The prompt of a resolved blend: the one that its adapters keep; None if none does.

    Raises `HeadError` for two that differ: each was trained with its own.
    """
    infos = [model.resident(name).info for name in blend.terms]
    found = {info.name: prompt for info in infos if (prompt := stored_prompt(info))}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name}: {prompt.template!r}" for name, prompt in found.items())
        raise HeadError(
            f"adapters of {str(blend)!r} were trained with different prompts ({listed}); keep one "
            "of them"
        )
    return next(iter(found.values()), None)


def prompt_ids(
    backbone: Backbone,
    texts: Sequence[str],
    chat: bool = False,
    limits: Sequence[int] | None = None,
) -> list[list[int]]:
    """Token ids of prompts, special tokens among them, each cut at its limit.

    A decoder's prompt loses its beginning, an encoder-decoder's text its end; special tokens stay.
    Raises `BackboneError` for ``chat`` without a chat template.
    """
    if not texts:
        return []  # which tokenizers do not take
    tokenizer = backbone.tokenizer
    if chat:
        texts = [_chat(text, backbone) for text in texts]
    found = tokenizer(list(texts), add_special_tokens=not chat)["input_ids"]
    if limits is not None and any(map(operator.gt, map(len, found), limits)):
        before, after = _around_chat(backbone) if chat else surroundings(tokenizer)
        for row, limit in enumerate(limits):
            if len(found[row]) > limit:
                bare = found[row][len(before) : len(found[row]) - len(after)]
                room = limit - len(before) - len(after)
                found[row] = [*before, *cut(bare, room, backbone), *after]
    return [ids or filler(tokenizer) for ids in found]


def _chat(text: str, backbone: Backbone) -> str:
    """A text as a user's turn in the chat template, up to where the answer begins."""
    if not backbone.tokenizer.chat_template:
        raise BackboneError(
            f"{backbone.name}: its tokenizer has no chat template; leave --chat out"
        )
    turn = [{"role": "user", "content": text}]
    return backbone.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


def _around_chat(backbone: Backbone) -> list[list[int]]:
    """The token ids that the chat template puts before and after a user's turn."""
    head, _, tail = _chat(_TURN, backbone).rpartition(_TURN)
    return backbone.tokenizer([head, tail], add_special_tokens=False)["input_ids"]


def check_writes(backbone: Backbone) -> None:
    """Raise `BackboneError` for a backbone that cannot write."""
    if backbone.kind == "encoder":
        what = "an encoder, which reads a text as a whole and writes none"
    elif not backbone.has_lm_head:
        what = "a bare decoder"
    else:
        return
    raise BackboneError(
        f"{backbone.name} has no head that generates text: its checkpoint is {what}; take a "
        "decoder or an encoder-decoder with a language-model head"
    )
