"""Prompts: a row's fields set into a template, conversations in a chat template, as token ids.

Knows templates, tokenizers, and that adapters keep the template they were trained with; does not
know training, targets or generation.
"""

import operator
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.errors import BackboneError, DataError, HeadError, SettingsError
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.core import Runtime
from adapters_hub.text.tokenising import cut, filler, surroundings

_KEY, _CHAT = "prompt", "chat"
_TURN = "<what the user says>"  # looked for in a filled chat template, to see what is around it

Conversation = Sequence[Mapping[str, str]]
"""Messages, each with a ``role`` (``system``, ``user``, ``assistant``) and a ``content``."""


@dataclass(frozen=True)
class Prompt:
    """A template over a row's fields, such as ``"{text}\\n"``; ``{{`` and ``}}`` are braces.

    ``chat`` makes the filled template a user's turn in the tokenizer's chat template. Raises
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

    def fill(self, fields: Mapping[str, object], where: str = "") -> str:
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

    Raises `HeadError` for two that differ: each was trained with one of them.
    """
    infos = [model.resident(name).info for name in blend.terms]
    prompts = {info.name: prompt for info in infos if (prompt := stored_prompt(info))}
    if len(set(prompts.values())) > 1:
        listed = ", ".join(f"{name}: {prompt.template!r}" for name, prompt in prompts.items())
        raise HeadError(
            f"adapters of {str(blend)!r} were trained with different prompts ({listed}); keep one "
            "of them"
        )
    return next(iter(prompts.values()), None)


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
    if chat:
        texts = [_user_turn(text, backbone) for text in texts]
    encoded = _encoded(texts, backbone, special_tokens=not chat)
    if limits is not None and any(map(operator.gt, map(len, encoded), limits)):
        before, after = _around_turn(backbone) if chat else surroundings(backbone.tokenizer)
        for row, limit in enumerate(limits):
            if len(encoded[row]) > limit:
                bare = encoded[row][len(before) : len(encoded[row]) - len(after)]
                room = limit - len(before) - len(after)
                encoded[row] = [*before, *cut(bare, room, backbone), *after]
    return encoded


def conversation_ids(
    backbone: Backbone, conversations: Sequence[Conversation], places: Sequence[str]
) -> list[list[int]]:
    """Token ids of conversations in the tokenizer's chat template, up to where an answer begins.

    One whose last message is the assistant's is to be gone on with, inside that message.
    ``places`` say where each is, for messages. Raises `BackboneError` for a tokenizer without a
    chat template, `SettingsError` for messages that are none or that the template refuses.
    """
    from jinja2 import TemplateError

    texts = []
    for messages, place in zip(conversations, places, strict=True):
        for number, message in enumerate(messages, 1):
            role, content = message.get("role"), message.get("content")
            if not isinstance(role, str) or not isinstance(content, str):
                raise SettingsError(
                    f"{place}, message {number}: {dict(message)!r} should have a 'role' (system, "
                    "user, assistant) and a 'content', both texts"
                )
        try:
            texts.append(_in_template(messages, backbone))
        except TemplateError as error:
            roles = ", ".join(str(message["role"]) for message in messages) or "no message"
            raise SettingsError(
                f"{place}: the chat template of {backbone.name} refuses this conversation "
                f"({roles}): {error}"
            ) from None
    return _encoded(texts, backbone, special_tokens=False)


def is_message(value: object) -> bool:
    """Whether a value is a message of a conversation: a mapping with a role and a content."""
    return isinstance(value, Mapping) and {"role", "content"} <= value.keys()


def _encoded(texts: Sequence[str], backbone: Backbone, special_tokens: bool) -> list[list[int]]:
    """Token ids of each text, one at least; a chat template brings its special tokens."""
    if not texts:
        return []  # which tokenizers do not take
    tokenizer = backbone.tokenizer
    encoded = tokenizer(list(texts), add_special_tokens=special_tokens)["input_ids"]
    return [ids or filler(tokenizer) for ids in encoded]


def _in_template(messages: Conversation, backbone: Backbone) -> str:
    """A conversation in the chat template, with what stands before an answer."""
    if not backbone.tokenizer.chat_template:
        raise BackboneError(
            f"{backbone.name}: its tokenizer has no chat template; give plain texts (in training, "
            "leave --chat out), or set backbone.tokenizer.chat_template"
        )
    goes_on = bool(messages) and messages[-1]["role"] == "assistant"
    return backbone.tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tokenize=False,
        add_generation_prompt=not goes_on,
        continue_final_message=goes_on,
    )


def _user_turn(text: str, backbone: Backbone) -> str:
    """A text as a user's turn in the chat template, up to where the answer begins."""
    return _in_template([{"role": "user", "content": text}], backbone)


def _around_turn(backbone: Backbone) -> list[list[int]]:
    """The token ids that the chat template puts before and after a user's turn."""
    head, _, tail = _user_turn(_TURN, backbone).rpartition(_TURN)
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
