"""A reader that chooses of a closed set, evaluated from the command line: arms, measures, what is refused."""

from __future__ import annotations

import json

import pytest
from transformers import pipeline

from hf_ravlm import RavlmForVisualQuestionAnswering
from hf_ravlm.cli import main
from tiny import picture
from tiny_folder import save_everything, tiny_parts


ANSWERS = ["Oslo", "N'Djamena", "red"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    save_everything(folder / "reader")
    model, processor, retriever = tiny_parts()
    closed = RavlmForVisualQuestionAnswering.from_reader(model, ANSWERS)
    parts = {"model": closed, "processor": processor, "retriever": retriever}
    pipeline("visual-question-answering", **parts).save_pretrained(folder / "closed")
    rows = []
    for number, answer in enumerate(["Oslo", "N'Djamena"]):
        picture(number).save(folder / f"{number}.png")
        asked = {"id": str(number), "question": "what is the capital ?", "answers": [answer]}
        rows.append({**asked, "image": f"{number}.png", "gold_ids": [str(number)]})
    rows.append({"id": "2", "question": "what is the capital of Norway ?", "answers": ["Oslo"], "gold_ids": ["0"]})
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def command(world, output, model, *words):
    paths = [world / model, world / "questions.jsonl", output]
    return ["evaluate", *map(str, paths), "--task", "visual-question-answering", "-k", "2", *words]


def answers_in(folder):
    """What was said, by the file of replies."""
    lines = [json.loads(line) for path in folder.rglob("*.jsonl") for line in path.open()]
    return {line["reply"]["text"] for line in lines if "reply" in line}


@pytest.mark.parametrize("model", ["reader", "closed"])
def test_every_arm_chooses_of_the_set(world, tmp_path, model, capsys):
    assert main(command(world, tmp_path / "out", model)) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {"closed_book", "retrieved", "gold"} <= set(report["arms"])
    said = answers_in(tmp_path / "out")
    assert said
    assert said <= set(ANSWERS)
    assert "retrieved" in capsys.readouterr().out


def test_a_set_of_its_own_comes_from_a_file(world, tmp_path, capsys):
    (tmp_path / "set.txt").write_text("white\n\nred\n")
    assert main(command(world, tmp_path / "out", "reader", "--allowed_answers", str(tmp_path / "set.txt"))) == 0
    assert answers_in(tmp_path / "out") <= {"white", "red"}
    (tmp_path / "set.txt").write_text("\n")
    assert main(command(world, tmp_path / "two", "reader", "--allowed_answers", str(tmp_path / "set.txt"))) == 2
    assert "there is no answer in it" in capsys.readouterr().err
    assert main(command(world, tmp_path / "two", "reader", "--arms", "guarded")) == 2
    assert "no arm guarded of a closed set" in capsys.readouterr().err
    asked = [*command(world, tmp_path / "two", "reader")[:4], "--allowed_answers", "set.txt"]
    assert main(asked) == 2
    assert "is of --task visual-question-answering" in capsys.readouterr().err
