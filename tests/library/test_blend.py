import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters_hub.errors import BlendError
from adapters_hub.library.blend import NAME, Blend

words = st.from_regex(r"[A-Za-z0-9_äéшび]{1,6}", fullmatch=True)
names = st.builds(
    lambda first, rest: first + "".join(sep + word for sep, word in rest),
    words,
    st.lists(st.tuples(st.sampled_from(".-"), words), max_size=3),
)
kinds = st.sampled_from(["", "", "lang:", "domain:", "name:"])
terms = st.builds(lambda *parts: "".join(parts), kinds, names, st.sampled_from(["", "?"]))
numbers = st.floats(min_value=-1e6, max_value=1e6, allow_subnormal=False).filter(bool)
blends = st.dictionaries(terms, numbers, min_size=1, max_size=5).map(Blend.of)


@pytest.mark.slow
@given(blends)
@settings(max_examples=100, deadline=None)
def test_text_and_blend_are_each_others_reverse(blend):
    assert Blend.parse(str(blend)) == blend
    assert str(Blend.parse(str(blend))) == str(blend)


@pytest.mark.parametrize("text", ["1e39*de", "9e8*de + 9e8*de", "-1e10*de"])
def test_a_weight_that_float32_does_not_hold_is_refused(text):
    with pytest.raises(BlendError, match=r"1e\+09 is the most"):
        Blend.parse(text)


@pytest.mark.slow
@given(blends, blends, st.floats(min_value=-8, max_value=8).map(lambda x: round(x * 4) / 4))
@settings(max_examples=50, deadline=None)
def test_arithmetic_is_that_of_the_weights(left, right, factor):
    total = dict((left + right * factor).weights)
    for term in {*left.terms, *right.terms}:
        expected = dict(left.weights).get(term, 0.0) + dict(right.weights).get(term, 0.0) * factor
        assert total.get(term, 0.0) == expected


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("de", {"de": 1}),
        ("  de ", {"de": 1}),
        ("-de", {"de": -1}),
        ("+ de", {"de": 1}),
        ("0.5*hotel", {"hotel": 0.5}),
        ("hotel*0.5", {"hotel": 0.5}),
        ("hotel * .5", {"hotel": 0.5}),
        ("2.*de", {"de": 2}),
        ("1e-3*de", {"de": 0.001}),
        ("de*2E+2", {"de": 200}),
        ("sw + 0.5*hotel - en", {"sw": 1, "hotel": 0.5, "en": -1}),
        ("de+hotel", {"de": 1, "hotel": 1}),
        ("de -hotel", {"de": 1, "hotel": -1}),
        ("pt-BR + hotel.v2", {"pt-BR": 1, "hotel.v2": 1}),
        ("pt-BR-hotel", {"pt-BR-hotel": 1}),
        ("pt - BR", {"pt": 1, "BR": -1}),
        ("lang:it + domain:it", {"lang:it": 1, "domain:it": 1}),
        ("lang:pt-BR*0.25", {"lang:pt-BR": 0.25}),
        ("2*v2", {"v2": 2}),
        ("en? + topics", {"en?": 1, "topics": 1}),
        ("-0.5*lang:en? + name:it", {"lang:en?": -0.5, "name:it": 1}),
        ("语言 + größe", {"语言": 1, "größe": 1}),
        ("de + de", {"de": 2}),
        ("de + en - de", {"en": 1}),
    ],
)
def test_grammar(text, weights):
    assert dict(Blend.parse(text).weights) == weights


def test_a_hyphen_is_part_of_the_name_unless_a_space_comes_before_it():
    assert Blend.parse("pt-BR").terms == ("pt-BR",)
    assert Blend.parse("pt -BR").weights == (("pt", 1.0), ("BR", -1.0))


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("de hotel", "'hotel'"),
        ("de + + en", "'+ + en'"),
        ("de +", "'+'"),
        ("de + 0.5*", "'+ 0.5*'"),
        ("*de", "'*de'"),
        ("de + .hidden", "'+ .hidden'"),
        ("../x", "'../x'"),
        ("de/en", "'de/en'"),
        ("de..v2", "'de..v2'"),
        ("de + tag:it", "'+ tag:it'"),
        ("lang:", "'lang:'"),
        ("de & en", "'& en'"),
        ("nan*de", "'nan*de'"),
    ],
)
def test_errors_show_the_text_and_where_reading_stopped(text, position):
    with pytest.raises(BlendError) as caught:
        Blend.parse(text)
    assert f"{text!r} at {position}" in str(caught.value)


def test_a_missing_sign_is_said_to_be_missing():
    with pytest.raises(BlendError, match=r"'\+' or '-' with a space before it"):
        Blend.parse("de hotel")


@pytest.mark.parametrize("text", ["", "   ", "\t\n"])
def test_an_empty_text_is_no_blend(text):
    with pytest.raises(BlendError, match="empty blend"):
        Blend.parse(text)


def test_two_weights_for_one_term():
    with pytest.raises(BlendError, match="two weights for 'de'"):
        Blend.parse("2*de*3")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Blend.parse("1e999*de"),
        lambda: Blend.of({"de": math.nan}),
        lambda: Blend.of({"de": math.inf}),
        lambda: Blend.of("de") * math.inf,
        lambda: Blend.of({"de": 1e308}) + {"de": 1e308},
        lambda: Blend.of("de") / 5e-324,
    ],
)
def test_weights_are_finite(make):
    with pytest.raises(BlendError):
        make()


def test_operators_take_texts_and_mappings_on_both_sides():
    de = Blend.of("de")
    expected = Blend.parse("de + 0.5*hotel - en")
    assert de + 0.5 * Blend.of("hotel") - "en" == expected
    assert de + {"hotel": 0.5, "en": -1} == expected
    assert "de" + Blend.parse("0.5*hotel - en") == expected
    assert "de" - Blend.parse("en - 0.5*hotel") == Blend.parse("de - en + 0.5*hotel")
    assert -de == Blend.parse("-de")
    assert de / 4 == Blend.parse("0.25*de") == 0.25 * de


def test_of_everything_that_stands_for_a_blend():
    assert Blend.of(None) == Blend()
    assert Blend("de + hotel") == Blend.parse("de + hotel") == Blend({"de": 1, "hotel": 1})
    blend = Blend.parse("de")
    assert Blend.of(blend) is blend


def test_weights_that_cancel_leave_nothing():
    nothing = Blend.of("de") - "de"
    assert nothing == Blend() == Blend.of("de") * 0
    assert not nothing
    assert nothing.terms == ()
    assert str(nothing) == "none"
    assert Blend.of("de")


def test_equal_blends_hash_equal_and_serve_as_keys():
    one, other = Blend.parse("0.5*de + hotel"), Blend.parse("hotel*0") + "0.5*de+hotel"
    assert one == other
    assert hash(one) == hash(other)
    assert {one: "x"}[other] == "x"
    assert one != Blend.parse("0.25*de + hotel")


def test_a_blend_cannot_be_changed():
    with pytest.raises(AttributeError):
        Blend.parse("de").weights = ()


def test_rename_adds_up_terms_that_become_equal():
    blend = Blend.parse("lang:de + 0.5*German - hotel")
    renamed = blend.rename({"lang:de": "de", "German": "de"})
    assert renamed.weights == (("de", 1.5), ("hotel", -1.0))
    assert Blend.parse("de - German").rename({"German": "de"}) == Blend()


@given(names)
@settings(max_examples=100, deadline=None)
def test_every_name_is_a_term(name):
    assert NAME.fullmatch(name)
    assert Blend.parse(name).terms == (name,)


def test_a_list_is_never_a_sum_and_the_error_writes_it():
    with pytest.raises(BlendError, match=r"'de \+ hotel'"):
        Blend.of(["de", "hotel"])
    with pytest.raises(BlendError, match="no blend"):
        Blend.of(3)


def test_exact_names_stay_exact_in_arithmetic_and_keys():
    exact = Blend({"it": 1.0}, exact=True)
    assert len({exact, Blend("it")}) == 2  # the text may mean a language
    assert (exact + exact).exact
    assert (0.5 * exact).exact
    assert exact + None == exact
    assert exact + "de" == Blend("name:it + de")  # what is looked up says which it means
    assert Blend.of(None) == exact - exact
