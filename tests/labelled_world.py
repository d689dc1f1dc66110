"""A tiny classifier with labelled images: crosses of colours, noise that no two share, an index of them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmForImageClassification, RavlmRetriever
from tiny import tiny_model, tiny_processor


HUES = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "white": (230, 230, 230)}
KNOWN = ["red", "green", "blue"]


def coloured(label: str, seed: int) -> Image.Image:
    """A picture of one colour with noise."""
    noise = np.random.default_rng(seed).integers(-25, 26, (16, 16, 3))
    return Image.fromarray((np.array(HUES[label]) + noise).clip(0, 255).astype(np.uint8))


def entries(labels=KNOWN, number: int = 3, start: int = 0) -> list[dict]:
    return [
        {"id": f"{label}-{n}", "image": coloured(label, start + n), "label": label, "licence": "CC0-1.0"}
        for label in labels
        for n in range(number)
    ]


def tiny_classifier(labels=KNOWN, **options):
    """Classifier, processor, and a retriever over three labelled images of each class."""
    processor = tiny_processor()
    dual = tiny_model().model
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(entries(labels)), RavlmEncoder(dual, processor))
    model = RavlmForImageClassification.from_dual_encoder(dual, labels, processor, **options)
    return model, processor, retriever
