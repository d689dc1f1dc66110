"""Questions and fictional countries: what is asked can be found, and nothing of other countries leaks in."""

from __future__ import annotations

import random
import re

import pytest

from flags import shuffled
from flags.questions import BACKGROUND, KINDS, NAMED, OFFICIAL, PARAPHRASES, SHORT_KINDS, UNSEEN, ask
from flags.shuffled import UNKNOWN, ShuffledCountries
from flags.texts import answer_values, fact_fields
from flags.world import load_world


HEADERS = {
    "capital": ("Capital of ",),
    "language": ("Official language of ", "Official languages of "),
    "currency": ("Currency of ", "Currencies of "),
    "subregion": ("Part of the world of ",),
    "flag": ("The flag of ",),
    "meaning": ("Meaning of the flag of ",),
    "facts": ("More facts about ",),
    "background": ("Background of ",),
}
NAME_HEADER = "Country or territory with this flag: "
FIELDS = {"language": "languages", "currency": "currency"}  # kind → field that lists them


@pytest.fixture(scope="module")
def world():
    return load_world()


@pytest.fixture(scope="module")
def rows(world):
    return [world.entities[country] for country in world.train]


@pytest.fixture(scope="module")
def examples(rows):
    countries = ShuffledCountries(rows, seed=3)
    return [countries.example() for _ in range(2500)]


def read_back(passage: str) -> tuple[str, str, str]:
    """Kind, country and what is said, out of the text of a passage alone."""
    if passage.startswith(NAME_HEADER):
        name = passage.removeprefix(NAME_HEADER).removesuffix(".")
        return "name", name, name
    title, _, said = passage.partition(": ")
    ((kind, header),) = [(kind, h) for kind, headers in HEADERS.items() for h in headers if title.startswith(h)]
    return kind, title.removeprefix(header), said.removesuffix(".")


def meaning_in(passage: str) -> str | None:
    """What the flag means, out of a passage on that, or behind what the flag shows."""
    _, of, said = passage.partition("Meaning of the flag of ")
    return said.partition(": ")[2].removesuffix(".") if of else None


def first_shown(kind: str, passages: list[str]) -> str | None:
    return next((said for shown, _, said in map(read_back, passages) if shown == kind), None)


def all_facts(rows: list[dict]) -> list[str]:
    facts = [f"{field};" for row in rows for _, field in fact_fields(row)]
    return facts + [f": {value}." for row in rows for value in answer_values(row).values()]


def test_questions_cover_every_kind_and_the_evaluation_wordings_stay_unseen(world):
    for wordings in (OFFICIAL, PARAPHRASES, UNSEEN):
        assert set(wordings) == set(KINDS)
    assert set(NAMED) == {*KINDS, "background"}
    assert all("{name}" in question for questions in NAMED.values() for question in questions)
    assert {(row["type"], row["question"]) for row in world.questions} == {
        (kind, OFFICIAL[kind]) for kind in KINDS if kind != "describe"
    }
    trained = {question.lower() for questions in PARAPHRASES.values() for question in questions}
    trained |= {question.lower() for question in (*OFFICIAL.values(), *BACKGROUND)}
    assert not trained & {question.lower() for questions in UNSEEN.values() for question in questions}


def test_ask_varies_and_repeats_with_the_seed():
    first, second = random.Random(0), random.Random(0)
    asked = [ask("capital", first) for _ in range(200)]
    assert asked == [ask("capital", second) for _ in range(200)]
    assert 0.2 < asked.count(OFFICIAL["capital"]) / 200 < 0.5
    assert len(set(asked)) > 15


def test_known_short_answers_stand_in_the_first_passage_that_has_them(examples):
    counted = dict.fromkeys(SHORT_KINDS, 0)
    for passages, turns in examples:
        for kind, _, answer in turns if passages else ():
            if kind == "name":
                assert read_back(passages[0])[1] == answer
            elif kind in SHORT_KINDS and answer != UNKNOWN:
                value = first_shown(kind, passages)
                assert any(answer in passage for passage in passages)
                assert value == answer or value.startswith((f"{answer}, ", f"{answer} ("))
            counted[kind] = counted.get(kind, 0) + 1
    assert min(counted.values()) > 50


def test_unknown_is_the_answer_only_where_no_passage_has_one(examples):
    unknown = [(passages, kind) for passages, turns in examples for kind, _, a in turns if passages and a == UNKNOWN]
    assert len(unknown) > 15
    for passages, kind in unknown:
        assert first_shown(kind, passages) is None
        assert kind != "meaning" or not any(map(meaning_in, passages))


def test_most_examples_ask_what_the_first_passage_answers(examples):
    """So does a good retriever in use; what comes behind must not disturb."""
    single = 0
    for passages, turns in examples:
        if passages and len(turns) == 1:
            (kind, _, answer), shown = turns[0], read_back(passages[0])[0]
            asked = shown if shown in KINDS else "describe" if shown == "flag" else "name"
            single += kind == asked and answer != UNKNOWN
    assert 0.8 < single / len(examples) < 0.95


def test_long_answers_stand_in_the_passages(examples):
    for passages, turns in examples:
        for kind, _, answer in turns:
            if kind == "meaning" and answer != UNKNOWN:
                assert answer == next(filter(None, map(meaning_in, passages)))
            if kind == "describe" and passages:
                name = read_back(passages[0])[1]
                own = {shown: text for text in reversed(passages) for shown, of, _ in [read_back(text)] if of == name}
                said = [own[shown] for shown in ("flag", "meaning") if shown in own]
                assert answer == (said or [f"Country or territory with this flag: {name}."])[0]


def test_without_passages_only_what_the_question_tells_is_known(rows):
    countries = ShuffledCountries(rows, seed=0)
    alone = [turns for passages, turns in (countries.example() for _ in range(1000)) if not passages]
    assert 20 < len(alone) < 100
    told = 0
    for kind, question, answer in (turn for turns in alone for turn in turns):
        if answer != UNKNOWN:
            first, told = question.partition(": ")[2], told + 1
            assert kind in SHORT_KINDS
            assert first.startswith((f"{answer}.", f"{answer}, ", f"{answer} ("))
    assert 1 < told / len(alone) < 4


def test_the_same_seed_gives_the_same_examples(rows, examples):
    again, other = ShuffledCountries(rows, seed=3), ShuffledCountries(rows, seed=4)
    assert [again.example() for _ in range(50)] == examples[:50]
    assert [other.example() for _ in range(50)] != examples[:50]


def test_short_contexts_are_about_one_country(rows):
    countries = ShuffledCountries(rows, seed=0)
    for passages, _ in (countries.example(short_only=True) for _ in range(200)):
        assert len(passages) <= 3
        assert len({read_back(passage)[1] for passage in passages}) <= 1


def test_facts_of_other_countries_are_never_met(world, rows):
    """Names may be, as neighbours; what is said of the countries set aside may not."""
    countries = ShuffledCountries(rows, seed=5)
    seen = "\n".join(text for _ in range(500) for text in countries.example().passages)
    learned = "\n".join([*(str(value) for row in rows for value in row.values()), *all_facts(rows)])
    for entity in world.dev + world.held_out:
        row = world.entities[entity]
        facts = dict(fact_fields(row))
        texts = [f"{facts[key]};" for key in ("official", "calling", "area") if key in facts]
        texts += [f": {value}." for kind, value in answer_values(row).items() if kind == "capital"]
        texts += [row[field] for field in ("flag_desc", "flag_meaning", "independence") if row.get(field)]
        texts += [row["background"].split(". ")[0]] if row.get("background") else []
        assert [text for text in texts if text in seen and text not in learned] == []


def test_languages_and_currencies_of_other_countries_are_never_met(world, rows):
    countries = ShuffledCountries(rows, seed=6)
    shown = [countries.example().passages for _ in range(500)]
    for kind, field in FIELDS.items():
        seen = "\n".join(text for passages in shown for text in passages if text.startswith(HEADERS[kind]))
        learned = {value for row in rows for value in row[field]}
        foreign = {value for entity in world.dev + world.held_out for value in world.entities[entity][field]} - learned
        assert len(foreign) > 10
        assert [value for value in foreign if re.search(rf"[:,] {re.escape(value)}[,.]", seen)] == []


def test_rows_without_any_value_of_a_field_are_refused(rows):
    with pytest.raises(ValueError, match="independence"):
        ShuffledCountries([{**row, "independence": None} for row in rows])


# --- Whole countries


def examples_to_choose_in(rows, found_share: float) -> list:
    countries = ShuffledCountries(rows, seed=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffled, "FOUND_SHARE", found_share)
        patch.setattr(shuffled, "USUAL_SHARE", 0.0)
        return [example for example in (countries.whole_example() for _ in range(1200)) if example.passages]


@pytest.fixture(scope="module")
def whole_examples(rows):
    return examples_to_choose_in(rows, 0.0)


@pytest.fixture(scope="module")
def found_examples(rows):
    return examples_to_choose_in(rows, 1.0)


def test_the_passage_that_answers_stands_anywhere(whole_examples):
    places = []
    for passages, turns in whole_examples:
        kinds = [read_back(passage)[0] for passage in passages]
        places += [kinds.index(kind) for kind, _, answer in turns if kind in kinds and answer != UNKNOWN]
    counts = [places.count(place) for place in range(5)]
    assert min(counts) > 0.5 * max(counts)


def test_what_a_search_brings_begins_with_the_passage_that_answers_most_times_and_is_asked_about_in_many_words(
    found_examples,
):
    first, asked = [], set()
    for passages, turns in found_examples:
        assert len(passages) <= 6
        kind, _, answer = turns[0]
        kinds = [read_back(passage)[0] for passage in passages]
        first.append(kinds[0] == ("flag" if kind == "describe" else kind) and answer != UNKNOWN)
        asked |= {question for _, question, _ in turns}
        if kind not in ("meaning", "describe"):
            assert [told for _, _, told in turns[:3]] == [answer] * 3
    assert 0.7 < sum(first) / len(first) < 0.9
    assert len(asked) > 1000


@pytest.mark.parametrize("examples", ["whole_examples", "found_examples"])
def test_every_answer_is_of_the_first_passages_country(examples, request):
    """What only a passage about another country tells is not known; of namesakes the first is meant."""
    missing = 0
    for passages, turns in request.getfixturevalue(examples):
        name = read_back(passages[0])[1]
        own = {kind: said for kind, of, said in map(read_back, reversed(passages)) if of == name}
        meant = next((meaning_in(one) for one in passages if read_back(one)[1] == name and meaning_in(one)), None)
        own |= {"meaning": meant} if meant else {}
        for kind, _, answer in turns:
            if kind == "name":
                assert answer == name
            elif kind != "describe" and answer == UNKNOWN:
                assert kind not in own
                missing += 1
            elif kind != "describe":
                assert own[kind] == answer or own[kind].startswith((f"{answer}, ", f"{answer} ("))
    assert missing > 30


def test_whole_countries_are_asked_about_in_many_words(whole_examples):
    asked = [question for _, turns in whole_examples for _, question, _ in turns]
    assert len(set(asked)) > 3000
    assert sum(map(len, (turns for _, turns in whole_examples))) / len(whole_examples) > 8
