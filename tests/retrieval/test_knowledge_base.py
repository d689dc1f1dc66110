from __future__ import annotations

import datetime
import logging

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from hf_ravlm.errors import InvalidInputError, UnsafeInputError
from hf_ravlm.retrieval import KnowledgeBase, Passage, RavlmRetriever
from hf_ravlm.retrieval.knowledge_base import as_knowledge_base, completed
from hf_ravlm.retrieval.ranking.filters import matching_rows
from hf_ravlm.retrieval.sources.checked_rows import MAX_TEXT_BYTES


def test_passages_come_back_as_they_were_given():
    picture = Image.new("RGB", (6, 4), "red")
    row = {
        "id": "a",
        "text": "A text.",
        "image": picture,
        "source": "s",
        "licence": "CC0-1.0",
        "url": "u",
        "revision": "r",
        "title": "t",
    }
    passage = KnowledgeBase.from_dicts([{**row, "metadata": {"year": 1999}, "tags": ["x", "y"]}])[0]
    for name in ("id", "text", "source", "licence", "url", "revision", "title"):
        assert getattr(passage, name) == row[name]
    assert passage.metadata == {"year": 1999, "tags": ["x", "y"]}
    assert passage.image.tobytes() == picture.tobytes()


def test_position_id_iteration_and_ids_agree(knowledge_base, rows):
    ids = [row["id"] for row in rows]
    assert knowledge_base.ids == ids
    assert [passage.id for passage in knowledge_base] == ids
    assert len(knowledge_base) == len(ids)
    for position, passage_id in enumerate(ids):
        assert knowledge_base[position] == knowledge_base[passage_id] == knowledge_base[position - len(ids)]
        assert passage_id in knowledge_base
    assert [passage.id for passage in knowledge_base.passages([3, 0, 3])] == [ids[3], ids[0], ids[3]]


def test_unknown_positions_and_ids_are_named(knowledge_base):
    with pytest.raises(KeyError, match="nightingale"):
        knowledge_base["nightingale"]
    for position in (len(knowledge_base), -len(knowledge_base) - 1):
        with pytest.raises(IndexError, match=f"Position {position}"):
            knowledge_base[position]
    assert "nightingale" not in knowledge_base


def test_more_rows_than_one_batch_keep_their_order():
    knowledge_base = KnowledgeBase.from_dicts({"id": row, "text": f"text {row}"} for row in range(2500))
    assert knowledge_base.ids == [str(row) for row in range(2500)]
    assert knowledge_base["1999"].text == "text 1999"
    assert [passage.text for passage in knowledge_base][2400] == "text 2400"
    assert knowledge_base.text_lengths()[:11] == [6] * 10 + [7]


def test_an_empty_knowledge_base_is_made_on_purpose_only():
    assert len(KnowledgeBase()) == 0
    assert list(KnowledgeBase()) == KnowledgeBase().ids == []
    with pytest.raises(InvalidInputError, match=r"no passage.*`KnowledgeBase\(\)`"):
        KnowledgeBase.from_dicts([])


def test_duplicate_ids_are_named():
    rows = [{"id": name, "text": "t"} for name in ("a", "b", "a", "c", "b", "7")] + [{"id": 7, "text": "t"}]
    with pytest.raises(InvalidInputError, match="3 of them occur more than once: 'a', 'b', '7'"):
        KnowledgeBase.from_dicts(rows)


@pytest.mark.parametrize("passage", [{}, {"text": None}, {"text": " \n"}, {"txt": "oops", "image": None}])
def test_a_passage_needs_a_text_or_an_image(passage):
    with pytest.raises(InvalidInputError, match=r"row 1 \(id 'b'\): .* neither text nor image") as caught:
        KnowledgeBase.from_dicts([{"id": "a", "text": "t"}, {"id": "b", **passage}])
    if "txt" in passage:
        assert "'txt'" in str(caught.value)


def test_a_blank_text_beside_an_image_is_no_text():
    passage = KnowledgeBase.from_dicts([{"id": "a", "text": " ", "image": Image.new("RGB", (2, 2))}])[0]
    assert passage.text is None


@pytest.mark.parametrize("passage_id", [1.0, True, b"a", "", "  ", ["a"]])
def test_ids_are_strings_or_whole_numbers(passage_id):
    with pytest.raises(InvalidInputError, match="row 0: the id"):
        KnowledgeBase.from_dicts([{"id": passage_id, "text": "t"}])


def test_whole_numbers_become_strings():
    assert KnowledgeBase.from_dicts([{"id": 7, "text": "t"}, {"id": np.int64(8), "text": "t"}]).ids == ["7", "8"]


@pytest.mark.parametrize(
    ("passage", "message"),
    [
        ({"text": 5}, "`text` is '5' of type int"),
        ({"text": "t", "licence": 4.0}, "`licence` is '4.0' of type float"),
        ({"text": "half \ud800 pair"}, "half of a character pair"),
        ({"text": "x" * (MAX_TEXT_BYTES + 1)}, "65,537 bytes.*Split it"),
        ({"text": "t", "other": object()}, "cannot be written as JSON.*'other'"),
        ({"text": "t", "metadata": "not a dictionary"}, "`metadata` is of type str"),
    ],
)
def test_values_of_a_wrong_type_are_named(passage, message):
    with pytest.raises(InvalidInputError, match=message):
        KnowledgeBase.from_dicts([{"id": "a", **passage}])


def test_rows_that_are_no_dictionaries_or_have_no_id_are_named():
    with pytest.raises(InvalidInputError, match="row 0 is of type str"):
        KnowledgeBase.from_dicts(["text"])
    for read in (as_knowledge_base, lambda row: completed(row, lambda ids: [None] * len(ids))):
        with pytest.raises(InvalidInputError, match="one dictionary came: expected a list"):
            read({"id": "a", "text": "t"})
    with pytest.raises(InvalidInputError, match=r"row 0 has no `id`; its keys are \['text'\]"):
        KnowledgeBase.from_dicts([{"text": "t"}])


def test_metadata_keeps_dates_and_numpy_values_as_json():
    extra = {"date": datetime.date(2020, 1, 2), "count": np.int64(3), "vector": np.array([1.5, 2.5])}
    metadata = KnowledgeBase.from_dicts([{"id": "a", "text": "t", **extra}])[0].metadata
    assert metadata == {"date": "2020-01-02", "count": 3, "vector": [1.5, 2.5]}


def test_license_is_read_as_licence():
    assert KnowledgeBase.from_dicts([{"id": "a", "text": "t", "license": "MIT"}])[0].licence == "MIT"


def test_a_broken_image_stops_or_is_skipped_and_listed(caplog):
    rows = [
        {"id": "good", "text": "t"},
        {"id": "broken", "text": "t", "image": b"no image"},
        {"id": "missing", "image": "/no/such/file.png"},
    ]
    with pytest.raises(UnsafeInputError, match="passage 'broken' cannot be used: .*on_error=\"skip\""):
        KnowledgeBase.from_dicts(rows)
    with caplog.at_level(logging.WARNING, logger="hf_ravlm"):
        knowledge_base = KnowledgeBase.from_dicts(rows, on_error="skip")
    assert knowledge_base.ids == ["good"]
    assert [item.id for item in knowledge_base.skipped] == ["broken", "missing"]
    assert "/no/such/file.png" in knowledge_base.skipped[1].reason
    assert "2 items were skipped" in caplog.text
    with pytest.raises(InvalidInputError, match="2 rows were skipped"):
        KnowledgeBase.from_dicts(rows[1:], on_error="skip")
    with pytest.raises(InvalidInputError, match='"raise" or "skip"'):
        KnowledgeBase.from_dicts(rows, on_error="ignore")


def test_an_id_that_comes_again_is_left_out_when_items_may_be_skipped():
    rows = [{"id": name, "text": str(row)} for row, name in enumerate("abacbb")]
    knowledge_base = KnowledgeBase.from_dicts(rows, on_error="skip")
    assert [(passage.id, passage.text) for passage in knowledge_base] == [("a", "0"), ("b", "1"), ("c", "3")]
    assert [item.id for item in knowledge_base.skipped] == ["a", "b", "b"]


def test_a_report_is_written_even_when_nothing_was_left_out(tmp_path):
    rows = [{"id": "a", "text": "t"}]
    KnowledgeBase.from_dicts(rows, on_error="skip", report_file=tmp_path / "report.jsonl")
    assert (tmp_path / "report.jsonl").read_text() == ""
    with pytest.raises(InvalidInputError, match='together with on_error="skip"'):
        KnowledgeBase.from_dicts(rows, report_file=tmp_path / "report.jsonl")


def test_metadata_without_a_number_is_missing_and_the_rest_is_kept():
    metadata = KnowledgeBase.from_dicts([{"id": "a", "text": "t", "year": float("nan"), "x": np.float32(1.5)}])[
        0
    ].metadata
    assert metadata == {"x": 1.5}


def test_a_table_of_another_form_is_refused():
    with pytest.raises(InvalidInputError, match="needs the columns"):
        KnowledgeBase(pa.table({"id": ["a"], "text": ["t"]}))
    whole = KnowledgeBase.from_dicts([{"id": "a", "text": "t"}]).table
    with pytest.raises(InvalidInputError, match="needs the columns"):
        KnowledgeBase(whole.drop_columns(["revision"]))
    with pytest.raises(InvalidInputError, match="a list: `KnowledgeBase.from_dicts` reads"):
        KnowledgeBase([{"id": "a", "text": "t"}])


def test_passages_can_be_compared_and_hashed():
    one, two = (Passage("a", text="t", metadata={"x": [1]}) for _ in range(2))
    assert one == two
    assert len({one, two}) == 1
    assert one.image is None


def test_a_revision_is_stored_and_can_be_asked_for(encoder, tmp_path):
    rows = [
        {"id": name, "text": f"text {name}", "revision": revision} for name, revision in zip("abc", ["1", "2", None])
    ]
    RavlmRetriever.build(KnowledgeBase.from_dicts(rows), encoder).save_pretrained(tmp_path)
    knowledge_base = KnowledgeBase.load(tmp_path)
    assert [passage.revision for passage in knowledge_base] == ["1", "2", None]
    assert matching_rows(knowledge_base.table, {"revision": "2"}).tolist() == [False, True, False]


def test_of_many_ids_none_is_a_python_object_and_each_is_found(monkeypatch):
    rows = [{"id": f"{word}{n}", "text": "x"} for n in range(400) for word in ("wren ", "知更鸟", "Ü", "🦉")]
    few = KnowledgeBase.from_dicts(rows)
    monkeypatch.setattr("hf_ravlm.retrieval.id_places.MOST_IN_DICTIONARY", 10)
    many = KnowledgeBase.from_dicts(rows)
    assert many.ids == few.ids == [row["id"] for row in rows]
    assert [many[row["id"]].id for row in rows] == few.ids
    for missing in ("", "a", "wren", "wren 400", "知", "\U0010ffff"):
        assert missing not in many
        assert missing not in few
    assert "U\u03080" in many  # another spelling of the same letter
