"""Questions from rows, files and data sets."""

from __future__ import annotations

import json

import datasets
import pytest
from PIL import Image

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.evaluation import questions_from
from hf_ravlm.evaluation.model_evaluation import read_questions


ROWS = [
    {"qid": 7, "text": "Which colour?", "accepted": ["red", "crimson"], "passage": "p1"},
    {"qid": 8, "text": "How many?", "accepted": "2", "passage": "p2"},
]
COLUMNS = {"id": "qid", "question": "text", "answers": "accepted", "gold_ids": "passage"}


@pytest.mark.parametrize("make", [lambda: ROWS[:1], lambda: datasets.Dataset.from_list(ROWS[:1])])
def test_columns_have_names_of_their_own(make):
    question = questions_from(make(), COLUMNS)[0]
    assert (question.id, question.question) == ("7", "Which colour?")
    assert (question.answers, question.gold_ids) == (("red", "crimson"), ("p1",))


def test_a_lone_answer_is_one_answer():
    assert questions_from(ROWS, COLUMNS)[-1].answers == ("2",)


def test_pictures_lie_beside_the_file(tmp_path):
    Image.new("RGB", (4, 3), "red").save(tmp_path / "flag.png")
    row = {"id": "1", "question": "Whose?", "answers": ["x"], "image": "flag.png"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row) + "\n\n")
    question = read_questions(tmp_path / "questions.jsonl")[0]
    assert question.image == str(tmp_path / "flag.png")
    before = question.digest()
    Image.new("RGB", (4, 3), "blue").save(tmp_path / "flag.png")
    assert question.digest() != before


def test_splits_and_first_questions(tmp_path):
    rows = [{"question": f"{n}?", "answers": [str(n)]} for n in range(5)]
    both = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name in ("train", "test")})
    both.save_to_disk(tmp_path / "saved")
    assert len(read_questions(tmp_path / "saved").first(3).without_images()) == 3
    with pytest.raises(InvalidInputError, match="no split 'val'.* there is train, test"):
        read_questions(tmp_path / "saved", split="val")
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    assert [question.answers for question in read_questions(tmp_path / "rows.parquet")][4] == ("4",)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: questions_from(ROWS), "No column holds the question; there is qid, text, accepted, passage"),
        (lambda: questions_from(ROWS, {**COLUMNS, "answers": "label"}), "no column label; there is qid, text"),
        (lambda: questions_from(ROWS, {"query": "text"}), "columns names query; a question has id, question"),
        (lambda: questions_from([{"question": " ", "answers": "x"}])[0], "Row 0 has no question"),
        (lambda: questions_from([{"question": "a", "answers": None}])[0], "Row 0, column 'answers' is empty"),
        (lambda: questions_from([{"question": "a", "answers": [{}]}])[0], "holds {}; expected a string"),
        (lambda: questions_from([]), "there is nothing"),
        (lambda: questions_from("nowhere.jsonl"), "no file nowhere.jsonl"),
        (lambda: read_questions("nowhere.txt"), "ends in .jsonl, .parquet"),
    ],
)
def test_errors_say_what_came(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
