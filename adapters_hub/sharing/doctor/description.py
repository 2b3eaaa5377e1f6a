"""Checks of what an adapter says about itself: card, language, licence."""

from collections.abc import Iterator, Mapping

from adapters_hub.errors import LanguageError
from adapters_hub.library import languages
from adapters_hub.sharing.doctor.findings import Finding, check
from adapters_hub.sharing.doctor.subject import Subject, Unread


@check
def card(subject: Subject) -> Iterator[Finding]:
    """There is a card whose front matter is YAML."""
    if isinstance(subject.card, Unread):
        yield Finding("error", "card", subject.card.why, "README.md", "put its front matter right")
    elif subject.card is None and subject.folder and not subject.ours:
        yield Finding("warning", "card", "no card", "README.md", "ask what it was trained on")


@check
def language(subject: Subject) -> Iterator[Finding]:
    """The language is a tag that everybody reads alike."""
    said = subject.ours.get("language", _front(subject).get("language"))
    if said is None:
        yield Finding(
            "note", "language", "names no language", "README.md: language",
            "adapters-hub add … --language TAG",
        )  # fmt: skip
        return
    for text in said if isinstance(said, list) else [said]:
        try:
            tag = languages.canonical(str(text))
        except LanguageError as error:
            yield Finding("warning", "language", str(error), "README.md: language", "give a tag")
            continue
        if tag != text:
            yield Finding(
                "note", "language", f"{str(text)[:40]!r} is written {tag}", "README.md: language"
            )


@check
def licence(subject: Subject) -> Iterator[Finding]:
    """It says what one may do with it."""
    said = subject.ours.get("license") or _front(subject).get("license")
    if not said:
        yield Finding(
            "warning", "licence", "no licence: nobody may use it without asking",
            "README.md: license", "ask; then adapters-hub add … --license ID",
        )  # fmt: skip
    elif said in ("other", "unknown"):
        yield Finding("note", "licence", f"{said!r}", "README.md: license", "read its terms")


@check
def card_and_configuration(subject: Subject) -> Iterator[Finding]:
    """The card and the configuration name one backbone."""
    said, base = _front(subject).get("base_model"), subject.base
    named = said if isinstance(said, list) else [said]
    if said and base and base not in named and subject.base_folder is None:
        yield Finding(
            "warning", "card and configuration",
            f"the card is for {', '.join(map(str, named))[:80]!r}, the configuration for "
            f"{base[:80]!r}",
            "base_model", "find out which; wrong ones load and give nonsense",
        )  # fmt: skip


def _front(subject: Subject) -> Mapping[str, object]:
    return subject.card if isinstance(subject.card, Mapping) else {}
