"""What `make demo` shows is chosen by a rule, and an answer counts as right only with its country's own passage."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from flags.world import load_world


@pytest.fixture(scope="module")
def demo():
    path = Path(__file__).parents[2] / "examples" / "demo.py"
    spec = importlib.util.spec_from_file_location("flags_demo", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_shown_is_one_picture_of_every_fifth_country_and_all_questions_are_among_them(demo):
    world = load_world()
    tasks = demo.asked_in_turn(world)
    shown = [task for task in tasks if demo.is_shown(world, task)]
    assert [task.entity for task in shown] == world.dev[::5]
    assert {task.question for task in shown} == {question for _, question, _ in demo.ASKED}
    assert len(tasks) == demo.STYLES * len(world.dev)


def test_a_right_answer_out_of_a_strangers_passage_is_right_by_chance(demo):
    world = load_world()
    task = next(task for task in demo.asked_in_turn(world) if task.kind == "language")
    cases = {
        "right": {"generated_text": task.answers[0], "evidence": [{"id": f"{task.entity}/language"}]},
        "right by chance": {"generated_text": task.answers[0], "evidence": [{"id": "nz/language"}]},
        "wrong": {"generated_text": "Klingon", "evidence": [{"id": f"{task.entity}/language"}]},
        "withheld": {"generated_text": "", "abstained": True, "withheld": task.answers[0], "evidence": []},
    }
    for expected, record in cases.items():
        assert demo.came_out(world, task, record) == expected
        assert expected in demo.MARKS
