"""Questions from rows, files and data sets."""

from __future__ import annotations

import csv
import json

import datasets
import pandas
import pytest
from PIL import Image

from hf_ravlm import KnowledgeBase
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.evaluation import questions_from
from hf_ravlm.evaluation.model_evaluation import read_questions
from hf_ravlm.evaluation.scoring import score_answers


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


AS_WRITTEN = ["007", "NA", "1e5", "TRUE", "2020-01-31", "null", "1,000", "-0", "3.10"]


@pytest.mark.parametrize("name", ["q.csv", "q.tsv", "q.jsonl", "q.json", "q.parquet"])
def test_answers_are_what_stands_in_the_file(tmp_path, name):
    rows = [{"Question": f"{n}?", "Answer": text, "image": "a.png"} for n, text in enumerate(AS_WRITTEN)]
    path = tmp_path / name
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    if name.endswith("sv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name == "q.tsv" else ";")
            writer.writeheader()
            writer.writerows(rows)
    elif name == "q.json":
        path.write_text(json.dumps(rows))
    elif name == "q.jsonl":
        path.write_bytes("\n".join(map(json.dumps, rows)).encode("utf-16"))
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    questions = read_questions(path)
    assert [question.answers for question in questions] == [(text,) for text in AS_WRITTEN]
    assert {question.image for question in questions} == {str(tmp_path / "a.png")}
    assert score_answers("exact_match", AS_WRITTEN, list(questions)).value == 1.0


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"query": "a", "target": "b"}, ("b",)),
        ({" QUESTION ": "a", "answers": [{"answer": "net", "answer_id": 1}, {"answer": "nets"}]}, ("net", "nets")),
        ({"question": "a", "answers": {"text": ["b", "c"], "answer_start": [1, 2]}}, ("b", "c")),
        ({"question": "a", "answer_eval": [{"wikidata": 9.0, "range": [8.5, 9.5]}]}, ("8.5", "9.5")),
        ({"question": "a", "answers": 7}, ("7",)),
        ({"q": "cafe\u0301", "answer": "ca\u200bfe\u0301"}, ("café",)),
        (
            {"question": "a", "answer": "b|c && d", "question_type": "multi_answer", "dataset_name": "inat"},
            ("b", "c && d"),
        ),
    ],
)
def test_what_others_call_them(row, answers):
    assert questions_from([row])[0].answers == answers


def test_several_answers_in_a_cell_and_names_of_classes(tmp_path):
    (tmp_path / "q.csv").write_text('question,answers\na?,"[""b"", ""c""]"\nd?,[e]\n')
    assert [question.answers for question in questions_from(tmp_path / "q.csv")] == [("b", "c"), ("[e]",)]
    features = datasets.Features(
        {"question": datasets.Value("string"), "answer": datasets.ClassLabel(names=["robin", "wren"])}
    )
    rows = datasets.Dataset.from_dict({"question": ["which?"], "answer": [1]}, features)
    assert questions_from(rows)[0].answers == ("wren",)
    assert questions_from(rows).without_images()[0].answers == ("wren",)


def test_questions_and_annotations_of_vqa(tmp_path):
    asked = [{"question_id": 3, "image_id": 5, "question": "What?"}]
    given = [{"question_id": 3, "answers": [{"answer": "net"}] * 10, "question_type": "what"}]
    (tmp_path / "vqa.json").write_text(json.dumps({"questions": asked, "annotations": given}))
    question = read_questions(tmp_path / "vqa.json")[0]
    assert (question.id, question.answers, question.kind) == ("3", ("net",) * 10, "what")
    assert score_answers("vqa_accuracy", ["net"], [question]).value == 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("question,answer\na,b,c\n", "q.csv line 2 has more values"),
        ("question,answer,answer\na,b,c\n", r"\['answer'\] occur twice"),
        ("question,answer\n\u200b,b\n", "Row 0 has no question"),
    ],
)
def test_a_broken_file_of_questions_is_named(tmp_path, content, message):
    (tmp_path / "q.csv").write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        list(read_questions(tmp_path / "q.csv"))


def test_half_a_pair_in_a_question_is_refused():
    with pytest.raises(InvalidInputError, match="Row 0.*half of a character pair"):
        questions_from([{"question": "owl \ud83e", "answers": "b"}])[0]
    with pytest.raises(InvalidInputError, match="Row 0.*half of a character pair"):
        questions_from([{"question": "owl", "answers": ["b \ud83e"]}])[0]


def test_data_frames_are_read_row_by_row():
    frame = pandas.DataFrame({"question": ["owl ?", "kite ?"], "answer": ["b", "c"], "kind": [None, "bird"]})
    assert [(q.question, q.answers, q.kind) for q in questions_from(frame)] == [
        ("owl ?", ("b",), ""),
        ("kite ?", ("c",), "bird"),
    ]
    passages = pandas.DataFrame({"id": [1, 2], "text": ["a", "b"], "price": [1.5, float("nan")]})
    assert [(p.id, p.metadata) for p in KnowledgeBase.from_dicts(passages)] == [("1", {"price": 1.5}), ("2", {})]
