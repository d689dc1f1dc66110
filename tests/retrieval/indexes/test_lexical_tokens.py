"""What counts as a word, in scripts with and without spaces."""

from __future__ import annotations

import pytest

from hf_ravlm.retrieval.indexes.lexical_tokens import lexical_tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("  ,.!? ", []),
        ("A red KITE, 3.5 m", ["a", "red", "kite", "3", "5", "m"]),
        ("snake_case", ["snake", "case"]),
        ("Réunion São Tomé", ["reunion", "sao", "tome"]),
        ("STRASSE straße", ["strasse", "strasse"]),
        ("ﬁsh ＡＢＣ１２", ["fish", "abc12"]),  # a ligature, and full-width forms
        ("猫", ["猫"]),
        ("大熊猫", ["大", "熊", "猫", "大熊", "熊猫"]),
        ("红色，黄色", ["红", "色", "红色", "黄", "色", "黄色"]),  # no pair crosses the comma
        ("flags stars countries buses", ["flag", "star", "country", "buse"]),
        ("glass bus toes dies", ["glass", "bus", "toe", "dy"]),
        ("5星红旗flag", ["5", "星", "红", "旗", "星红", "红旗", "flag"]),
        ("ガギ", ["ガ", "ギ", "ガギ"]),  # the voicing marks of kana are no accents
        ("ｶﾞ", ["ガ"]),
        ("한국", ["한", "국", "한국"]),
        ("ရန်ကုန်", ["ရ", "န်", "ကု", "န်", "ရန်", "န်ကု", "ကုန်"]),  # no sign without its letter, where no blank parts words
        ("ที่นี่", ["ที่", "นี่", "ที่นี่"]),
        ("ភាសា", ["ភា", "សា", "ភាសា"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # vowel signs belong to their word
        ("Привет, Ёлка", ["привет", "елка"]),
        ("தமிழ் మతం ಕನ್ನಡ", ["தமிழ்", "మతం", "ಕನ್ನಡ"]),  # Tamil, Telugu, Kannada
        ("සිංහල ދިވެހި ᨅᨔ", ["සිංහල", "ދިވެހި", "ᨅᨔ"]),  # Sinhala, Thaana, Buginese
        ("བོད་ཡིག", ["བོད", "ཡིག"]),  # Tibetan
        ("שָׁלוֹם שלום", ["שלום", "שלום"]),  # with points and without
        ("كِتَاب كتاب كتـــاب", ["كتاب", "كتاب", "كتاب"]),
        ("so\u00adft wo\u200brd", ["soft", "word"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("क्\u200dष क्ष", ["क्ष", "क्ष"]),
    ],
)
def test_tokens(text, tokens):
    assert lexical_tokens(text) == tokens


def test_a_foreign_letter_elsewhere_changes_nothing():
    """Plain English takes a short cut through the tokeniser."""
    text = "The Robin's egg -- 12 mm, pale_blue; x2!"
    assert lexical_tokens(text + " é") == [*lexical_tokens(text), "e"]
