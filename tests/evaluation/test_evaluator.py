"""The evaluator with arms that are known to the last answer, and what it keeps when it is killed."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from dataclasses import replace

import pytest
from PIL import Image

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.evaluation import Evaluator, Question, Reply, measure_growth, without_answers


QUESTIONS = [
    Question(str(n), f"Question {n}?", (f"answer {n}",), gold_ids=(f"p{n}",), kind="even" if n % 2 == 0 else "odd")
    for n in range(12)
]


class Oracle:
    """Knows the answers to some questions, and counts what it was asked."""

    def __init__(self, known, confidence=None, stop_at=None):
        self.known, self.confidence, self.stop_at, self.asked = set(known), confidence, stop_at, []

    def __call__(self, questions):
        if self.stop_at is not None and len(self.asked) >= self.stop_at:
            raise KeyboardInterrupt
        self.asked += [question.id for question in questions]
        return [
            Reply(
                question.answers[0] if int(question.id) in self.known else "no idea",
                confidence=self.confidence,
                evidence_ids=("other", f"p{question.id}"),
                evidence_texts=("", f"It is answer {question.id}."),
                num_retrievals=1,
                num_tokens=10,
            )
            for question in questions
        ]


def arms(**changes):
    return {"closed_book": Oracle(range(6)), "retrieved": Oracle(range(3, 12), confidence=0.9), **changes}


def test_a_reader_that_answers_in_sentences_is_told_of(caplog):
    def chatty(questions):
        return [Reply(f"I think that it is {question.answers[0]}, is it not?") for question in questions]

    Evaluator(arms(chatty=chatty), ["exact_match", "token_f1"]).run(QUESTIONS)
    (told,) = caplog.messages  # of that arm alone
    assert told.startswith("chatty: 12 of 12 replies hold an accepted answer and count as wrong by exact_match. ")
    assert "Ask the reader for the answer alone (system_message" in told


def test_figures_by_hand():
    report = Evaluator(arms(), ["exact_match"], batch_size=5).run(QUESTIONS)
    retrieved = report.arms["retrieved"]
    assert report.arms["closed_book"].metrics["exact_match"].mean == 0.5
    assert retrieved.metrics["exact_match"].mean == 0.75
    assert retrieved.effect.rescue_rate.mean == 0.5  # 6..11
    assert retrieved.effect.harm_rate.mean == 0.25  # 0..2
    assert retrieved.effect.net_gain.mean == 0.25
    assert retrieved.effect.net_gain.lower < 0.25 < retrieved.effect.net_gain.upper
    assert (retrieved.effect.rescued_of_wrong, retrieved.effect.harmed_of_right) == (1.0, 0.5)
    assert retrieved.by_kind == {"even": {"count": 6, "value": 4 / 6}, "odd": {"count": 6, "value": 5 / 6}}
    assert retrieved.retrieval["hit@1"].mean == 0
    assert retrieved.retrieval["hit@2"].mean == retrieved.retrieval["pseudo_recall@2"].mean == 1
    assert retrieved.retrieval["mrr@2"].mean == 0.5
    assert retrieved.calibration.ece == pytest.approx(0.15)
    assert report.arms["closed_book"].effect is report.arms["closed_book"].calibration is None
    assert (retrieved.cost.retrievals, retrieved.cost.tokens) == (1, 10)


def guarded(questions):
    """Right from 3 on; searches where the closed-book arm is wrong and once too often; withholds 0, 1 and 11."""
    replies = []
    for question in questions:
        number = int(question.id)
        text = question.answers[0] if number >= 3 else "no idea"
        held = number in (0, 1, 11)
        need = 0.9 if number >= 6 or number == 2 else 0.1
        confidence = 0.2 if held else 0.8
        replies.append(
            Reply(
                "" if held else text,
                confidence=confidence,
                num_retrievals=int(need > 0.5),
                withheld=text if held else None,
                need=need,
            )
        )
    return replies


def test_what_a_policy_did_by_hand():
    report = Evaluator(arms(guarded=guarded), ["exact_match", "token_f1"], batch_size=5).run(QUESTIONS)
    arm = report.arms["guarded"]
    assert arm.metrics["exact_match"].mean == 8 / 12
    held = arm.policy.abstention
    assert (held.coverage, held.accuracy) == (9 / 12, 8 / 9)
    assert (held.precision, held.recall) == (2 / 3, 2 / 3)
    assert arm.policy.searches_saved == 5 / 12
    assert arm.policy.gate_auroc == pytest.approx((5 + 0.5) / 6)  # 2 is as urgent as those that are wrong
    assert arm.calibration.auroc == pytest.approx((8 * 2 + 8 * 0.5 + 2 * 0.5) / (9 * 3))  # of withheld answers, too
    assert report.arms["closed_book"].policy is report.arms["retrieved"].policy is None
    assert "| guarded | 75.0 | 88.9 | 66.7 | 66.7 | 41.7 | 91.7 |" in report.to_markdown()
    assert "held back" not in Evaluator(arms(), ["exact_match"]).run(QUESTIONS).to_markdown()
    json.dumps(report.to_dict(), allow_nan=False)


def test_reports_are_written(tmp_path):
    report = Evaluator(arms(), ["exact_match", "token_f1", "bleu_4"]).run(QUESTIONS)
    paths = report.save(tmp_path)
    assert [path.name for path in paths] == ["report.json", "report.md", "report.png"]
    told = json.loads(paths[0].read_text(encoding="utf-8"))
    assert told["arms"]["retrieved"]["metrics"]["exact_match"]["mean"] == 0.75
    assert told["arms"]["retrieved"]["metrics"]["bleu_4"]["lower"] is None  # no interval, and valid JSON
    text = paths[1].read_text(encoding="utf-8")
    assert "| retrieved | 75.0 (" in text
    assert "NaN" not in paths[0].read_text(encoding="utf-8")
    with Image.open(paths[2]) as drawn:
        assert len(drawn.getcolors(maxcolors=100_000)) > 5


def test_a_stopped_run_goes_on(tmp_path):
    stopped = arms(retrieved=Oracle(range(12), stop_at=8))
    with pytest.raises(KeyboardInterrupt):
        Evaluator(stopped, batch_size=4).run(QUESTIONS, tmp_path)
    fresh = arms(retrieved=Oracle(range(12)))
    resumed = Evaluator(fresh, batch_size=4).run(QUESTIONS, tmp_path)
    assert fresh["closed_book"].asked == []
    assert fresh["retrieved"].asked == ["8", "9", "10", "11"]
    assert resumed.arms["retrieved"].metrics["exact_match"].mean == 1
    untouched = (tmp_path / "replies.jsonl").read_bytes()
    Evaluator(arms(retrieved=Oracle([])), batch_size=3).run(QUESTIONS, tmp_path)  # another batch size, nobody asked
    assert (tmp_path / "replies.jsonl").read_bytes() == untouched


def test_a_killed_process_repeats_nothing_that_was_finished(tmp_path):
    file, asked, is_child = tmp_path / "replies.jsonl", [], True

    def reader(batch):
        if is_child and len(asked) == 12:
            time.sleep(600)  # until it is killed
        asked.extend(question.id for question in batch)
        return [question.answers[0] for question in batch]

    questions = [Question(str(n), f"Question {n}?", (f"answer {n}",)) for n in range(100)]
    evaluator = Evaluator({"closed_book": reader}, ["exact_match"], batch_size=1)
    child = multiprocessing.get_context("fork").Process(target=evaluator.run, args=(questions, tmp_path))
    child.start()
    while child.is_alive() and not (file.exists() and file.read_bytes().count(b"\n") > 10):
        time.sleep(0.01)
    child.kill()
    child.join()
    is_child = False
    assert child.exitcode == -signal.SIGKILL
    whole = file.read_bytes().rpartition(b"\n")[0].splitlines()
    finished = [json.loads(line)["id"] for line in whole[1:]]
    assert 10 <= len(finished) < 100
    assert evaluator.run(questions, tmp_path).arms["closed_book"].metrics["exact_match"].mean == 1.0
    assert asked == [question.id for question in questions if question.id not in finished]


def test_a_torn_line_is_asked_again(tmp_path):
    Evaluator(arms(), batch_size=4).run(QUESTIONS, tmp_path)
    file = tmp_path / "replies.jsonl"
    whole = file.read_bytes()
    for cut in (1, 20, 300):
        file.write_bytes(whole[:-cut])
        again = arms()
        Evaluator(again, batch_size=4).run(QUESTIONS, tmp_path)
        assert 1 <= len(again["retrieved"].asked) <= 3
        assert len(file.read_text().splitlines()) == 25


def test_damage_and_other_runs_are_not_mixed_in(tmp_path):
    Evaluator(arms(), settings={"k": 5}).run(QUESTIONS, tmp_path)
    with pytest.raises(InvalidInputError, match=r'"k": 5.* instead of .*"k": 3'):
        Evaluator(arms(), settings={"k": 3}).run(QUESTIONS, tmp_path)
    changed = [replace(QUESTIONS[0], question="Another?"), *QUESTIONS[1:]]
    with pytest.raises(InvalidInputError, match="Question '0' is not the one"):
        Evaluator(arms(), settings={"k": 5}).run(changed, tmp_path)
    repaired = [replace(question, answers=("no idea",)) for question in QUESTIONS]  # answers may be repaired
    report = Evaluator(arms(), settings={"k": 5}).run(repaired, tmp_path)
    assert report.arms["closed_book"].metrics["exact_match"].mean == 0.5
    file = tmp_path / "replies.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:3], lines[3].replace("reply", "answer"), *lines[4:]]))
    with pytest.raises(InvalidInputError, match="line 4, is damaged"):
        Evaluator(arms(), settings={"k": 5}).run(QUESTIONS, tmp_path)


def test_a_folder_serves_one_run_at_a_time(tmp_path):
    def meddle(questions):
        Evaluator(arms()).run(QUESTIONS, tmp_path)

    with pytest.raises(InvalidInputError, match="another evaluation is writing there"):
        Evaluator(arms(retrieved=meddle)).run(QUESTIONS, tmp_path)


def test_a_metric_of_ones_own_decides_what_is_right():
    metrics = {"length": lambda prediction, question: float(len(prediction) > 7), "exact_match": None}
    report = Evaluator(arms(), metrics).run(QUESTIONS)
    assert report.accuracy == "length"
    assert report.arms["retrieved"].metrics["exact_match"].mean == 0.75


def test_growth_is_measured_in_order_and_resumes(tmp_path):
    made = []

    def arm_among(num_distractors):
        made.append(num_distractors)
        return Oracle(range(12 if num_distractors < 500 else 3))

    options = {"num_passages": 20, "folder": tmp_path, "factors": (1, 10, 100)}
    report = measure_growth(QUESTIONS, Oracle([]), arm_among, **options)
    assert made == [0, 180, 1980]
    assert [point.accuracy.mean for point in report.points] == [1, 1, 0.25]
    assert [point.num_passages for point in report.points] == [20, 200, 2000]
    assert report.hit == "hit@2"
    assert [path.name for path in report.save(tmp_path)] == ["growth.json", "growth.md", "growth.png"]
    assert "| 2,000 (100×) | 25.0 (" in report.to_markdown()
    measure_growth(QUESTIONS, Oracle([]), arm_among, **options)
    assert len(made) == 3  # all replies are there


def test_passages_that_hold_an_answer_do_not_distract():
    passages = [{"text": f"It is answer {n}."} for n in range(20)] + [{"text": None}, {}]
    kept = list(without_answers(passages, QUESTIONS))
    assert kept == passages[12:]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Evaluator({"retrieved": Oracle([])}), "There is no arm 'closed_book'; there is retrieved"),
        (lambda: Evaluator(arms(), ["rouge"]), "'rouge' is not known. Choose of exact_match"),
        (lambda: Evaluator(arms(), ["vqa_accuracy"]).run(QUESTIONS), "Question '0': VQA accuracy needs"),
        (lambda: Evaluator(arms(), ["bleu_4", "cider_d"]).run([]), "no question to evaluate"),
        (lambda: Evaluator(arms()).run([*QUESTIONS, QUESTIONS[3]]), "Two questions have the id '3'"),
        (lambda: Evaluator(arms()).run([Question("1", "Why?", ())]), "Question '1' has no accepted answer"),
        (lambda: Evaluator(arms(retrieved=lambda batch: ["yes"])).run(QUESTIONS), "'retrieved' gave 1 replies to 8"),
        (lambda: Evaluator(arms(retrieved=lambda batch: [None] * len(batch))).run(QUESTIONS), "question '0' by None"),
        (lambda: Evaluator(arms(retrieved=Oracle([], confidence=1.2))).run(QUESTIONS), "confidence 1.2, not in 0..1"),
        (lambda: Evaluator(arms(), {"ten": lambda said, question: 10.0}).run(QUESTIONS), "must be in 0..1; 'ten'"),
        (lambda: measure_growth(QUESTIONS, Oracle([]), Oracle, 20, factors=(10, 1)), "growing numbers from 1 on"),
    ],
)
def test_errors_say_what_came(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
