"""Covering what a map shows costs the score more than covering as much where it shows nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import pipeline

from hf_ravlm.explain import retrieval_grad_cam


FLAGS = Path(__file__).parents[2] / "examples" / "flags"
QUESTION = "Whose flag is this?"


@pytest.fixture(scope="module")
def asked():
    """Forty flags in styles that the model never saw, and the passage that each found."""
    ask = pipeline("image-to-text", model=str(FLAGS / "checkpoint"))
    flags = [str(path) for path in sorted((FLAGS / "unseen").glob("*.png"))[:120:3]]
    found = [row[0] for row in ask.retriever.retrieve(flags, [QUESTION] * len(flags), k=1)]
    vectors = ask.retriever.encoder.encode_passages([item.text for item in found], [item.image for item in found])
    return ask.model.model, ask.processor, flags, torch.from_numpy(vectors)


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam"])
def test_hot_places_carry_the_retrieval_score(asked, method):
    model, processor, flags, passages = asked
    questions = [QUESTION] * len(flags)
    layer = model.vision_tower.encoder.stages[2]  # of 7 x 7 places
    maps = retrieval_grad_cam(model, processor, flags, questions, passages, layer, method)
    inputs = processor.for_retrieval(images=flags, texts=questions)
    pixels = inputs.pop("pixel_values")
    ground = pixels.mean(dim=(2, 3), keepdim=True)

    @torch.no_grad()
    def score(pictures: torch.Tensor) -> torch.Tensor:
        return torch.cosine_similarity(model.get_query_features(pixel_values=pictures, **inputs), passages)

    def lost(descending: bool) -> float:
        """What the cosine loses, on average, when a quarter of the picture is covered."""
        places = maps.flatten(1).argsort(dim=1, descending=descending)[:, : maps[0].numel() // 4]
        covered = torch.zeros_like(maps).flatten(1).scatter(1, places, 1.0).view_as(maps).unsqueeze(1)
        return float((score(pixels) - score(pixels * (1 - covered) + ground * covered)).mean())

    assert lost(descending=True) > 1.5 * lost(descending=False) > 0
