"""Which adapter a language or a term of a blend means, asked of a library."""

import pytest
from helpers import adder, lora_config, site_weights, write_checkpoint, write_peft_folder

from adapters_hub.errors import (
    AmbiguousTermError,
    BackboneMismatchError,
    LanguageError,
    NotFoundError,
)
from adapters_hub.library.adapter_file import AdapterInfo, metadata
from adapters_hub.library.fingerprint import fingerprint
from adapters_hub.library.library import Library


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path / "library")


@pytest.fixture
def add(library, tmp_path):
    return adder(library, tmp_path / "sources")


def test_resolve_takes_the_exact_language_without_a_word(library, add, caplog):
    add(language="pt")
    add(language="pt-BR")
    add(language="pt-BR", domain="hotel")
    for wanted, name in [("pt", "pt"), ("Portuguese", "pt"), ("pt_br", "pt-BR")]:
        found = library.resolve(wanted)
        assert (found.info.name, found.distance) == (name, 0)
    assert not caplog.records


def test_resolve_falls_back_to_the_closest_and_says_so(library, add, caplog):
    add(language="pt-PT")
    add(language="es")
    found = library.resolve("pt-BR")
    assert (found.info.name, found.wanted, found.distance) == ("pt-PT", "pt-BR", 5)
    assert "no adapter for pt-BR (Portuguese (Brazil)); the closest is pt-PT" in found.reason
    assert [record.getMessage() for record in caplog.records] == [found.reason]
    with pytest.raises(NotFoundError):
        library.resolve("pt-BR", max_distance=4)


def test_no_language_stands_in_for_a_distant_one(library, add):
    add(language="ru")
    for look in (library.resolve, library.find):
        with pytest.raises(NotFoundError, match=r"train language --language uk"):
            look("uk")
    assert library.resolve("uk", max_distance=30).info.name == "ru"


def test_resolve_prefers_the_adapter_named_like_its_language(library, add):
    add(language="de", name="de-second")
    add(language="de", name="de-third")
    with pytest.raises(AmbiguousTermError, match=r"'de-second' or .*'de-third'"):
        library.resolve("de")
    add(language="de", name="de")
    assert library.resolve("de").info.name == "de"


def test_find_by_name_language_and_domain(library, add):
    add(language="sw")
    add(domain="hotel")
    add("notes", language="fr", domain="clinic")
    for term, name in [
        ("sw", "sw"), ("Swahili", "sw"), ("swh", "sw"), ("lang:sw", "sw"), ("lang:Swahili", "sw"),
        ("hotel", "hotel"), ("domain:hotel", "hotel"), ("notes", "notes"), ("clinic", "notes"),
        ("fr", "notes"), ("sw-KE", "sw"),
    ]:  # fmt: skip
        assert library.find(term).name == name, term
    for term in ("domain:sw", "other:sw", "hotels"):
        with pytest.raises(NotFoundError):
            library.find(term)
    with pytest.raises(LanguageError, match="'hotel' is not a language"):
        library.find("lang:hotel")


def test_pure_adapters_come_before_those_of_a_language_and_a_domain(library, add):
    add(language="de", domain="hotel")
    assert library.find("de").name == library.find("hotel").name == "de-hotel"
    add("german", language="de")
    add("stays", domain="hotel")
    assert library.find("de").name == library.resolve("de").info.name == "german"
    assert library.find("hotel").name == "stays"
    assert library.find("de-hotel").name == "de-hotel"


def test_a_word_that_is_a_language_and_a_domain(library, add):
    add(language="it")
    add("it-support", domain="it")
    with pytest.raises(AmbiguousTermError) as caught:
        library.find("it")
    assert str(caught.value) == (
        f"'it' in {library.root} could be the language adapter 'it' or the domain adapter "
        "'it-support'; write lang:it or domain:it, or an adapter's full name"
    )
    assert library.find("lang:it").name == "it"
    assert library.find("domain:it").name == "it-support"
    assert library.find("it-support").name == "it-support"


def test_an_exact_name_wins_unless_the_word_also_means_others(library, add):
    add("hotel", domain="hotel")
    add("hotel.v2", domain="hotel")
    assert library.find("hotel").name == "hotel"
    assert library.find("hotel.v2").name == "hotel.v2"
    assert library.find("domain:hotel").name == "hotel"
    add("mo")
    assert library.find("mo").name == "mo"
    add(language="ro")
    with pytest.raises(AmbiguousTermError, match="the adapter named 'mo' or the language"):
        library.find("mo")
    assert library.find("lang:mo").name == "ro"


def test_the_message_of_an_ambiguous_term_shows_terms_that_can_be_written(library, add):
    add("first", domain="law")
    add("second", domain="law")
    with pytest.raises(AmbiguousTermError, match="write the adapter's name"):
        library.find("domain:law")


def test_adapters_of_another_backbone(library, add, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "base", site_weights())
    add(language="sw", backbone=str(checkpoint))
    ours = fingerprint(checkpoint)
    assert library.find("sw", ours).fingerprint == ours
    for term in ("sw", "Swahili", "lang:swh"):
        with pytest.raises(BackboneMismatchError) as caught:
            library.find(term, "other-2L-8-fedc")
        assert f"adapter:  {ours} ({checkpoint})" in str(caught.value)
        assert "backbone: other-2L-8-fedc" in str(caught.value)
    add("sw-any", language="sw")
    assert library.find("sw", "other-2L-8-fedc").name == "sw-any"


def test_adding_for_another_backbone_than_the_files_say(library, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "base", site_weights())
    ours = metadata(AdapterInfo("x", fingerprint="tiny-of-another"), lora_config())
    source = write_peft_folder(tmp_path / "x", metadata=ours)
    with pytest.raises(BackboneMismatchError) as caught:
        library.add(source, backbone=str(checkpoint))
    assert "tiny-of-another" in str(caught.value)
    assert fingerprint(checkpoint) in str(caught.value)
    assert library.names() == []
    assert library.add(source, backbone="org/not-here").fingerprint == "tiny-of-another"


def test_what_is_not_found_comes_with_the_nearest_names(library, add):
    for name in ("hotel", "bank", "clinic"):
        add(domain=name)
    for look in (library.get, library.find, library.remove):
        with pytest.raises(NotFoundError) as caught:
            look("hotell")
        assert str(caught.value) == (
            f'no adapter for "hotell" in {library.root} (have: bank, clinic, hotel; '
            "closest: hotel). Train one: "
            "adapters-hub train domain --domain hotell --data FILE"
        )
    with pytest.raises(NotFoundError, match=r"closest: none.*--language sw"):
        library.find("Swahili")


def test_a_domain_that_begins_like_a_language_is_not_taken_for_it(library):
    with pytest.raises(NotFoundError, match=r"train domain --domain hotel"):
        library.find("hotel")
