"""A prompt that ends in an answer, as a reader's processor writes it, taken apart for scoring."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .multimodal import NOT_OF_IMAGE_TEXT
from .scoring import AnsweredPrompt


def write_answered(
    processor: Any,
    image: Any,
    question: str,
    evidence: Sequence[Any],
    answer: str,
    settings: Mapping[str, Any],
    model: Any,
) -> Any:
    """What the processor writes for one question with an answer on top of its prompt.

    Returns:
        Of a reader that sees images by itself an [`AnsweredPrompt`]; of others the inputs, which are to be embedded.
    """
    inputs = processor(
        images=None if image is None else [image],
        text=[question],
        evidence=[list(evidence)],
        answers=[answer],
        padding_side="left",
        answer_on_top=True,
        prompt=dict(settings),
    ).to(model.device)
    if not model.reads_images:
        return inputs
    labels = inputs.pop("labels")[0]
    given = {name: value for name, value in inputs.items() if name not in NOT_OF_IMAGE_TEXT}
    shape = given["input_ids"].shape
    spread = {name for name, value in given.items() if getattr(value, "shape", ())[:2] == shape}
    tokens = {name: given[name] for name in spread - {"attention_mask"}}
    language_model = model.language_model
    if "position_ids" in inspect.signature(language_model.forward).parameters:
        tokens["position_ids"] = language_model._prepare_position_ids_for_generation(given["input_ids"], {**given})
    images = {name: value for name, value in given.items() if name not in spread}
    if "pixel_values" in images and torch.is_tensor(images["pixel_values"]):
        images["pixel_values"] = images["pixel_values"].to(model.dtype)
    return AnsweredPrompt(tokens, labels[labels != -100], images)
