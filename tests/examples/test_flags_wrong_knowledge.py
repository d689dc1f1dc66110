"""Worlds in which knowledge goes wrong: how much of it, where, and that nothing else changes."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from flags.questions import SHORT_KINDS
from flags.redrawn import redrawn_tasks, short_answers
from flags.world import drawing_group, load_world
from flags.wrong_knowledge import (
    FlagKnowledge,
    is_about,
    mix_strangers,
    rows_with_forgeries,
    rows_with_swaps,
    rows_with_twins,
    true_rows,
)
from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmRetriever
from tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def world():
    return load_world()


@pytest.fixture(scope="module")
def encoder():
    return RavlmEncoder(tiny_model().model, tiny_processor(max_text_length=64))


def country_of(row):
    return drawing_group(row["metadata"]["entity"])


def teller_of(row):
    return drawing_group(row["metadata"]["text_of"])


def test_half_of_the_passages_tell_of_others_under_the_same_picture(world):
    rows, wrong = true_rows(world), rows_with_swaps(world, random.Random(0))
    assert all(country_of(row) == teller_of(row) for row in rows)
    changed = [(row, other) for row, other in zip(rows, wrong) if country_of(other) != teller_of(other)]
    assert len(changed) == len(rows) // 2
    assert [row["id"] for row in rows] == [row["id"] for row in wrong]
    for row, other in changed:
        assert (row["image"], row["metadata"]["kind"]) == (other["image"], other["metadata"]["kind"])
        (source,) = [r for r in rows if r["id"] == f"{other['metadata']['text_of']}/{row['metadata']['kind']}"]
        assert (other["title"], other["text"]) == (source["title"], source["text"])
    assert wrong == rows_with_swaps(world, random.Random(0))
    assert wrong != rows_with_swaps(world, random.Random(1))


def test_twins_stand_beside_all_that_is_true(world):
    rows, doubled = true_rows(world), rows_with_twins(world, random.Random(0))
    assert doubled[: len(rows)] == rows
    assert len({row["id"] for row in doubled}) == 2 * len(rows)
    assert all(country_of(twin) != teller_of(twin) for twin in doubled[len(rows) :])
    assert Counter(row["image"] for row in doubled) == {k: 2 * n for k, n in Counter(r["image"] for r in rows).items()}


def test_forgeries_keep_the_name_and_change_the_fact(world):
    rows, forged = true_rows(world), rows_with_forgeries(world, random.Random(0))
    lies = [(row, lie) for row, lie in zip(rows, forged) if teller_of(lie) != country_of(lie)]
    assert 0.2 < len(lies) / len(rows) < 0.5
    for row, lie in lies:
        assert lie["text"] != row["text"]
        assert lie["text"].split(":")[0].endswith(world.entities[row["metadata"]["entity"]]["name"])
    honest = [(row, other) for row, other in zip(rows, forged) if teller_of(other) == country_of(other)]
    assert all(row == other for row, other in honest)


def test_countries_can_be_left_out(world):
    assert {row["metadata"]["entity"] for row in true_rows(world, ["fr", "nl"])} == set(world.entities) - {"fr", "nl"}


def test_vectors_put_together_are_those_that_the_encoder_makes(world, encoder):
    rows = [row for entity in ("fr", "nl", "jp") for row in world.passages(entity)][:20]
    built = RavlmRetriever.build(KnowledgeBase.from_dicts(rows), encoder)
    knowledge = FlagKnowledge(encoder)
    for _ in range(2):  # the second time from memory
        np.testing.assert_allclose(knowledge.retriever(rows).vectors, built.vectors, atol=1e-5)


def test_strangers_are_half_of_every_even_number(world, encoder):
    entities = ["fr", "nl", "jp", "no"]
    rows = [row for row in true_rows(world) if row["metadata"]["entity"] in (*entities, "sj")]
    retriever = FlagKnowledge(encoder).retriever(rows)
    images = [world.images[entity, "mledoze"] for entity in entities]
    questions = ["What is the capital?"] * len(entities)
    found = [
        [passage for passage in retriever.retrieve(image, question, k=len(rows))[0] if is_about(passage, entity)][:3]
        for image, question, entity in zip(images, questions, entities)
    ]
    mixed = mix_strangers(retriever, found, images, questions, entities, random.Random(0))
    places = Counter()
    for image, question, row, own, entity in zip(images, questions, mixed, found, entities):
        assert [passage for passage in row if is_about(passage, entity)] == own
        for start in range(0, len(row), 2):
            pair = row[start : start + 2]
            assert len({passage.metadata["kind"] for passage in pair}) == 1
            places[[is_about(passage, entity) for passage in pair].index(True)] += 1
        cosines = {passage.id: passage.score for passage in retriever.retrieve(image, question, k=len(rows))[0]}
        assert [passage.score for passage in row] == pytest.approx([cosines[passage.id] for passage in row], abs=1e-5)
    assert sorted(places) == [0, 1]


def test_answers_are_those_of_the_data(world):
    of_country = {entity: short_answers(row) for entity, row in world.entities.items()}
    asked = [row for row in world.questions if row["type"] in SHORT_KINDS]
    assert all(of_country[row["entity"]][row["type"]] == row["answer"] for row in asked)


def test_redrawn_questions_are_about_countries_that_nobody_saw(world):
    small = type(world)(**{**vars(world), "held_out": world.held_out[:2]})
    tasks, pictures = redrawn_tasks(small, seed=3)
    assert {task.entity for task in tasks} == set(small.held_out)
    assert not {task.entity for task in tasks} & {*world.train, *world.dev}
    assert set(pictures) == {(task.entity, task.view) for task in tasks}
    again = redrawn_tasks(small, seed=3)[1]
    assert all(picture.tobytes() == again[key].tobytes() for key, picture in pictures.items())
    assert len({picture.tobytes() for picture in pictures.values()}) == len(tasks)
