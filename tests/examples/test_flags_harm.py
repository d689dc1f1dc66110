"""Doing no harm: what the shipped figures promise, that the card tells them, and the shipped policy at work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import pipeline

from flags.harm_report import mean_of_seeds, report_lines, withheld_below
from flags.questions import OFFICIAL
from flags.world import load_world
from flags.wrong_knowledge import FlagKnowledge, true_rows
from hf_ravlm.pipelines import AnswerPolicy, answer_questions


ROOT = Path(__file__).parents[2]
POLICY = ROOT / "examples" / "flags" / "policy"
CARD = ROOT / "model_cards" / "flags_do_no_harm.md"


@pytest.fixture(scope="module")
def record():
    return json.loads((POLICY / "harm.json").read_text(encoding="utf-8"))


def test_the_card_tells_the_figures(record):
    card = CARD.read_text(encoding="utf-8")
    for line in report_lines(record):
        assert line in card
    gate = json.loads((POLICY / "gate.json").read_text(encoding="utf-8"))
    for name, row in gate.items():
        assert f"| {name} | {row['exact match']:.3f} | {row['harmed']:.3f} | {row['searches']:.3f} |" in card
    assert (CARD.parent / re.search(r"\]\((\S+\.png)\)", card)[1]).is_file()


def mean(record, world, key):
    values = [row[key] for row in record["worlds"][world]]
    return sum(values) / len(values)


def test_half_of_the_passages_wrong_costs_less_than_three_points(record):
    clean = mean(record, "clean", "no policy")
    for world in ("strangers", "twins"):
        assert mean(record, world, "no policy") < clean - 0.2
        assert mean(record, world, "given") >= clean - 0.03
    assert mean(record, "clean", "given") >= clean - 0.03


def test_nine_of_ten_abstentions_are_right_where_knowledge_lacks_the_answer(record):
    for world in ("half gone", "all gone"):
        assert all(row["abstention precision"] >= 0.9 for row in record["worlds"][world])
        assert mean(record, world, "coverage") < mean(record, "clean", "coverage")


def test_the_shipped_policy_notices_that_an_answer_is_missing():
    world = load_world()
    countries = world.dev[::3]
    ask = pipeline("image-to-text", model=str(ROOT / "examples" / "flags" / "checkpoint"))
    gaps = FlagKnowledge(ask.retriever.encoder).retriever(true_rows(world, without=countries))
    pictures = [world.images[entity, "openmoji"] for entity in countries]
    policy, options = AnswerPolicy.from_pretrained(POLICY), {"with_posterior": False, "max_new_tokens": 16}

    def ask_all(retriever):
        questions = [OFFICIAL["capital"]] * len(pictures)
        rows = answer_questions(ask.model, ask.processor, retriever, pictures, questions, policy=policy, **options)
        return [answer.decision for (answer,) in rows]

    known, missing = ask_all(ask.retriever), ask_all(gaps)
    assert sum(decision.abstained for decision in known) < sum(decision.abstained for decision in missing)
    assert all(decision.dropped for decision in known)
    confidences = [sum(decision.confidence for decision in decisions) for decisions in (known, missing)]
    assert confidences[0] > confidences[1] + 1


def test_figures_of_seeds_and_levels():
    assert mean_of_seeds([{"a": 0.5}, {"a": 0.7}], "a") == "0.600 (0.500 to 0.700)"
    assert mean_of_seeds([{"a": None}], "a") == "–"
    told = {"sure": [0.9, 0.6, 0.2], "said": [1.0, 0.0, 0.0], "answered": [True, True, True]}
    assert withheld_below(told, 0.5) == ["0.667", "0.500", "1.000", "0.500"]
    assert withheld_below(told, 0.0)[2] == "–"
