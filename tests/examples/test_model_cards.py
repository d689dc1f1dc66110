"""The cards of what we ship say what the evaluator says, and the Hub would take their heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from flags import evaluation
from flags.evaluation import SAMPLE, evaluate_flags, short_questions
from flags.world import load_world
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.hub.card import check_card, count_parameters, effect_table, three_way_table


ROOT = Path(__file__).parents[2]
# Beside the cards there are reports without a head; what is shipped must have a card, see below.
CARDS = [path for path in sorted((ROOT / "model_cards").glob("*.md")) if path.read_text("utf-8").startswith("---\n")]
FOLDER = ROOT / "examples" / "flags" / "checkpoint"


@pytest.fixture(scope="module")
def reports():
    return json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def card():
    return (ROOT / "model_cards" / "flags.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CARDS, ids=[path.stem for path in CARDS])
def test_the_head_is_valid(path):
    check_card(path.read_text(encoding="utf-8"))


def test_every_shipped_checkpoint_has_its_card():
    shipped = [path.parent / "README.md" for path in (ROOT / "examples").rglob("model.safetensors")]
    cards = {path.read_text(encoding="utf-8") for path in CARDS}
    assert FOLDER / "README.md" in shipped
    assert [path for path in shipped if path.read_text(encoding="utf-8") not in cards] == []


def test_tables_and_head_are_those_of_the_report(card, reports):
    for line in (*three_way_table(reports["all"]), *effect_table(reports["all"])):
        assert line in card
    shown = {result.metric_name: result.metric_value for result in ModelCard(card).data.eval_results}
    for arm, name in (("closed_book", "closed-book"), ("retrieved", "retrieved"), ("gold", "gold passage")):
        found = reports["all"]["arms"][arm]
        assert shown[f"exact match, {name}"] == pytest.approx(found["metrics"]["exact_match"]["mean"], abs=1e-6)
        if found["effect"]:
            for part in ("rescue_rate", "harm_rate"):
                assert shown[f"{part.replace('_', ' ')}, {name}"] == pytest.approx(
                    found["effect"][part]["mean"], abs=1e-6
                )


def test_two_ways_of_measuring_agree(reports):
    """`examples/flags/measure.py` and the evaluator ask the same questions, each with code of its own."""
    measured = json.loads((FOLDER / "figures.json").read_text(encoding="utf-8"))["answers"]["short answers"]
    for arm, name in (("closed_book", "closed-book"), ("retrieved", "retrieved"), ("gold", "gold")):
        value = reports["all"]["arms"][arm]["metrics"]["exact_match"]["mean"]
        assert value == pytest.approx(measured[name]["exact match"], abs=2 / reports["all"]["num_questions"]), arm


def test_the_evaluator_says_the_same_of_a_sample(reports):
    report = evaluate_flags(FOLDER, short_questions(load_world(), SAMPLE)).to_dict()
    for arm, found in report["arms"].items():
        expected = reports["sample"]["arms"][arm]
        # Another processor rounds otherwise, and may turn one answer.
        assert found["metrics"]["exact_match"]["mean"] == pytest.approx(
            expected["metrics"]["exact_match"]["mean"], abs=1 / SAMPLE
        )
        if found["effect"]:
            assert found["effect"]["rescue_rate"]["mean"] == pytest.approx(
                expected["effect"]["rescue_rate"]["mean"], abs=1 / SAMPLE
            )


def test_replies_of_other_weights_are_not_taken_for_those_of_these(tmp_path, monkeypatch):
    question = short_questions(load_world(), 1)
    monkeypatch.setattr(evaluation, "weights_digest", lambda folder: "earlier")
    evaluate_flags(FOLDER, question, tmp_path)
    monkeypatch.undo()
    with pytest.raises(InvalidInputError, match="replies of other settings"):
        evaluate_flags(FOLDER, question, tmp_path)


def test_the_card_names_what_it_must(card):
    for words in ("2,168 passages", "| ODbL-1.0 | 1,490 |", "train_flags.py", "## What it cannot do", "Apache-2.0"):
        assert words in card
    assert f"{count_parameters(FOLDER) / 1e6:.1f}" in card.replace("\n", " ")
