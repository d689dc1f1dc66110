"""Filters in Milvus against those of a local knowledge base, on the same passages."""

from __future__ import annotations

import numpy as np
import pytest

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.integrations.milvus.client import MilvusBackend
from hf_ravlm.integrations.milvus.filters import milvus_filter
from hf_ravlm.retrieval import KnowledgeBase
from hf_ravlm.retrieval.ranking.filters import matching_rows


HOSTILE = ['" or id != "', "\\", '\\" or true or "', "line\nbreak\ttab\r", "'quoted'", "日本 {x} %_*", 'a"] or ["b']


NESTED: dict | str = "MIT"
for _ in range(401):
    NESTED = {"not": NESTED}


@pytest.fixture(scope="module")
def passages():
    rows = [
        {
            "id": f"id {row}" if row < 30 else HOSTILE[row - 30],
            "text": None if row % 7 == 0 and row < 30 else f"text {row}",
            "image": {"bytes": PNG, "path": None} if row % 7 == 0 and row < 30 else None,
            "licence": [None, "CC0-1.0", "MIT"][row % 3],
            "title": HOSTILE[row % len(HOSTILE)],
            "year": 1990 + row if row % 2 else None,
            "share": row / 4,
            "tame": row % 5 == 0,
            "place": {"name": HOSTILE[row % 3], "height": row},
            "depth": -row,
            "levels": [-row, row],
            "tags": ["small", "loud"][: row % 3],
            'odd "key"': "x" if row % 4 else "y",
        }
        for row in range(30 + len(HOSTILE))
    ]
    return KnowledgeBase.from_dicts(rows)


def _png() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    return file.getvalue()


PNG = _png()


@pytest.fixture(scope="module")
def backend(passages, uri):
    made = MilvusBackend.create(uri, "kb", 4, index_type="FLAT")
    made.write(passages, np.random.default_rng(0).standard_normal((len(passages), 4)))
    yield made
    made.close()


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"licence": "MIT"},
        {"licence": None},
        {"licence": {"not": "MIT"}},
        {"licence": {"not": None}},
        {"licence": ["MIT", None]},
        {"licence": {"not": ["MIT", None]}},
        {"licence": {"not": {"not": "MIT"}}},
        {"licence": []},
        {"licence": {"not": []}},
        {"licence": {"min": "D"}},
        {"licence": {"not": {"min": "D"}}},
        {"text": None},
        {"text": {"not": None}},
        {"text": {"not": "text 5"}},
        {"text": {"not": [None, "text 5"]}},
        {"text": ["text 5", None]},
        {"id": ["id 3", "id 29", "id 99"]},
        {"id": {"not": ["id 3", "id 29"]}},
        {"metadata.year": 1991},
        {"metadata.year": 1991.0},
        {"metadata.year": [1991, 1993, 1992]},
        {"metadata.year": {"min": 1995, "max": 2001}},
        {"metadata.year": {"not": {"min": 1995, "max": 2001}}},
        {"metadata.year": {"not": 1991}},
        {"metadata.year": None},
        {"metadata.year": {"not": None}},
        {"metadata.year": {"min": None}},
        {"metadata.share": {"min": 1e0, "max": 2.25}},
        {"metadata.share": {"max": -1}},
        {"metadata.depth": -3},
        {"metadata.depth": [-3, -4.0]},
        {"metadata.depth": {"not": -3}},
        {"metadata.depth": {"min": -4, "max": -2}},
        {"metadata.levels": -1},
        {"metadata.place.name": {"min": "a"}},
        {"title": {"min": "'", "max": "b"}},
        {"licence": NESTED},
        {"metadata.share": np.float32(1.25)},
        {"metadata.tame": True},
        {"metadata.tame": {"not": False}},
        {"metadata.tags": "loud"},
        {"metadata.tags": {"not": "loud"}},
        {"metadata.place.height": {"min": 30}},
        {"metadata.place.name": HOSTILE[0]},
        {'metadata.odd "key"': "y"},
        {"licence": "MIT", "metadata.tame": True, "metadata.year": {"min": 1990}},
        *({"title": text} for text in HOSTILE),
        *({"title": {"not": text}} for text in HOSTILE),
        *({"id": [text]} for text in HOSTILE),
    ],
    ids=lambda where: str(where)[:80],
)
def test_filters_select_what_they_select_locally(backend, passages, where):
    wanted = {passage_id for passage_id, keep in zip(passages.ids, matching_rows(passages.table, where)) if keep}
    found = backend.search_vectors(np.ones((1, 4)), 1_000, where)[0]
    assert {passage.id for passage, _ in found} == wanted


def test_words_are_filtered_as_well(backend):
    found = backend.search_texts(["text"], 1_000, {"licence": "MIT", "metadata.tame": True})[0]
    assert {passage.id for passage, _ in found} == {"id 5", "id 20", HOSTILE[5]}


@pytest.mark.parametrize("text", HOSTILE)
def test_values_stay_values(backend, text):
    """Whoever chooses a value cannot widen the filter."""
    where = {"id": "id 1", "title": text, "metadata.place.name": text, f"metadata.{text.replace('.', '')}": text}
    assert backend.search_vectors(np.ones((1, 4)), 1_000, where) == [[]]
    assert backend.search_vectors(np.ones((1, 4)), 1_000, {"licence": [text, text]}) == [[]]


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ({"colour": "red"}, "no column 'colour' to filter by. Choose from id, text, source"),
        ({'id == "" or id': "x"}, "no column"),
        ({"metadata": "x"}, "no column"),
        ({"metadata.": "x"}, "no column"),
        ({"image": None}, "no column"),
        ({"licence": 5}, "holds texts"),
        ({"licence": {"max": 5}}, "holds texts"),
        ({"licence": "owl \ud83e"}, "half of a character pair"),
        ({"metadata.\ud83e": 3}, "half of a character pair"),
        ({"metadata.year": object()}, "of type object"),
        ({"metadata.year": float("nan")}, "finite number"),
        ({"metadata.year": 2**64}, "64 bits"),
        ({"metadata.year": {"min": 1, "less": 2}}, "is not known"),
        ({"metadata.year": {}}, "is not known"),
        ("licence", "expected a dictionary"),
    ],
)
def test_wrong_filters_are_refused(where, fault):
    with pytest.raises(InvalidInputError, match=fault):
        milvus_filter(where)
