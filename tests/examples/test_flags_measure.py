"""The figures: checked on a retriever and a reader whose answers are known beforehand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from flags import measure
from flags.measure import Task, answer_table, gold_ids, rank_countries, retrieval_table, score, tasks_of
from flags.questions import OFFICIAL
from flags.world import load_world


# Passage → vector. Norway, Svalbard and Bouvet Island are one drawing; the axes are Norway, Spain and Japan.
VECTORS = {
    "no/name": (0.9, 0.1, 0.0),
    "no/capital": (0.2, 0.0, 0.0),
    "sj/name": (0.8, 0.1, 0.0),
    "bv/name": (0.7, 0.1, 0.0),
    "es/name": (0.0, 0.6, 0.0),
    "es/flag": (0.1, 0.3, 0.1),
    "jp/meaning": (0.0, 0.0, 1.0),
}
PICTURES = {
    ("no", "plain"): (1.0, 0.0, 0.0),
    ("sj", "plain"): (1.0, 0.2, 0.0),
    ("es", "plain"): (1.0, 0.5, 0.0),  # looks like Norway, then like Spain
    ("jp", "plain"): (0.6, 0.6, 0.1),  # looks like both rather than like itself
    ("jp", "sketch"): (0.0, 0.0, 1.0),
}


class KnownBase(dict):
    """Passages by id, like a `KnowledgeBase`."""

    @property
    def ids(self):
        return list(self)


class KnownEncoder:
    """A picture is its own vector; remembers what was asked with it."""

    def __init__(self):
        self.questions = []

    def encode_queries(self, images, texts):
        self.questions.append(texts)
        return np.array(images, dtype=np.float32)


@pytest.fixture
def retriever():
    base = KnownBase({passage: passage for passage in VECTORS})
    vectors = np.array(list(VECTORS.values()), dtype=np.float32)
    return SimpleNamespace(encoder=KnownEncoder(), vectors=vectors, knowledge_base=base)


@pytest.fixture
def world():
    rows = {
        "no": {"name": "Norway", "flag_desc": "red; cross", "flag_meaning": "the cross for faith"},
        "es": {"name": "Spain"},
    }
    return SimpleNamespace(images=PICTURES, entities=rows, questions=[])


def test_entries_with_the_same_drawing_count_as_one_country(retriever, world):
    """Svalbard is found though Norway's passage is nearer, and the three are one place ahead of Spain, not three."""
    ranks = rank_countries(retriever, world, [("no", "plain"), ("sj", "plain"), ("es", "plain"), ("jp", "plain")])
    assert ranks.tolist() == [1, 1, 2, 3]


def test_a_country_is_as_near_as_the_best_of_its_passages(retriever, world):
    queries = [("es", "plain")]
    assert rank_countries(retriever, world, queries).tolist() == [2]
    retriever.vectors[list(VECTORS).index("es/flag")] = (0.9, 0.9, 0.0)
    assert rank_countries(retriever, world, queries).tolist() == [1]


def test_the_order_of_passages_does_not_matter(retriever, world):
    queries = list(PICTURES)
    ranks = rank_countries(retriever, world, queries)
    order = np.random.default_rng(0).permutation(len(VECTORS))
    retriever.vectors = retriever.vectors[order]
    retriever.knowledge_base = KnownBase({list(VECTORS)[i]: i for i in order})
    assert rank_countries(retriever, world, queries).tolist() == ranks.tolist()


def test_the_question_goes_with_every_picture(retriever, world):
    rank_countries(retriever, world, [("no", "plain"), ("es", "plain")])
    rank_countries(retriever, world, [("no", "plain"), ("es", "plain")], "Whose flag is this?")
    assert retriever.encoder.questions == [None, ["Whose flag is this?"] * 2]


def test_retrieval_figures_are_means_per_style(retriever, world):
    table = retrieval_table(retriever, world, ["no", "es", "jp"], ["plain", "sketch"])
    assert table["plain"] == {"hit@1": pytest.approx(1 / 3), "hit@5": 1.0, "mean rank": 2.0, "pictures": 3}
    assert table["sketch"] == {"hit@1": 1.0, "hit@5": 1.0, "mean rank": 1.0, "pictures": 1}
    assert table["mean"] == {"hit@1": pytest.approx(2 / 3), "hit@5": 1.0, "mean rank": 1.5}
    assert table["worst"] == {"hit@1": pytest.approx(1 / 3), "hit@5": 1.0, "mean rank": 2.0}
    fewer = retrieval_table(retriever, world, ["no", "es", "jp"], ["plain"], leave_out={("jp", "plain")})
    assert fewer["plain"] == {"hit@1": 0.5, "hit@5": 1.0, "mean rank": 1.5, "pictures": 2}


def test_gold_passages_are_those_that_hold_the_answer(retriever):
    def gold(entity, kind):
        return gold_ids(retriever.knowledge_base, Task(entity, "plain", kind, "?", ["!"]))

    assert gold("no", "capital") == ["no/capital"]
    assert gold("jp", "meaning") == ["jp/meaning"]
    assert gold("es", "describe") == ["es/flag"]
    assert gold("jp", "describe") == ["jp/meaning"]  # nothing is known of what it shows
    assert gold("jp", "capital") == []


def test_the_gold_passage_of_every_question_holds_its_answer():
    world = load_world()
    passages = {row["id"]: row["text"] for entity in world.entities for row in world.passages(entity)}
    for task in tasks_of(world, world.dev, ["openmoji"], list(OFFICIAL)):
        texts = [passages[passage_id] for passage_id in gold_ids(KnownBase(passages), task)]
        if task.kind == "describe":
            assert any(world.entities[task.entity]["name"] in text for text in texts)
        else:
            assert any(answer.strip(" .") in text for answer in task.answers for text in texts), task


@pytest.fixture
def reader(monkeypatch):
    """Knows one answer by heart, copies the best passage word for word, and writes down what it was given."""
    calls = []

    def answer_questions(model, processor, retriever, images, questions, k=None, evidence=None, **settings):
        calls.append({"k": k, "evidence": evidence, "questions": questions, **settings})
        if evidence is not None:
            answers = [row[0] if row else "nothing" for row in evidence]
        else:
            answers = ["Oslo" if k == 0 else question for question in questions]
        return [[SimpleNamespace(text=answer)] for answer in answers]

    monkeypatch.setattr(measure, "answer_questions", answer_questions)
    return calls


def test_answer_figures_are_means_per_kind_and_arm(retriever, world, reader):
    tasks = [
        Task("no", "plain", "capital", "Oslo", ["Oslo"]),
        Task("sj", "plain", "capital", "Longyearbyen", ["Longyearbyen"]),
        Task("es", "plain", "capital", "Barcelona", ["Madrid"]),
        Task("es", "plain", "name", "Spain", ["Spain"]),
        Task("jp", "plain", "meaning", "sun", ["the red sun"]),
    ]
    retriever.knowledge_base = KnownBase({"no/capital": "Oslo", "es/name": "Spain", "jp/meaning": "the sun"})
    table = answer_table(None, None, retriever, world, tasks)
    assert table["capital"] == {
        "closed-book": {"exact match": pytest.approx(1 / 3)},
        "retrieved": {"exact match": pytest.approx(2 / 3)},
        "gold": {"exact match": pytest.approx(1 / 3)},
    }
    assert table["name"] == {
        "closed-book": {"exact match": 0.0},
        "retrieved": {"exact match": 1.0},
        "gold": {"exact match": 1.0},
    }
    assert table["meaning"]["retrieved"]["F1"] == pytest.approx(2 / 3)  # "sun" of "red sun"; articles do not count
    assert table["meaning"]["closed-book"]["F1"] == 0
    # Every kind weighs the same, however many questions it has; the long ones have no exact match.
    assert table["short answers"] == {
        "closed-book": {"exact match": pytest.approx(1 / 6)},
        "retrieved": {"exact match": pytest.approx(5 / 6)},
        "gold": {"exact match": pytest.approx(2 / 3)},
    }


def test_arms_differ_in_the_evidence_alone(retriever, world, reader):
    tasks = [Task("no", "plain", "capital", "Capital?", ["Oslo"]), Task("es", "plain", "name", "Whose?", ["Spain"])]
    answer_table(None, None, retriever, world, tasks)
    closed, retrieved, gold = reader
    assert (closed["k"], retrieved["k"], gold["k"]) == (0, None, None)
    assert (closed["evidence"], retrieved["evidence"]) == (None, None)
    assert gold["evidence"] == [["no/capital"], ["es/name"]]
    assert closed["questions"] == retrieved["questions"] == gold["questions"] == ["Capital?", "Whose?"]
    assert not any(call["do_sample"] for call in reader)


def test_answers_come_back_in_the_order_of_the_tasks(retriever, world, reader):
    """They are asked sorted by kind, in batches."""
    tasks = [Task("no", "plain", kind, f"{kind} {i}", ["!"]) for i in range(40) for kind in ("name", "capital")]
    answers = measure.answer_tasks(None, None, retriever, world, tasks, "retrieved")
    assert answers == [task.question for task in tasks]
    assert [len(call["questions"]) for call in reader] == [32, 32, 16]


def test_the_passage_that_answers_is_put_in_every_place(retriever, world, reader):
    retriever.knowledge_base = KnownBase({"no/flag": "red", "no/capital": "Oslo", "es/capital": "Madrid"})
    tasks = [Task("no", "plain", "capital", "?", ["Oslo"])]
    assert measure.place_table(None, None, retriever, world, tasks, places=2) == {"1": 1.0, "2": 0.0}
    assert [call["evidence"] for call in reader] == [[["Oslo", "red"]], [["red", "Oslo"]]]


def test_abstentions_are_right_where_the_answer_is_missing(retriever, world, reader):
    tasks = [Task("no", "plain", "capital", "?", ["Oslo"])]
    retriever.knowledge_base = KnownBase({"no/capital": "Oslo", "no/flag": measure.UNKNOWN})
    perfect = {"precision": 1.0, "recall": 1.0, "coverage of the answerable": 1.0}
    assert measure.abstention_table(None, None, retriever, world, tasks) == perfect
    retriever.knowledge_base = KnownBase({"no/flag": measure.UNKNOWN, "no/capital": "Oslo"})
    silent = {"precision": 0.5, "recall": 1.0, "coverage of the answerable": 0.0}
    assert measure.abstention_table(None, None, retriever, world, tasks) == silent


def test_every_family_of_wordings_is_asked_about_the_same(retriever, reader):
    world = load_world()
    retriever.knowledge_base = KnownBase({})
    table = measure.wording_table(None, None, retriever, world, ["openmoji"], per_family=2)
    assert set(table) == {*measure.KEPT_OUT, "mean", "worst", "Chinese"}
    assert all(row == {"retrieved": 0.0, "reads on": 0.0, "gold": 0.0} for row in table.values())
    assert sum(len(call["questions"]) for call in reader) == 3 * 2 * len(measure.KEPT_OUT)
    readings = [None if call["policy"] is None else call["policy"].num_readings for call in reader]
    assert readings.count(3) == readings.count(None) / 2


@pytest.mark.parametrize(
    ("output", "names", "f1"),
    [
        ("The flag of Norway: red. Meaning of the flag of Norway: the cross for faith.", 1, 1),
        ("Meaning of the flag of Norway: the cross for faith.", 1, 1),
        ("The flag of Norwayland: red. Meaning of the flag of Norwayland: faith.", 0, 0.5),
        ("The flag of Spain: red, as that of Norway. Meaning of the flag of Spain: Norway.", 0, 0),
        ("Country or territory with this flag: Norway.", 1, 0),
        ("Norway", 1, 0),
    ],
)
def test_a_description_is_scored_for_the_country_and_for_the_meaning(world, output, names, f1):
    scores = score(world, Task("no", "plain", "describe", "?", [""]), output)
    assert scores == {"names the country": names, "F1 of the meaning": pytest.approx(f1)}
    assert set(score(world, Task("es", "plain", "describe", "?", [""]), output)) == {"names the country"}
