from __future__ import annotations

import datetime
import random

import numpy as np
import pyarrow as pa
import pytest

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval import KnowledgeBase
from hf_ravlm.retrieval.metadata import metadata_table
from hf_ravlm.retrieval.ranking.filters import matching_rows


BIRDS = [
    {"id": "robin", "text": "a", "licence": "CC0-1.0", "source": "birds", "year": 1758, "tags": ["red", "small"]},
    {"id": "wren", "text": "b", "licence": "CC-BY-4.0", "source": "birds", "year": 1758.5, "bird": {"mass": 9}},
    {"id": "pike", "text": "c", "source": "fish", "seen": "2020-01-31", "tags": [], "alive": True},
    {"id": "none", "text": "d"},
]


NESTED: dict | str = "birds"
for _ in range(401):
    NESTED = {"not": NESTED}


def ids(where: dict, rows: list[dict] = BIRDS) -> list[str]:
    knowledge_base = KnowledgeBase.from_dicts(rows)
    mask = matching_rows(knowledge_base.table, where)
    assert mask.shape == (len(rows),)
    assert mask.dtype == np.bool_
    return [row["id"] for row, keep in zip(rows, mask) if keep]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, ["robin", "wren", "pike", "none"]),
        ({"source": "birds"}, ["robin", "wren"]),
        ({"source": ["fish", "stones"]}, ["pike"]),
        ({"source": []}, []),
        ({"id": ["none", "wren"]}, ["wren", "none"]),
        ({"source": "birds", "licence": "CC0-1.0"}, ["robin"]),
        ({"source": None}, ["none"]),
        ({"source": [None, "fish"]}, ["pike", "none"]),
        ({"source": {"not": "birds"}}, ["pike", "none"]),
        ({"source": {"not": ["birds", None]}}, ["pike"]),
        ({"source": {"min": "c"}}, ["pike"]),
        ({"metadata.year": 1758}, ["robin"]),
        ({"metadata.year": {"min": 1758}}, ["robin", "wren"]),
        ({"metadata.year": {"min": 1758.1, "max": 2000}}, ["wren"]),
        ({"metadata.year": [1758, 1758.5]}, ["robin", "wren"]),
        ({"metadata.year": {"not": {"max": 1758}}}, ["wren", "pike", "none"]),
        ({"metadata.tags": "small"}, ["robin"]),
        ({"metadata.tags": ["small", "big"]}, ["robin"]),
        ({"metadata.tags": {"not": "red"}}, ["wren", "pike", "none"]),
        ({"metadata.bird.mass": {"max": 9}}, ["wren"]),
        ({"metadata.seen": "2020-01-31"}, ["pike"]),
        ({"metadata.seen": {"min": "2020-01-01", "max": "2020-12-31"}}, ["pike"]),
        ({"metadata.alive": True}, ["pike"]),
        ({"year": 1758}, ["robin"]),
        ({"tags": "small", "source": "birds"}, ["robin"]),
        ({"bird.mass": {"max": 9}}, ["wren"]),
        ({"source": NESTED}, ["pike", "none"]),
        ({"source": "bi\u200brds"}, ["robin", "wren"]),
        ({"metadata.alive": {"not": True}}, ["robin", "wren", "none"]),
    ],
)
def test_conditions_keep_the_passages_that_satisfy_them(where, expected):
    assert ids(where) == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"colour": "red"}, r"column 'colour'.*licence.*metadata\.year"),
        ({"source": "owl \ud83e"}, "half of a character pair"),
        ({"year": [[1758]]}, "lists or conditions"),
        ({7: "x"}, "Expected a name"),
        ({"image": "x"}, "column 'image'"),
        ({"metadata": "x"}, "column 'metadata'"),
        ({"metadata.colour": "red"}, r"metadata\.colour.*metadata\.year"),
        ({"metadata.bird.age": 1}, r"metadata\.bird\.age"),
        ({"metadata.year": "1758"}, "holds numbers.*'1758'"),
        ({"metadata.alive": 1}, "true or false"),
        ({"source": 7}, "holds texts.*7.*CSV"),
        ({"source": {"above": 7}}, "above.*min.*max"),
        ({"source": {}}, "not known"),
    ],
)
def test_conditions_that_cannot_be_meant_are_refused(where, message):
    with pytest.raises(InvalidInputError, match=message):
        ids(where)
    with pytest.raises(InvalidInputError, match="dictionary"):
        matching_rows(KnowledgeBase.from_dicts(BIRDS).table, ["source"])


def test_values_of_several_types_become_text():
    rows = [{"id": 1, "text": "a", "size": 3}, {"id": 2, "text": "b", "size": "3"}, {"id": 3, "text": "c", "size": {}}]
    assert ids({"metadata.size": "3"}, [{**row, "id": str(row["id"])} for row in rows]) == ["1", "2"]


def test_numbers_beyond_64_bits_and_dates_are_kept():
    rows = [{"id": "a", "text": "a", "n": 2**70}, {"id": "b", "text": "b", "day": datetime.date(2020, 1, 31)}]
    assert ids({"metadata.day": "2020-01-31"}, rows) == ["b"]
    assert ids({"metadata.n": str(2**70)}, rows) == ["a"]


def test_no_metadata_and_no_passage_are_legal():
    rows = [{"id": "a", "text": "a"}]
    with pytest.raises(InvalidInputError, match="no metadata"):
        ids({"metadata.x": 1}, rows)
    assert matching_rows(KnowledgeBase().table, {"source": "x"}).shape == (0,)


def test_filters_agree_with_a_loop_over_random_passages():
    rng = random.Random(0)
    values = {"place": ["Paris", "Rome", None], "year": [1900, 1950, 2000, None], "source": ["x", "y", None]}
    rows = [
        {"id": str(n), "text": "t", **{key: pick for key in values if (pick := rng.choice(values[key])) is not None}}
        for n in range(500)
    ]
    knowledge_base = KnowledgeBase.from_dicts(rows)
    decoded = metadata_table(knowledge_base.table)
    where = {"source": {"not": "x"}, "metadata.year": {"min": 1950}, "metadata.place": ["Rome", "Oslo"]}
    expected = [
        row.get("source") != "x" and row.get("year", 0) >= 1950 and row.get("place") in ("Rome", "Oslo")
        for row in rows
    ]
    assert matching_rows(knowledge_base.table, where, decoded).tolist() == expected
    halves = pa.concat_tables([knowledge_base.table.slice(0, 200), knowledge_base.table.slice(200)])
    assert matching_rows(halves, where).tolist() == expected
