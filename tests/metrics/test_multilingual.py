"""Answers and captions of people who do not write ASCII."""

from __future__ import annotations

import sys

import pytest

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.evaluation.questions import Question
from hf_ravlm.evaluation.scoring import score_answers
from hf_ravlm.metrics import bleu, caption_tokens, exact_match, token_f1, unicode_tokens, vqa_accuracy


@pytest.mark.parametrize(
    ("said", "accepted"),
    [
        ("北京。", "北京"),
        ("「東京」", "東京"),
        ("Cafe\u0301", "café"),
        ("\u22125", "-5"),
        ("－５", "-5"),
        ("ＡＢＣ", "abc"),
        ("１２", "12"),
        ("٣", "3"),
        ("३.५", "3.5"),
        ("1,000", "1000"),
        ("¿Qué?", "qué"),
        ("«Париж»", "париж"),
        ("STRASSE", "straße"),
        ("คน\u200b", "คน"),
        ("كتـــاب؟", "كتاب"),
        ("the ﬁsh", "fish"),
        ("well—known", "well-known"),
        ("ﾜﾝﾋﾟｰｽ", "ワンピース"),
    ],
)
def test_what_means_the_same_is_the_same(said, accepted):
    assert exact_match(said, accepted, normalizer="unicode") == 1.0
    assert token_f1(said, accepted, normalizer="unicode") == 1.0
    assert vqa_accuracy(said, [accepted] * 10, normalizer="unicode") == 1.0


@pytest.mark.parametrize(
    ("said", "accepted"), [("-5", "5"), ("3.5", "35"), ("e", "é"), ("北京", "南京"), ("か", "が")]
)
def test_what_does_not_is_not(said, accepted):
    assert exact_match(said, accepted, normalizer="unicode") == 0.0


def test_the_official_normaliser_is_as_it_was():
    assert exact_match("北京。", "北京") == 0.0
    with pytest.raises(InvalidInputError, match="Choose one of squad, unicode"):
        exact_match("a", "a", normalizer="icu")
    with pytest.raises(InvalidInputError, match="Choose one of vqa, unicode"):
        vqa_accuracy("a", ["a"] * 10, normalizer="squad")


def test_scripts_without_spaces_are_counted_by_character():
    assert unicode_tokens("一只黑猫。 a cat") == ["一", "只", "黑", "猫", "cat"]
    assert token_f1("黑猫", "白猫", normalizer="unicode") == pytest.approx(0.5)
    candidates, references = ["一只黑猫坐着"], [["一只白猫坐着"]]
    question = Question("1", "?", tuple(references[0]))
    assert score_answers("rouge_l_unicode", candidates, [question]).value == pytest.approx(5 / 6)
    assert score_answers("bleu_4", candidates, [question]).value < 0.01  # one token, and another one
    assert score_answers("exact_match_unicode", ["一只白猫坐着！"], [question]).value == 1.0


def test_words_of_chinese():
    pytest.importorskip("rjieba")
    assert caption_tokens("大熊猫生活在四川。", language="zh") == ["大熊猫", "生活", "在", "四川"]
    candidate = caption_tokens("大熊猫生活在四川", language="zh")
    assert bleu([candidate], [[candidate]]).corpus == pytest.approx(1)


def test_words_of_thai():
    pytest.importorskip("pythainlp")
    assert caption_tokens("แมวสีดำนั่งบนเก้าอี้", language="th") == ["แมว", "สี", "ดำ", "นั่ง", "บน", "เก้าอี้"]


@pytest.mark.parametrize(("language", "package"), [("zh", "rjieba"), ("th", "pythainlp")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, language, package):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*hf_ravlm\[multilingual\].*characters"):
        caption_tokens("猫" if language == "zh" else "แมว", language=language)
    with pytest.raises(InvalidInputError, match="Choose one of characters, zh, th"):
        caption_tokens("猫", language="ja")
