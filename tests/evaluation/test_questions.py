"""Questions from rows, files and data sets, and the metrics as classes of `evaluate`."""

from __future__ import annotations

import json

import datasets
import pytest
from PIL import Image

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.evaluation import questions_from
from hf_ravlm.evaluation.metrics import METRIC_CLASSES, load_metric
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
        (lambda: load_metric("meteor"), "'meteor' is not known. Choose of bleu_4"),
        (
            lambda: load_metric("retrieval").compute(predictions=[["a"], None], references=[["a"], ["b"]]),
            "1 of 2 predictions are missing .* row 1",
        ),
        (
            lambda: load_metric("token_f1").compute(predictions=["a", "b"], references=[["a"], ["b", None]]),
            "1 of 2 references are missing .* row 1",
        ),
        (lambda: load_metric("cider_d").compute(predictions=[], references=[]), "no predictions to score"),
    ],
)
def test_errors_say_what_came(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()


def test_every_metric_is_one_of_evaluate():
    captions = {"predictions": ["a red flag", "a dog"], "references": [["a red flag"], ["a cat", "the dog"]]}
    for name in ("exact_match", "token_f1", "bleu_4", "rouge_l", "cider_d"):
        assert list(load_metric(name).compute(**captions)) == [name]
    kinds = {"predictions": ["9"], "references": [["8", "10"]]}
    assert load_metric("infoseek").compute(**kinds, kinds=["numerical"]) == {"infoseek": 1.0}
    assert load_metric("encyclopedic_vqa").compute(**kinds, kinds=["automatic"]) == {"encyclopedic_vqa": 0.0}
    ranked = load_metric("retrieval").compute(predictions=[["a", "b"], ["c"]], references=[["b"], ["c"]], ks=(1, 2))
    assert (ranked["hit@1"], ranked["recall@2"], ranked["mean_rank"]) == (0.5, 1.0, 1.5)
    again = load_metric("retrieval").compute(predictions=[["a", "a", "b"]], references=[["b"]], ks=(2,))
    assert again["recall@2"] == 1.0  # an id that comes twice takes one place
    found = load_metric("pseudo_recall").compute(predictions=[["It is red."]], references=[["re"]], match="word")
    assert found == {"pseudo_recall@5": 0.0, "pseudo_precision@5": 0.0}
    assert set(METRIC_CLASSES) >= {"vqa_accuracy"}


def test_evaluate_takes_batches_and_combines():
    import evaluate

    metric = load_metric("exact_match")
    metric.add_batch(predictions=["red"], references=[["Red"]])
    metric.add_batch(predictions=["blue"], references=[["Red"]])
    assert metric.compute() == {"exact_match": 0.5}
    both = evaluate.combine([load_metric("exact_match"), load_metric("token_f1")])
    assert both.compute(predictions=["a red dog"], references=[["red cat"]]) == {"exact_match": 0.0, "token_f1": 0.5}
