"""`hf-ravlm fit-policy`: a policy for the shipped system, fitted to questions in a table, by its own words alone."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_ravlm import KnowledgeBase
from hf_ravlm.cli import main
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.evaluation import Question
from hf_ravlm.pipelines import AnswerPolicy
from hf_ravlm.pipelines.model_folder import find_policy
from hf_ravlm.pipelines.opening import open_pipeline
from hf_ravlm.saving.checksums import read_entries
from hf_ravlm.training.own_questions import _warn_of_loss, judged_questions, split_questions


FLAGS = Path(__file__).parents[2] / "examples" / "flags"


def table(folder: Path, gold: bool) -> Path:
    """Questions about flags: half of them the knowledge answers, and half it does not."""
    known = KnowledgeBase.from_pretrained(FLAGS / "checkpoint")
    rows = []
    pictures = sorted(path for path in (FLAGS / "unseen").glob("*__*.png") if f"{path.name[:2]}/capital" in known)
    for number, path in enumerate(pictures[:40]):
        text = known[f"{path.name[:2]}/capital"].text
        asked = ["What is the capital of the country that uses this flag?", "Who was its king in 1650?"][number % 2]
        answer = [text.rpartition(": ")[2].rstrip("."), "nobody at all"][number % 2]
        row = {"frage": asked, "answer": answer, "image": str(path)}
        rows.append(row | ({"gold_ids": json.dumps([f"{path.name[:2]}/capital"])} if gold and not number % 2 else {}))
    file = folder / "meine fragen.csv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["frage", "answer", "image", "gold_ids"])
        writer.writeheader()
        writer.writerows(rows)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped system in a folder of one's own, and a table of questions beside it."""
    root = tmp_path_factory.mktemp("mön système")
    shutil.copytree(FLAGS / "checkpoint", root / "system")
    return root


def fitted(folder, model, *words) -> int:
    questions = str(table(folder, gold=False))
    given = ("--columns", "question=frage", "--max_new_tokens", "12", "--quiet")
    return main(["fit-policy", str(model), questions, *words, *given])


def test_the_system_answers_by_the_policy_from_then_on(folder, capsys):
    assert find_policy(open_pipeline(folder / "system", device="cpu").model) is None
    assert fitted(folder, folder / "system", "--json", "--wrong_cost", "9") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["num_fitted"], record["num_measured"]) == (30, 10)
    arms = record["report"]["arms"]
    assert list(arms) == ["closed_book", "retrieved", "guarded"]
    plain, kept = arms["retrieved"]["metrics"]["exact_match"]["mean"], arms["guarded"]["policy"]["abstention"]
    assert kept["accuracy"] > plain
    assert kept["coverage"] < 1
    pipe = open_pipeline(folder / "system", device="cpu")
    assert pipe.policy.fingerprint == record["policy"]["fingerprint"]
    assert {"answer_policy.json", "answer_policy.safetensors"} <= set(read_entries(folder / "system"))
    answer = pipe(str(FLAGS / "unseen" / "is__circleflags.png"), question="Who was its king in 1650?")[0]
    assert answer["abstained"]
    told = ["ask", str(folder / "system"), str(FLAGS / "unseen" / "is__circleflags.png"), "Who was its king in 1650?"]
    assert main(told) == 0
    assert "Withheld by the policy, which is sure by 0." in capsys.readouterr().out
    assert main([*told, "--json"]) == 0
    assert not {"posterior", "leave_one_out"} & set(json.loads(capsys.readouterr().out))  # no one asked for them


def test_it_goes_where_it_is_told_and_the_table_is_for_people(folder, tmp_path, capsys):
    place = tmp_path / "à part"
    options = ("--search_cost", "0.02", "--k", "1", "--num_readings", "3")
    assert fitted(folder, FLAGS / "checkpoint", "--out", str(place), *options) == 0
    out = capsys.readouterr().out
    assert "Fitted on 30 questions. On 10 others (guarded is with the policy):" in out
    assert "| guarded |" in out
    assert str(place / "answer_policy.json") in out
    policy = AnswerPolicy.from_pretrained(place)
    assert policy.gate is not None
    assert (policy.num_candidates, policy.num_readings) == (3, 3)
    asked = [str(FLAGS / "unseen" / "is__circleflags.png"), "What is the capital of the country that uses this flag?"]
    assert main(["ask", str(FLAGS / "checkpoint"), *asked, "--policy", str(place), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert 0 <= record["confidence"] <= 1
    assert main(["ask", str(FLAGS / "checkpoint"), *asked, "--policy", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["owner/name"], "--out FOLDER"),
        (["{system}", "--out", "{questions}"], "is a file. Name a folder"),
        (["{system}", "--limit", "9"], "9 questions are too few to fit a policy: expected 30"),
        (["{system}", "--measured_share", "1.5"], "expected a share between 0 and 1"),
        (["{system}", "--metric", "luck"], "'luck'"),
        (["{system}", "--wrong_cost", "inf"], "wrong_cost=inf: expected a number from 0 on"),
        (["{system}", "--search_cost", "-1"], "search_cost=-1.0: expected a number from 0 on"),
        (["{system}", "--columns", "answers=reply"], "There is no column reply"),
    ],
)
def test_a_mistake_is_one_line(folder, words, message, capsys):
    names = {"system": str(FLAGS / "checkpoint"), "questions": str(folder / "meine fragen.csv")}
    assert fitted(folder, *(word.format(**names) for word in words)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (FLAGS / "checkpoint" / "answer_policy.json").exists()


def test_passages_are_marked_by_ids_or_by_the_answers_that_they_hold():
    class Retriever:
        def retrieve(self, images, texts, k, **options):
            from hf_ravlm.retrieval import Evidence

            found = [Evidence(id="a", text="A contract."), Evidence(id="b", text="It is on top."), Evidence(id="c")]
            return [found[:k] for _ in texts]

    class Pipe:
        retriever = Retriever()

    questions = [Question("1", "?", ("on",)), Question("2", "?", ("on",), gold_ids=("a", "c"))]
    by_words, by_ids = judged_questions(Pipe(), questions, 3, "exact_match")
    assert (by_words.relevant, by_ids.relevant) == ([False, True, False], [True, False, True])
    assert (by_words.is_right("On!"), by_words.is_right("off")) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("guarded", "coverage", "precision", "warned"), [(0.7, 1.0, None, False), (0.2, 0.3, 0.9, True)]
)
def test_a_policy_that_is_worse_than_none_is_told(guarded, coverage, precision, warned, caplog):
    def arm(value, policy=None):
        return SimpleNamespace(metrics={"exact_match": SimpleNamespace(mean=value)}, policy=policy)

    held = SimpleNamespace(abstention=SimpleNamespace(coverage=coverage, precision=precision))
    arms = {"retrieved": arm(0.7), "guarded": arm(guarded, held)}
    _warn_of_loss(SimpleNamespace(arms=arms, num_questions=10), "exact_match")
    assert ("fewer answers are right than without one (0.270, and 0.700 of 10 questions)" in caplog.text) == warned


def test_questions_about_one_image_stay_together():
    questions = [Question(str(n), "?", ("!",), image=f"{n // 3}.png") for n in range(30)]
    parts = split_questions(questions, 0.25, seed=3)
    assert sorted(one.id for part in parts for one in part) == sorted(one.id for one in questions)
    assert not {one.image for one in parts[0]} & {one.image for one in parts[1]}
    with pytest.raises(InvalidInputError, match="none is left to fit to: they are all about one image"):
        split_questions(questions[:3], 0.25)
    with pytest.raises(InvalidInputError, match=r"none is left to fit to: measured_share=0.99"):
        split_questions(questions, 0.99)
