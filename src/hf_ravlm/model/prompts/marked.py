"""From questions, images and passages to prompts in our own layout of marks, for readers that are trained in it."""

from __future__ import annotations

from typing import Any

import torch

from ...images import safe_image, shrunk
from .asked import Asked
from .chat_inputs import CITE
from .evidence import EvidenceItem, chosen_passages, evidence_tensors
from .layout import PassagePart, Prompt, layout_prompt
from .settings import PromptSettings
from .tower_inputs import tokens_on_states, tower_texts


def marked_prompts(
    processor: Any, asked: Asked, settings: PromptSettings, each: bool
) -> tuple[list[Prompt], dict[str, torch.Tensor]]:
    """One prompt per question, or per question and passage (`each`), and what the model gets beside it.

    A passage that is missing, or not chosen, has no place; what has no place is not read.
    """
    num_passages = max(len(row) for row in asked.passages)
    images = settings.passage_images and processor.image_processor is not None
    chosen = [
        chosen_passages(row, settings.passage_titles, images, settings.drop_duplicates) for row in asked.passages
    ]
    tower = _evidence_tensors(processor, asked, settings, num_passages)
    if num_passages:
        there = [[k in row for k in range(num_passages)] for row in chosen]
        tower["evidence_mask"] &= torch.tensor(there)
    targets = [None] * len(asked.questions) if asked.answers is None else processor.encode_text(asked.answers)
    num_image_tokens = 0 if processor.image_processor is None else processor.num_image_tokens
    parts = _passage_parts(processor, asked.passages, chosen, tower, settings)
    prompts = [
        layout_prompt(
            processor.markers,
            question,
            shown,
            num_image_tokens=num_image_tokens if asked.images[i] else 0,
            max_length=settings.max_length,
            answer=targets[i],
            question_first=processor.question_first,
            system=_system_ids(processor, settings, bool(chosen[i])),
            best_first=settings.passage_order == "best_first",
            answer_on_top=asked.answer_on_top,
        )
        for i, (question, row) in enumerate(zip(processor.encode_text(asked.questions), parts, strict=True))
        for shown in ([[part] for part in row] if each else [row])
    ]
    if num_passages and processor.fusion != "cross_attention":  # what had no room in the prompt is not there
        read = [[k in prompt.passages for k in range(1 if each else num_passages)] for prompt in prompts]
        tower["evidence_mask"] &= torch.tensor(read).reshape(-1, num_passages)
    if "evidence_image_mask" in tower:
        tower["evidence_image_mask"] &= tower["evidence_mask"]
    return prompts, tower


def _system_ids(processor: Any, settings: PromptSettings, with_passages: bool) -> list[int]:
    cite = CITE if settings.cite and with_passages else None
    told = " ".join(text for text in (settings.system_message, cite) if text)
    return processor.encode_text([told])[0] if told else []


def _passage_parts(
    processor: Any,
    passages: list[list[EvidenceItem]],
    chosen: list[list[int]],
    tower: dict[str, torch.Tensor],
    settings: PromptSettings,
) -> list[list[PassagePart]]:
    """What of each passage stands in the prompt; rows are filled up to `K` with empty parts."""
    if "evidence_mask" not in tower:
        return [[] for _ in passages]
    if processor.fusion == "in_context":
        return _parts_of_words(processor, passages, chosen, tower, settings)
    if processor.fusion == "concat":  # as many places as the passage has tokens
        counts = (tower["evidence_token_ids"] >= 0).sum(-1)  # (B, K)
    else:
        places = {"cross_attention": 0, "product": 1}.get(processor.fusion, processor.num_memory_tokens)
        counts = torch.full_like(tower["evidence_mask"], places, dtype=torch.long)
    counts = counts * tower["evidence_mask"]
    return [[PassagePart(evidence_tokens=count) for count in row] for row in counts.tolist()]


def _parts_of_words(
    processor: Any,
    passages: list[list[EvidenceItem]],
    chosen: list[list[int]],
    tower: dict[str, torch.Tensor],
    settings: PromptSettings,
) -> list[list[PassagePart]]:
    mask = tower["evidence_mask"]
    image_places = (tower.get("evidence_image_mask", torch.zeros_like(mask)) * processor.num_image_tokens).tolist()
    shown = [
        {
            k: f"[{number}] " * settings.numbered + row[k].words(settings.passage_titles)
            for number, k in enumerate(places, start=1)
        }
        for row, places in zip(passages, chosen, strict=True)
    ]
    texts = sorted({text for row in shown for text in row.values()})
    ids = {
        text: row[: settings.max_passage_length] for text, row in zip(texts, processor.encode_text(texts), strict=True)
    }
    return [
        [PassagePart(ids[row[k]], places[k]) if k in row else PassagePart() for k in range(mask.shape[1])]
        for row, places in zip(shown, image_places, strict=True)
    ]


def _evidence_tensors(
    processor: Any, asked: Asked, settings: PromptSettings, num_passages: int
) -> dict[str, torch.Tensor]:
    """What the model gets of the passages beside the prompt; nothing where there is none."""
    if not num_passages:
        return {}
    passages = asked.passages
    shape = (len(passages), num_passages)
    filled = [item for row in passages for item in [*row, *[EvidenceItem("")] * (num_passages - len(row))]]
    data = evidence_tensors(passages)
    if processor.fusion != "in_context":
        texts = [item.text for item in filled]
        tower = tower_texts(processor, texts)
        with_image = [settings.passage_images and item.image is not None for item in filled]
        tower |= tokens_on_states(processor, texts, with_image, tower["attention_mask"], settings)
        data.update({f"evidence_{name}": tensor.unflatten(0, shape) for name, tensor in tower.items()})
        question = tower_texts(processor, asked.questions)
        data.update({f"question_{name}": tensor for name, tensor in question.items()})
    if settings.passage_images and any(item.image is not None for item in filled):
        limit = settings.max_passage_image_pixels
        images = [None if item.image is None else shrunk(safe_image(item.image), limit) for item in filled]
        seen = processor.for_retrieval(images=images)
        data["evidence_pixel_values"] = seen["pixel_values"].unflatten(0, shape)
        data["evidence_image_mask"] = seen["image_mask"].reshape(shape)
    return data
