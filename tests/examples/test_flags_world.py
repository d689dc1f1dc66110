"""The flags data that ships, and the world that reads it."""

from __future__ import annotations

import hashlib
import re

import pytest

from flags.questions import SHORT_KINDS
from flags.texts import KINDS, answer_values, cut_sentences, cut_words, fact_fields, passage_texts
from flags.world import DATA, SAME_DRAWING, VIEWS, drawing_group, load_world, split_entities
from hf_ravlm.evaluation import normalize_answer


@pytest.fixture(scope="module")
def world():
    return load_world()


def test_counts(world):
    assert (len(world.entities), len(world.images), len(world.questions)) == (250, 1338, 1083)
    assert {view for _, view in world.images} == set(VIEWS) == set(world.licences["images"])
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 7_000_000


def test_split_is_fixed_and_disjoint(world):
    """The dev countries are a promise: a figure measured on others would not compare."""
    assert (len(world.train), len(world.dev), len(world.held_out)) == (150, 40, 60)
    assert set(world.train) | set(world.dev) | set(world.held_out) == set(world.entities)
    assert world.dev[:6] == ["ax", "bg", "bl", "bt", "bw", "cn"]
    assert hashlib.sha256(" ".join(world.dev).encode()).hexdigest()[:12] == "f15f479e2613"


def test_no_dev_country_shares_its_drawing_with_another_entry(world):
    assert not set(world.dev) & {entity for group in SAME_DRAWING for entity in group}


def test_held_out_countries_show_one_drawing_and_no_question(world):
    held_out = set(world.held_out)
    assert {view for entity, view in world.images if entity in held_out} == {"mledoze"}
    assert not held_out & {row["entity"] for row in world.questions}


def test_split_ignores_order():
    entities = [f"{letter}{digit}" for letter in "abc" for digit in range(10)]
    assert split_entities(entities, 5) == split_entities(entities[::-1], 5)
    assert split_entities(entities, 5) != split_entities(entities, 5, seed=1)


def test_images_decode_upright_and_small(world):
    for key in [("ad", "openmoji"), ("np", "mledoze"), ("gb", "twemoji")]:
        if key in world.images:
            picture = world.images[key]
            assert picture.mode == "RGB"
            assert max(picture.size) <= 256
    with pytest.raises(KeyError):
        world.images["ad", "no such style"]


def test_same_drawing_is_the_same_drawing(world):
    for group in SAME_DRAWING:
        pixels = {world.images[entity, "mledoze"].tobytes() for entity in group}
        assert len(pixels) == 1
        assert {drawing_group(entity) for entity in group} == {group[0]}
    drawings = {world.images[entity, "mledoze"].tobytes() for entity in world.entities}
    assert len(drawings) == len({drawing_group(entity) for entity in world.entities})


def test_passages(world):
    rows = [passage for entity in world.entities for passage in world.passages(entity)]
    assert len({row["id"] for row in rows}) == len(rows) > 2100
    for row in rows:
        entity, kind = row["metadata"]["entity"], row["metadata"]["kind"]
        assert row["id"] == f"{entity}/{kind}"
        assert kind in KINDS
        name = world.entities[entity]["name"]
        assert name in row["title"]
        assert name in row["text"].split(":")[int(kind == "name")]  # stands for itself
        assert not re.search(r"None|null|: ;|  ", row["text"])
        assert row["image"] is world.images.encoded[entity, "mledoze"]
        assert row["licence"] == ("ODbL-1.0" if kind in (*SHORT_KINDS, "facts") else "public domain")
        assert row["url"].startswith("https://github.com/")


def test_every_fact_that_is_asked_for_has_a_passage_of_its_own(world):
    for row in world.entities.values():
        texts = passage_texts(row)
        assert list(texts) == [kind for kind in KINDS if kind in texts]  # in one order, none beside them
        assert texts["name"][1] == f"Country or territory with this flag: {row['name']}."
        asked = [kind for kind in SHORT_KINDS[1:] if kind in texts]
        assert asked == list(answer_values(row))
        for kind in asked:
            assert texts[kind][1].endswith(f" {row['name']}: {answer_values(row)[kind]}.")


def test_passages_name_whose_words_they_are(world):
    """Facts that people ask for are the country list's alone; the almanac adds to the others or wrote them."""
    facts, almanac = (f"{world.licences[name]['source']} (" for name in ("facts", "factbook"))
    for entity, row in world.entities.items():
        for passage in world.passages(entity):
            kind = passage["metadata"]["kind"]
            assert (facts in passage["source"]) == (kind in (*SHORT_KINDS, "facts"))
            assert (almanac in passage["source"]) == (kind not in SHORT_KINDS and bool(row["factbook"]))
            if kind not in (*SHORT_KINDS, "facts"):
                assert passage["url"].endswith(row["factbook"])


def test_every_answer_stands_in_the_passage_of_its_kind(world):
    """Otherwise no reader could answer them, however good."""
    for question in world.questions:
        _, text = passage_texts(world.entities[question["entity"]])[question["type"]]
        assert any(normalize_answer(answer) in normalize_answer(text) for answer in question["answer"]), question


def test_missing_values_are_left_out():
    row = {"name": "Utopia", "capital": None, "area": -1, "languages": [], "currency": None, "subregion": ""}
    assert fact_fields(row) == []
    assert answer_values(row) == {}
    assert list(passage_texts({**row, "flag_meaning": "hope", "background": ""})) == ["name", "meaning"]


def test_values_end_where_they_seem_to_end():
    """A full stop closes a passage and ";" parts fields, so values have neither at their ends or inside."""
    row = {"name": "Utopia", "capital": "Washington, D.C.", "languages": ["A", "B; C"], "official": " State;  of it. "}
    texts = {kind: text for kind, (_, text) in passage_texts(row).items()}
    assert texts["capital"] == "Capital of Utopia: Washington, D.C."
    assert texts["language"] == "Official languages of Utopia: A, B, C."
    assert texts["facts"] == "More facts about Utopia: Official name: State, of it."


@pytest.mark.parametrize(
    ("text", "limit", "cut"),
    [
        ("One. Two. Thr", 600, "One. Two."),
        ("One. Two. Three.", 10, "One. Two."),
        ('He said "no." Then', 600, 'He said "no."'),
        ("Under J. F. Kennedy it grew. Then", 600, "Under J. F. Kennedy it grew."),
        ("No sentence ends here, at all", 24, "No sentence ends here ..."),
    ],
)
def test_cut_sentences(text, limit, cut):
    assert cut_sentences(text, limit) == cut


def test_cut_words():
    assert cut_words("one two three", 3) == "one two three"
    assert cut_words("one two, three", 2) == "one two ..."


def test_backgrounds_are_whole_sentences(world):
    for row in world.entities.values():
        if row["background"]:
            assert len(cut_sentences(row["background"])) <= 604
