"""The shipped folder: small, whole, movable, and as good as its card says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

from flags.measure import answer_table, retrieval_table, tasks_of
from flags.questions import SHORT_KINDS
from flags.unseen_styles import unseen_pictures
from flags.world import load_world
from hf_ravlm import KnowledgeBaseMismatchError, RavlmEncoder, RavlmRetriever


ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "flags" / "checkpoint"


@pytest.fixture(scope="module")
def ask():
    return pipeline("image-to-text", model=str(FOLDER))


@pytest.fixture(scope="module")
def world():
    return load_world()


def test_it_is_small_and_names_no_machine():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40_000_000
    for path in files:
        if path.suffix in (".json", ".py", ".md", ""):
            assert not re.search(r"/(home|tmp|work|root)/", path.read_text(encoding="utf-8")), path


def test_moved_to_another_folder_it_finds_and_says_the_same(tmp_path, world):
    images = [world.images[entity, "openmoji"] for entity in world.dev[:4]]
    question = "What is the capital?"
    outcomes = []
    for folder in (FOLDER, tmp_path / "elsewhere"):
        if folder != FOLDER:
            shutil.copytree(FOLDER, folder)
        model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        retriever = RavlmRetriever.from_pretrained(folder)
        evidence = retriever.retrieve(images, [question] * 4, k=4)
        inputs = processor(images=images, text=[question] * 4, evidence=evidence)
        with torch.no_grad():
            logits = model(**inputs).logits
        outcomes.append(([[(p.id, p.score) for p in row] for row in evidence], logits))
    (found, logits), (again, logits_again) = outcomes
    for passages, passages_again in zip(found, again, strict=True):
        assert [name for name, _ in passages] == [name for name, _ in passages_again]
        assert [score for _, score in passages_again] == pytest.approx([score for _, score in passages], abs=1e-5)
    torch.testing.assert_close(logits_again, logits, atol=1e-4, rtol=1e-4)


def test_another_encoder_is_refused_by_name():
    model, processor = AutoModel.from_pretrained(FOLDER), AutoProcessor.from_pretrained(FOLDER)
    with torch.no_grad():
        model.image_projection.weight.neg_()
    with pytest.raises(KnowledgeBaseMismatchError, match=r"built by .*RavlmModel.* but the encoder is .*RavlmModel"):
        RavlmRetriever.from_pretrained(FOLDER, encoder=RavlmEncoder(model, processor))


def test_a_description_names_the_country_and_its_sources(ask, world):
    answer = ask(world.images["is", "twemoji"])[0]
    assert answer["generated_text"].startswith(("The flag of Iceland: ", "Meaning of the flag of Iceland: "))
    assert all(passage["licence"] and passage["source"] for passage in answer["evidence"])


@pytest.mark.slow
def test_retrieval_is_what_makes_it_answer(ask, world):
    """Countries that it never trained on, one style: far from the card's full table, but the same order of things."""
    tasks = tasks_of(world, world.dev, ["openmoji"], SHORT_KINDS)
    table = answer_table(ask.model, ask.processor, ask.retriever, world, tasks)["short answers"]
    assert table["gold"]["exact match"] >= 0.95
    assert table["retrieved"]["exact match"] >= 0.85
    assert table["closed-book"]["exact match"] <= 0.3
    hits = retrieval_table(ask.retriever, world, world.dev, ["openmoji", "twemoji"])
    assert hits["worst"]["hit@1"] >= 0.85


@pytest.mark.slow
def test_styles_that_nobody_trained_on_are_recognised(ask):
    pictures = [(entity, path) for entity, _, path in unseen_pictures()]
    found = ask.retriever.retrieve([str(path) for _, path in pictures], None, k=1)
    right = sum(row[0].metadata["entity"] == entity for row, (entity, _) in zip(found, pictures))
    assert right / len(pictures) >= 0.85


def test_the_card_shows_the_figures_that_were_measured():
    figures = json.loads((FOLDER / "figures.json").read_text(encoding="utf-8"))
    card = (ROOT / "model_cards" / "flags.md").read_text(encoding="utf-8")
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == card
    for style, row in figures["retrieval"].items():
        assert f"| {style} | {row['hit@1']:.3f} | {row['hit@5']:.3f} | {row['mean rank']:.2f} |" in card
    for arm, row in figures["answers"]["short answers"].items():
        assert f"{row['exact match']:.3f}" in card, arm
    reworded = json.loads((FOLDER / "wordings.json").read_text(encoding="utf-8"))
    for family, row in reworded["wordings"].items():
        assert f"| {family} | {row['retrieved']:.3f} | {row['reads on']:.3f} | {row['gold']:.3f} |" in card
