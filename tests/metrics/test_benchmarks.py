"""The metrics of the benchmarks against what the official scripts said, and without their slips by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.metrics import (
    anls,
    encyclopedic_match,
    infoseek_final,
    infoseek_score,
    normalize_encyclopedic_answer,
    normalize_vqa_answer,
    vqa_accuracy,
)


SAID = json.loads((Path(__file__).parent / "oracles" / "answers.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("prediction", "answers", "score"), SAID["vqa_accuracy"])
def test_vqa_accuracy_is_that_of_the_official_script(prediction, answers, score):
    assert vqa_accuracy(prediction, answers) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(("prediction", "answers", "kind", "score"), SAID["infoseek"])
def test_infoseek_is_that_of_the_official_script(prediction, answers, kind, score):
    assert infoseek_score(prediction, answers, kind) == score


@pytest.mark.parametrize(("prediction", "answers", "kind", "score"), SAID["encyclopedic_vqa"])
def test_encyclopedic_match_is_that_of_the_official_script(prediction, answers, kind, score):
    assert encyclopedic_match(prediction, answers, kind) == score


def edit_distance(one: str, other: str) -> int:
    """By its recursive definition, without the table of the program under test."""
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return edit_distance(one[1:], other[1:])
    ways = (one[1:], other), (one, other[1:]), (one[1:], other[1:])
    return 1 + min(edit_distance(*way) for way in ways)


def test_anls_is_its_definition():
    rng, letters = random.Random(0), "ab c"
    for _ in range(200):
        said, *accepted = ("".join(rng.choices(letters, k=rng.randint(0, 5))) for _ in range(3))
        plain = [" ".join(text.split()) for text in (said, *accepted)]
        lengths = [max(len(plain[0]), len(answer)) for answer in plain[1:]]
        shares = [
            edit_distance(plain[0], answer) / n if n else 0.0 for answer, n in zip(plain[1:], lengths, strict=True)
        ]
        best = 1 - min(shares)
        assert anls(said, accepted) == pytest.approx(best if best >= 0.5 else 0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("said", "accepted", "score"),
    [
        ("University of California", ["university of california", "UC"], 1.0),
        ("1,052 m", ["1052 m"], 1 - 1 / 7),
        ("December 2nd", "december 22nd", 1 - 1 / 13),
        ("ab", "cb", 0.5),  # at the threshold, which the official script counts
        ("yes", "no", 0.0),
        ("", "no", 0.0),
        ("  ", [""], 1.0),
    ],
)
def test_anls_forgives_slips_and_no_other_answer(said, accepted, score):
    assert anls(said, accepted) == pytest.approx(score)
    with pytest.raises(InvalidInputError, match="No accepted answer"):
        anls(said, [])


def test_vqa_accuracy_leaves_each_person_out_in_turn():
    answers = ["red", "red", "red", "blue", "grey", "grey", "pink", "pink", "pink", "pink"]
    for said in {*answers, "green"}:
        each = [min(1, (answers[:i] + answers[i + 1 :]).count(said) / 3) for i in range(10)]
        assert vqa_accuracy(said, answers) == pytest.approx(sum(each) / 10)


def test_vqa_accuracy_without_slips():
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 0
    assert vqa_accuracy("Yes.", ["yes"] * 10, official_quirks=False) == 1
    many = "." * 40
    assert normalize_vqa_answer(many) == "." * 8
    assert normalize_vqa_answer(many, official_quirks=False) == ""


def test_infoseek_without_slips():
    assert infoseek_score("many", [-1, 1], "numerical") == 1
    assert infoseek_score("many", [-1, 1], "numerical", official_quirks=False) == 0
    assert infoseek_score(".5", [0.4, 0.6], "numerical", official_quirks=False) == 1
    assert infoseek_score("1888", ["1889"], "time", official_quirks=False) == 1
    assert infoseek_score("in 1887", ["1889"], "time", official_quirks=False) == 0


def test_infoseek_accepts_one_number_within_a_tenth():
    assert infoseek_score("109", [100], "numerical") == 1
    assert infoseek_score("111", [100], "numerical") == 0


def test_infoseek_final_is_the_harmonic_mean():
    assert infoseek_final(0.5, 0.25) == pytest.approx(1 / 3)


def test_a_judge_is_asked_only_where_the_words_differ():
    asked = []

    def judge(question, reference, prediction):
        asked.append((question, reference, prediction))
        return 0.5

    assert encyclopedic_match("alps", ["Alps"], question="Where?", equivalence=judge) == 1
    assert asked == []
    assert encyclopedic_match("a b", ["c && d"], "multi_answer", "Where?", judge) == 1
    assert asked == [("Where?", "c , d", "a b")]


def test_normalising_twice_changes_nothing():
    for text in ["The two dont-knows, 1,000.5", "well-known / none", "a the an"]:
        once = normalize_vqa_answer(text)
        assert normalize_vqa_answer(once) == once
        assert normalize_encyclopedic_answer(once) == normalize_encyclopedic_answer(
            normalize_encyclopedic_answer(once)
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vqa_accuracy("red", ["red"]), "at least four people"),
        (lambda: vqa_accuracy("red", "red, blue"), "at least four people"),
        (lambda: infoseek_score("5", ["about five"], "numerical"), "range of two numbers"),
        (lambda: infoseek_score("5", [], "string"), "one or more accepted answers"),
        (lambda: infoseek_score("5", ["5"], "number"), "Choose one of string, time, numerical"),
        (lambda: encyclopedic_match("red", ["the"]), "empty after normalisation"),
        (lambda: encyclopedic_match("red", []), "list of one or more references"),
        (lambda: encyclopedic_match("red", ["red"], "hard"), "Choose one of templated"),
    ],
)
def test_errors_say_what_came(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()


@pytest.mark.parametrize(
    ("said", "answer", "kind", "score"),
    [
        ("red", "crimson|red", "automatic", 1.0),
        ("red", "red", "templated", 1.0),
        ("blue", "crimson|red", "automatic", 0.0),
        ("oak and elm", "ash&&elm&&oak|pine", "multi_answer", 1.0),
        ("pine", "ash&&elm&&oak|pine", "multi_answer", 1.0),
    ],
)
def test_answers_as_encyclopedic_vqa_writes_them(said, answer, kind, score):
    assert encyclopedic_match(said, answer, kind) == score


def test_answers_as_vqa_and_infoseek_write_them():
    people = [{"answer": "net", "answer_confidence": "yes", "answer_id": n} for n in range(3)]
    people += [{"answer": "racket", "answer_confidence": "no", "answer_id": n} for n in range(3, 10)]
    assert vqa_accuracy("net", people) == pytest.approx(0.9)
    assert infoseek_score("10-11 metres", [{"wikidata": 10.5, "range": [9.5, 11.5]}], kind="numerical") == 1.0
