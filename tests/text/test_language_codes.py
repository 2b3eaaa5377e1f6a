"""A language's token: the very language, or a near one that is said, never another script."""

from types import SimpleNamespace

import pytest

from adapters_hub.errors import BackboneError
from adapters_hub.text.language_codes import code_for


def backbone(*codes):
    table = {code: number for number, code in enumerate(codes)}
    tokenizer = SimpleNamespace(src_lang=None, lang_code_to_id=table)
    return SimpleNamespace(kind="encoder-decoder", name=f"with {codes}", tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("tag", "codes", "message"),
    [
        ("sr-Latn", ("srp_Cyrl", "deu_Latn"), "srp_Cyrl.*another script .Cyrl, not Latn.*'sr"),
        ("sr-Latn", ("sr", "de"), "only sr,.*Cyrl, not Latn"),
        ("zh-TW", ("zh_CN", "en_XX"), "no code for zh-TW .*the closest of its 2 are zh_CN"),
        ("uz-Cyrl", ("uzn_Latn",), "no code for uz-Cyrl .*uzn_Latn"),
    ],
)
def test_another_script_is_refused(tag, codes, message):
    with pytest.raises(BackboneError, match=message):
        code_for(tag, backbone(*codes))


def test_the_advice_of_the_error_works():
    there = backbone("srp_Cyrl", "deu_Latn")
    with pytest.raises(BackboneError) as caught:
        code_for("sr-Latn", there)
    tag = str(caught.value).partition("give '")[2].partition("'")[0]
    assert code_for(tag, there) == "srp_Cyrl"


def test_another_language_is_said_once(caplog):
    there = backbone("deu_Latn", "nob_Latn")
    for _ in range(3):
        assert code_for("gsw", there) == "deu_Latn"
    (said,) = [record.getMessage() for record in caplog.records]
    assert "no code for gsw (Swiss German); deu_Latn" in said


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ("no", "nob_Latn"), ("de-AT", "deu_Latn"), ("sr", "srp_Cyrl"), ("sr-Cyrl", "srp_Cyrl"),
        ("zh", "zho_Hans"), ("zh-TW", "zho_Hant"),
    ],
)  # fmt: skip
def test_the_same_language_is_taken_without_a_word(tag, code, caplog):
    there = backbone("deu_Latn", "nob_Latn", "srp_Cyrl", "zho_Hans", "zho_Hant")
    assert code_for(tag, there) == code
    assert not caplog.records
