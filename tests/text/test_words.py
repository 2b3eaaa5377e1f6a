"""Words of every script, where nobody says what they are."""

import pytest

from adapters_hub.text.words import split_words


def test_words_of_scripts_with_spaces_and_of_single_characters():
    assert split_words("Room 214: très bien, 房间 12楼!") == [
        "Room", "214", ":", "très", "bien", ",", "房", "间", "12", "楼", "!",
    ]  # fmt: skip
    assert split_words("मैं दिल्ली में हूँ।") == ["मैं", "दिल्ली", "में", "हूँ", "।"]
    assert split_words("cafe\u0301s, می\u200cخواهم") == ["cafe\u0301s", ",", "می\u200cخواهم"]
    assert split_words("か\u3099き snake_case") == ["か\u3099", "き", "snake_case"]
    assert split_words("\u200dab -\u0301c") == ["\u200dab", "-\u0301", "c"]
    assert split_words("") == split_words(" \n") == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ฉันไปกรุงเทพมหานครเมื่อวาน", "กรุงเทพมหานคร"),  # Thai: I went to Bangkok yesterday
        ("เขาอยู่เชียงใหม่", "เชียงใหม่"),
        ("ຂ້ອຍຢູ່ວຽງຈັນ", "ວຽງຈັນ"),  # Lao: I live in Vientiane
        ("ខ្ញុំរស់នៅភ្នំពេញ", "ភ្នំពេញ"),  # Khmer: I live in Phnom Penh
        ("ကျွန်တော်ရန်ကုန်မှာနေတယ်", "ရန်ကုန်"),  # Burmese: I live in Yangon
    ],
)
def test_a_span_can_begin_and_end_at_a_name_without_spaces(text, name):
    words = split_words(text)
    assert "".join(words) == text
    ends = {0}
    for word in words:
        ends.add(max(ends) + len(word))
    start = text.index(name)
    assert {start, start + len(name)} <= ends
    assert len(words) > 5


def test_clusters_are_not_torn_apart():
    assert split_words("กำลัง") == ["กำ", "ลั", "ง"]
    assert split_words("เมื่อ") == ["เมื่", "อ"]  # a vowel before its consonant, with marks above it
    assert split_words("ไม่ 12 ๑๒") == ["ไม่", "12", "๑๒"]
    assert split_words("ພາສາລາວ") == ["ພາ", "ສາ", "ລາ", "ວ"]
    assert split_words("ភ្នំ") == ["ភ្នំ"]  # the second consonant stands below the first
    assert split_words("သတ္တ") == ["သ", "တ္တ"]
    assert split_words("abกขcd") == ["ab", "ก", "ข", "cd"]
