"""Proxies: a blend of near languages' adapters, its weights, and what is said of it."""

import math
from importlib.util import find_spec

import pytest

from adapters_hub.errors import LanguageError, NotFoundError, SettingsError
from adapters_hub.library import relatedness
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.blend import Blend
from adapters_hub.library.languages import canonical
from adapters_hub.library.library import Library
from adapters_hub.library.lookup import missing
from adapters_hub.library.paths import bundled_root
from adapters_hub.library.proxies import expand, proxy
from adapters_hub.library.relatedness import distance
from adapters_hub.library.row_terms import row_term


def infos(*tags):
    return [AdapterInfo(name=tag, language=tag) for tag in tags]


def test_distances_by_family_and_script():
    assert distance("de", "de") == 0
    assert distance("nds", "de") == pytest.approx(0.25)
    assert distance("nds", "da") == pytest.approx(0.5)
    assert distance("nds", "fr") == pytest.approx(0.75)
    assert distance("nds", "ru") == pytest.approx(0.85)  # and another script
    assert distance("nds", "zh") == 1
    assert distance("ru", "uk") == distance("uk", "ru") == pytest.approx(0.25)
    assert distance("pt-BR", "pt") == 0
    with pytest.raises(LanguageError, match="uriel"):
        distance("kgo", "de")
    with pytest.raises(SettingsError, match="choose one of family, cldr, uriel"):
        distance("de", "en", "tea")


@pytest.mark.skipif(find_spec("urielplus") is None, reason="needs urielplus")
def test_distances_by_uriel():
    near = [distance("da", tag, "uriel") for tag in ("da", "sv", "de", "ru", "zh")]
    assert near[0] == pytest.approx(0, abs=1e-3)
    assert near == sorted(near)
    assert near[-1] < 1


def test_the_table_of_families_has_canonical_tags():
    tags = relatedness._families()
    assert {tag: canonical(tag) for tag in tags} == {tag: tag for tag in tags}


def test_weights_are_a_softmax_that_adds_up():
    found = proxy("nds", infos("de", "da", "fr", "zh"), "here", temperature=0.25)
    by_name = dict(found.blend.weights)
    assert by_name.keys() == {"de", "da", "fr"}
    assert sum(by_name.values()) == pytest.approx(1)
    assert by_name["de"] / by_name["da"] == pytest.approx(math.e)
    assert by_name["da"] / by_name["fr"] == pytest.approx(math.e)
    assert found.blend.exact
    assert "0.67 of de (German, distance 0.25)" in found.reason
    two = proxy("nds", infos("de", "da", "fr"), "here", temperature=0.25, most=2)
    assert {near.language for near in two.neighbours} == {"de", "da"}
    sharp = proxy("nds", infos("de", "da"), "here", temperature=0.01)
    assert str(sharp.blend) == "de"


def test_a_language_with_an_adapter_and_one_left_out():
    there = infos("da", "sv", "en")
    assert str(proxy("da", there, "here").blend) == "da"
    left = proxy("da", there, "here", without=["Danish"])
    assert left.neighbours[0].language == "sv"
    assert "da" not in left.blend.terms


def test_of_several_adapters_of_a_language_the_one_named_as_it():
    there = [
        AdapterInfo(name="german", language="de"),
        AdapterInfo(name="de", language="de"),
        AdapterInfo(name="de-hotel", language="de", domain="hotel"),
    ]
    assert str(proxy("nds", there, "here").blend) == "de"


def test_nothing_related():
    with pytest.raises(NotFoundError, match=r"no proxy for ja \(Japanese\).*have: da, de"):
        proxy("ja", infos("da", "de"), "here")
    with pytest.raises(NotFoundError, match="is not in the table of families"):
        proxy("kgo", infos("da"), "here")
    with pytest.raises(SettingsError, match="temperature=0"):
        proxy("nds", infos("de"), "here", temperature=0)


def test_terms_in_blends():
    blend = Blend("0.5*proxy:nds + hotel - 2*proxy:ja?")
    found = expand(blend, infos("de"), "here")
    assert str(found) == "0.5*name:de + hotel"
    with pytest.raises(NotFoundError):
        expand(Blend("proxy:ja"), infos("de"), "here")


def test_messages_offer_a_proxy():
    said = missing("nds", infos("de", "da"), "here")
    assert (
        "--language nds --data FILE. Or take proxy:nds, the languages nearest to Low German" in said
    )
    assert "proxy" not in missing("ja", infos("de"), "here")
    library = Library(bundled_root())
    with pytest.raises(NotFoundError, match=r"proxy:pl, the languages nearest to Polish"):
        library.resolve("pl")
    with pytest.raises(SettingsError, match="several adapters"):
        library.find("proxy:pl")
    assert {near.language for near in library.proxy("be").neighbours} >= {"ru", "uk"}


@pytest.mark.parametrize(
    ("term", "fallback"),
    [("auto", None), ("auto?", None), ("auto?en", "en"), ("auto?proxy", "proxy"),
     ("lang:auto", None), ("lang:auto?lang:de", "lang:de")],
)  # fmt: skip
def test_row_terms(term, fallback):
    assert row_term(term).fallback == fallback
    assert Blend(f"0.5*{term} + hotel").terms == (term, "hotel")
    assert Blend(str(Blend(f"hotel - {term}"))) == Blend(f"hotel - {term}")


@pytest.mark.parametrize("term", ["automobile", "auto-de", "domain:auto", "name:auto", "en?"])
def test_other_terms(term):
    assert row_term(term) is None
