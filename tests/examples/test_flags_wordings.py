"""The grammar of questions: rich, repeatable, and what is kept out is kept out."""

from __future__ import annotations

import random

import pytest

from flags.questions import KINDS, UNSEEN
from flags.wordings import (
    CHINESE_COUNTRIES,
    CHINESE_FRAMES,
    CHINESE_NOUNS,
    CHINESE_SENTENCES,
    FRAMES,
    KEPT_OUT,
    KEPT_OUT_CHINESE_FRAMES,
    KEPT_OUT_FRAMES,
    KEPT_OUT_SENTENCES,
    KEYWORDS,
    NOUNS,
    SENTENCES,
    ask_anyhow,
    ask_in_noise,
    ask_kept_out,
)


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ask", [ask_anyhow, ask_in_noise])
def test_a_kind_is_asked_for_in_hundreds_of_wordings_of_two_languages(kind, ask):
    rng, again = random.Random(0), random.Random(0)
    asked = [ask(kind, rng) for _ in range(2000)]
    assert asked == [ask(kind, again) for _ in range(2000)]
    assert len(set(asked)) > 800
    assert 0.25 < sum(map(is_chinese, asked)) / len(asked) < 0.35
    assert all(question.strip() and "{" not in question for question in asked)


def test_some_are_one_noun_and_some_keywords_thrown_together():
    rng = random.Random(0)
    asked = {ask_in_noise("capital", rng).casefold().rstrip("?.!:") for _ in range(10_000)}
    assert asked & set(NOUNS["capital"])
    assert {f"{noun} {whose}" for noun in NOUNS["capital"] for whose in KEYWORDS} & asked
    assert {f"{whose} {noun}" for noun in NOUNS["capital"] for whose in KEYWORDS} & asked


def test_idle_letters_begin_like_those_that_tell_what_is_asked_for():
    telling = {letter for nouns in CHINESE_NOUNS.values() for noun in nouns for letter in noun}
    begun = {letter.encode()[:2] for letter in telling}
    framed = {letter for frame in (*CHINESE_FRAMES, *CHINESE_COUNTRIES) for letter in frame}
    rng = random.Random(0)
    asked = [ask_in_noise("capital", rng, particle_share=0.5) for _ in range(3000)]
    idle = [letter for question in asked for letter in question if is_chinese(letter)]
    alike = [letter for letter in idle if letter not in telling | framed and letter.encode()[:2] in begun]
    assert len(alike) > len(idle) / 8
    assert "吗" in alike
    particles = {question[-2] for question in asked if is_chinese(question[-2:-1]) and question[-1] in "?。"}
    assert len(particles) > 100  # before the mark at the end, where 吗 stands


def test_ten_families_and_more_are_kept_out_some_of_them_chinese():
    assert len(KEPT_OUT) == len(set(KEPT_OUT)) >= 10
    assert sum(name.startswith("Chinese") for name in KEPT_OUT) >= 3
    rng = random.Random(1)
    for name in KEPT_OUT:
        for kind in KINDS:
            question = ask_kept_out(name, kind, rng)
            assert "{" not in question
            assert is_chinese(question) == name.startswith("Chinese")


def test_nothing_that_is_kept_out_is_trained_on():
    frames = [
        frame for family in (KEPT_OUT_FRAMES, KEPT_OUT_CHINESE_FRAMES) for one in family.values() for frame in one
    ]
    assert not {*frames} & {*FRAMES, *CHINESE_FRAMES}
    kept = {question for family in KEPT_OUT_SENTENCES.values() for asked in family.values() for question in asked}
    trained = {
        question for family in (SENTENCES, CHINESE_SENTENCES) for asked in family.values() for question in asked
    }
    assert not kept & trained
    assert {question for asked in UNSEEN.values() for question in asked} <= kept
    rng = random.Random(2)
    asked = {ask(kind, rng).casefold() for kind in KINDS for ask in (ask_anyhow, ask_in_noise) for _ in range(3000)}
    beginnings = [frame.split("{")[0].casefold() for frame in frames if len(frame.split("{")[0]) > 8]
    assert len(beginnings) >= 10
    assert [question for question in asked if question.startswith(tuple(beginnings))] == []
    assert not asked & {question.casefold() for question in kept}
