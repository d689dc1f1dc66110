"""`hf-ravlm ask`: what stands before and below the answer, with the shipped system."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_ravlm.cli import main
from hf_ravlm.pipelines import AnswerPolicy
from hf_ravlm.pipelines.policy.decision_heads import UncertaintyRule


FLAGS = Path(__file__).parents[2] / "examples" / "flags"
ICELAND = FLAGS / "unseen" / "is__circleflags.png"
CAPITAL = "What is the capital of the country that uses this flag?"
ASK = ["ask", str(FLAGS / "checkpoint")]


def test_an_answer_is_told_with_its_confidence_and_where_it_was_read(capsys):
    assert main([*ASK, str(ICELAND), CAPITAL, "--policy", str(FLAGS / "policy")]) == 0
    answer, sure, _, read, passage, origin = capsys.readouterr().out.splitlines()
    assert (answer, read) == ("Reykjavik", "Read:")
    assert sure.startswith("(sure by 0.")
    assert passage.endswith("is/capital: Capital of Iceland: Reykjavik.")  # its title, with which it begins, but once
    assert origin.strip().startswith("npm world-countries")
    assert "ODbL-1.0" in origin


def test_an_image_alone_is_described(capsys):
    assert main([*ASK, str(ICELAND)]) == 0
    description, *_, passage, _ = capsys.readouterr().out.splitlines()
    assert "Iceland" in description
    assert passage.endswith(" ...")  # the passage is longer, and looks so
    assert main([*ASK, str(ICELAND), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["question"] is None


def test_a_system_is_saved_over_nothing_that_somebody_keeps(tmp_path, capsys):
    ask = [*ASK, str(ICELAND), CAPITAL, "--quiet", "--save"]
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "rake.txt").write_text("A rake.")
    assert main([*ask, str(tmp_path / "photographs"), "--overwrite"]) == 2
    assert "photographs holds other files (rake.txt) and no system. Name a new folder." in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "photographs").iterdir()] == ["rake.txt"]
    assert main([*ask, str(tmp_path / "new")]) == 0
    assert main([*ask, str(tmp_path / "new")]) == 2
    assert "holds a system already. Name a new folder, or add --overwrite." in capsys.readouterr().err
    assert main([*ask, str(tmp_path / "new"), "--overwrite"]) == 0
    assert main(["ask", str(tmp_path / "new"), str(ICELAND), CAPITAL]) == 0
    assert "is/capital" in capsys.readouterr().out


def test_how_a_source_is_read_is_refused_where_there_is_none(capsys):
    for options, named in ((["--columns", "id=x"], "--columns id=NAME"), (["--on_error", "skip"], "--on_error skip")):
        assert main([*ASK, str(ICELAND), CAPITAL, *options]) == 2
        assert f"error: {named} says how a source is read, and " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["gone.png", CAPITAL], ["gone.png"], [str(ICELAND), "gone.png"]])
def test_an_image_that_is_not_there_is_named(words, capsys):
    assert main([*ASK, *words]) == 2
    assert "gone.png: there is no such image." in capsys.readouterr().err


def test_a_folder_is_no_image(capsys):
    assert main([*ASK, str(ICELAND.parent), CAPITAL]) == 2
    assert "this is a folder, not an image" in capsys.readouterr().err


def test_where_nothing_was_read_or_cited_it_is_said_why(tmp_path, capsys):
    ask = [*ASK, str(ICELAND), CAPITAL]
    AnswerPolicy(similarity_floor=1.0).save_pretrained(tmp_path / "drops all")
    AnswerPolicy(gate=UncertaintyRule("margin"), gate_threshold=1.1, no_answers=()).save_pretrained(tmp_path / "sure")
    for options, why in {
        ("--policy", str(tmp_path / "drops all")): ": the policy dropped is/capital.",
        ("--policy", str(tmp_path / "sure")): ": the policy did not search.",
        ("--where", '{"source": "nobody"}'): ": nothing was found among what --where lets pass.",
        ("--where", '{"source": "nobody"}', "--k", "0"): ".",
        ("--where", '{"source": "nobody"}', "--policy", str(FLAGS / "policy")): ": nothing was found among what",
    }.items():
        assert main([*ask, *options]) == 0
        assert f"\nNothing was read for it{why}" in capsys.readouterr().out
    assert main([*ask, "--cite"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "  The answer cites none of them."


def test_an_empty_question_is_refused_before_anything_is_opened(capsys):
    assert main([*ASK, str(ICELAND), "  "]) == 2
    assert "the question is empty. Write it last, in quotes." in capsys.readouterr().err
