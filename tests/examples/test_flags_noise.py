"""The comparison of readers that learned with and without noise: who reads what, what is counted, and that it runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flags.noise_experiment import CHECKPOINT, Options, load, main
from flags.noisy_rows import HELD_OUT_STYLES, countries_of, rows_to_know, rows_to_read
from flags.questions import UNSEEN
from flags.robustness import CONDITIONS, effect_of, evidence_for, harm_interval, questions_about
from flags.world import load_world


@pytest.fixture(scope="module")
def world():
    return load_world()


@pytest.fixture(scope="module")
def retriever():
    return load(CHECKPOINT)[2]


def test_dev_countries_are_known_or_not_and_never_read_about(world, retriever):
    countries = countries_of(world, 10)
    assert len(countries["known"]) == 10
    assert not set(countries["known"]) & set(countries["other"])
    assert sorted(countries["known dev"] + countries["unknown dev"]) == world.dev
    rows = rows_to_read(world, countries, retriever.knowledge_base, 300, seed=1)
    assert rows == rows_to_read(world, countries, retriever.knowledge_base, 300, seed=1)
    for row in rows:
        about = {passage_id.split("/")[0] for passage_id in [*row["gold_ids"], *row.get("negative_ids", ())]}
        assert not about & set(world.dev)
        assert row["question"] not in sum(UNSEEN.values(), ())
        if row["gold_ids"]:
            assert row["known"] == (row["gold_ids"][0].split("/")[0] in countries["known"])
            assert row["gold_ids"][0] not in row["negative_ids"]
            assert row["answer"] in retriever.knowledge_base[row["gold_ids"][0]].text
    assert np.mean([not row["gold_ids"] for row in rows]) == pytest.approx(0.2, abs=0.07)
    batches = rows_to_know(world, countries, retriever.knowledge_base, [3] * 10)
    assert [bool(row["evidence"]) for row in batches] == ([False] * 12 + [True] * 3) * 2


@pytest.mark.parametrize("k", [1, 3])
def test_conditions_differ_in_the_passages_as_they_say(world, retriever, k):
    questions = questions_about(world, world.dev[:3], HELD_OUT_STYLES, 12)
    assert {question.id.split("/")[1] for question in questions} <= set(HELD_OUT_STYLES)
    evidence = evidence_for(questions, retriever, k)
    for at, question in enumerate(questions):
        found, mixed, wrong = ([passage.id for passage in evidence[name][at]] for name in CONDITIONS)
        assert len(found) == len(mixed) == len(wrong) == k
        assert mixed.count(question.gold_ids[0]) == 1
        assert question.gold_ids[0] not in wrong
        kept = [passage_id for passage_id in found if passage_id not in question.gold_ids]
        assert kept == wrong[: len(kept)]


def test_harm_is_counted_among_what_was_known(world):
    questions = questions_about(world, world.dev[:2], HELD_OUT_STYLES, 4)
    alone, told = np.array([True, True, False, False]), np.array([True, False, True, False])
    effect = effect_of(alone, told)
    assert effect["harmed of right"] == 0.5
    assert effect["harmed"] == effect["rescued"] == 0.25
    mean, lower, upper = harm_interval([(questions, alone, told)] * 2)
    assert 0 <= lower <= mean == 0.5 <= upper <= 1
    assert harm_interval([(questions, ~alone & ~told & False, told)]) == []


def test_the_program_trains_both_readers_and_writes_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("flags.noise_experiment.MEMORY_BATCH", 4)
    monkeypatch.setattr("flags.noise_experiment.BATCH", 4)
    main(
        Options(str(tmp_path), seeds=[0], known=3, memory_steps=1, steps=1, questions=1, betas=[0.0, 0.5], keep=[0.8])
    )
    written = json.loads((tmp_path / "robustness.json").read_text())
    readers = {f"{arm}, {group} dev, k = 2" for arm in ("gold", "noise") for group in ("known", "unknown")}
    readers |= {f"{reader}, beta = 0.5" for reader in readers}
    assert set(written["runs"]) == readers | {f"{reader}, closed-book from 0.8" for reader in readers}
    assert all(list(conditions) == list(CONDITIONS) for conditions in written["runs"].values())
    assert "| noise, known dev, k = 2 | retrieved |" in capsys.readouterr().out
    assert set(written["seconds"]) == {"memory", "gold, seed 0", "noise, seed 0"}
    assert all((tmp_path / name / "model.safetensors").is_file() for name in ("memory", "gold-0", "noise-0"))
