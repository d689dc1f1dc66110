"""The comparisons of trainings: their questions, their figures, and that both programs run and fill their tables."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState

import compare_joint
import compare_negatives
import compare_training
from flags.asked_world import AskedWorld
from flags.comparing import first_hits, world_to_compare_in
from flags.comparison import format_comparison
from flags.measure import Task
from flags.world import ENTRY_VIEW, load_world
from hf_ravlm import KnowledgeBase, RavlmRetriever
from hf_ravlm.training.batches.leakage import holds_answer


@pytest.fixture(scope="module")
def world():
    """Eight countries, two of them for dev."""
    world = load_world()
    train, dev = world.train[:6], world.dev[:2]
    return replace(world, entities={e: world.entities[e] for e in train + dev}, train=train, dev=dev)


@pytest.fixture(scope="module")
def asked(world):
    return AskedWorld(world, world.train, num_rows=60, seed=0)


def test_the_gold_passage_of_a_question_holds_its_answer_and_is_in_the_knowledge_base(asked):
    knowledge_base = asked.knowledge_base()
    for row in (asked[number] for number in range(len(asked))):
        [gold] = row["gold_ids"]
        assert holds_answer(row["gold_text"], [row["answer"]])
        assert knowledge_base[gold].text == row["gold_text"]
        assert np.array_equal(np.asarray(knowledge_base[gold].image), np.asarray(row["gold_image"]))


def test_questions_follow_from_seed_and_row_and_show_no_entry_picture(world, asked):
    again, other = (AskedWorld(world, world.train, num_rows=60, seed=seed) for seed in (0, 1))
    told = [(asked[n]["id"], asked[n]["question"]) for n in range(60)]
    assert told == [(again[n]["id"], again[n]["question"]) for n in range(60)]
    assert told != [(other[n]["id"], other[n]["question"]) for n in range(60)]
    assert asked.with_length(7)[3]["id"] == asked[3]["id"]
    assert len(asked.with_length(7)) == 7
    assert ENTRY_VIEW not in {view for _, view in asked.asked}
    assert {country for country, _ in asked.asked} <= set(world.train)


def test_countries_to_choose_by_are_taken_from_training_and_dev_stays_unseen():
    plain, choosing = load_world(), world_to_compare_in(10)
    assert len(choosing.dev) == 10
    assert sorted(choosing.train + choosing.dev) == plain.train
    assert not set(choosing.dev) & set(plain.dev)


def test_a_hit_is_of_the_country_holds_the_answer_or_is_the_very_passage(world):
    country, other = world.dev
    view = next(view for entity, view in world.images if entity == country and view != ENTRY_VIEW)
    texts = {
        "name": f"Country or territory with this flag: {country}.",
        "capital": f"Capital of {country}: X.",
        "facts": "X is a port",
    }
    rows = [{"id": f"{country}/{kind}", "text": text} for kind, text in texts.items()]
    rows.append({"id": f"{other}/capital", "text": "Capital of another: X."})

    told = [row["text"] for row in rows]

    class Encoder:
        """The question names the passage that is found."""

        name, fingerprint = "told", "0" * 64

        def encode_queries(self, images, texts):
            return np.eye(4, dtype=np.float32)[[int(text) for text in texts]]

        def encode_passages(self, texts, images):
            return np.eye(4, dtype=np.float32)[[told.index(text) for text in texts]]

    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(rows), Encoder())
    found = [first_hits(retriever, world, [Task(country, view, "capital", str(n), ["X"])]) for n in range(4)]
    assert [hits["country"] for hits in found] == [1, 1, 1, 0]
    assert [hits["answer"] for hits in found] == [0, 1, 1, 0]
    assert [hits["passage"] for hits in found] == [0, 1, 0, 0]


def test_the_table_shows_means_ranges_and_gains_seed_by_seed():
    results = [
        {"plain": {"hit@1": 0.5, "seconds": 10.0}, "new": {"hit@1": 0.9, "seconds": 12.0}},
        {"plain": {"hit@1": 0.7, "seconds": 20.0}, "new": {"hit@1": 0.8, "seconds": 12.0}},
    ]
    *_, hits, seconds = format_comparison(results, ["plain", "new"]).splitlines()
    assert hits == "| hit@1 | 0.600 (0.500 to 0.700) | 0.850 (0.800 to 0.900) | +25.0 (+10.0 to +40.0) |"
    assert seconds == "| seconds | 15 (10 to 20) | 12 (12 to 12) |  |"


def test_the_programs_train_every_arm_and_write_their_figures(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare_negatives, "world_to_compare_in", lambda _: world)
    monkeypatch.setattr(compare_joint, "world_to_compare_in", lambda _: world)
    aligned = tmp_path / "negatives"
    compare_negatives.main(compare_negatives.Options(str(aligned), [0], steps=2, pairs=2, questions=8, mine_every=1))
    told = json.loads((aligned / "results.json").read_text())
    assert set(told["results"][0]) == {"in-batch", "mined"}
    assert (aligned / "mined-0.safetensors").is_file()
    compare_joint.main(
        compare_joint.Options(
            str(tmp_path / "joint"),
            [0],
            towers=str(aligned),
            steps=2,
            questions=2,
            passages=2,
            views=["twemoji"],
            refresh_every=1,
        )
    )
    [result] = json.loads((tmp_path / "joint" / "results.json").read_text())["results"]
    assert set(result) == {"before", "separate", "joint"}
    assert all(0 <= value <= 1 for name, value in result["joint"].items() if not name.startswith("processor"))
    assert "| joint - separate, points |" in capsys.readouterr().out


def test_every_way_of_training_on_has_the_same_time_and_a_row_of_one_table(world, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_training, "world_to_compare_in", lambda _: world)
    arms = ["before", "all three", "mined", "separate", "emdr2"]  # each kind of trainer once
    options = compare_training.Options(
        *(str(tmp_path), [0]), seconds=0.01, pairs=4, questions=2, passages=2, views=["twemoji"], arms=arms
    )
    compare_training.main(options)
    [result] = json.loads((tmp_path / "results.json").read_text())["results"]
    assert {arm: row["steps"] for arm, row in result.items()} == {arm: int(arm != "before") for arm in arms}
    assert {arm for arm, row in result.items() if "hit@1, reranked" in row} == {"all three"}
    table = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == arms


def test_the_clock_ends_a_training_by_processor_time():
    clock, control = compare_training.Clock(1e-9), TrainerControl()
    clock.on_train_begin(None, None, control)
    clock.on_step_end(None, TrainerState(global_step=3), control)
    assert (clock.steps, control.should_training_stop) == (3, True)
    patient, control = compare_training.Clock(1e9), TrainerControl()
    patient.on_train_begin(None, None, control)
    patient.on_step_end(None, TrainerState(global_step=3), control)
    assert not control.should_training_stop
