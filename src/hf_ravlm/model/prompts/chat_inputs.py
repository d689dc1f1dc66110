"""From questions, images and passages to prompts in a chat template, or in plain words where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...tokenization import tokenize
from .asked import Asked
from .chat import MultimodalPrompt, MultimodalRow, ShownPassage
from .evidence import EvidenceItem, chosen_passages, evidence_tensors
from .layout import Prompt
from .literal import literal_ids


PASSAGE, QUESTION = "Passage:", "Question:"
CITE = "Answer from the passages. Behind each statement, cite the passage it rests on by its number, such as [1]."


def multimodal_inputs(
    prompt: MultimodalPrompt, asked: Asked, padding_side: str, load_image: Any
) -> dict[str, torch.Tensor]:
    """Inputs of an image-text-to-text model; `evidence_mask` says which passages stand in the prompt.

    Args:
        load_image: makes an image safe and small, of what stands in a passage.
    """
    rows, _ = _rows(prompt, asked, False, load_image)
    data, read = prompt(rows, padding_side=padding_side, answer_on_top=asked.answer_on_top)
    tensors = evidence_tensors(asked.passages)
    if tensors:  # also where no passage found room
        data.setdefault("token_passages", torch.full_like(data["input_ids"], -1))
    for row, places in enumerate(read):
        if tensors:
            tensors["evidence_mask"][row] = False
            tensors["evidence_mask"][row, places] = True
    if shown := [(row, passage.place) for row, of in enumerate(rows) for passage in of.passages if passage.image]:
        tensors["evidence_image_mask"] = torch.zeros_like(tensors["evidence_mask"])
        tensors["evidence_image_mask"][tuple(zip(*shown, strict=True))] = True
        tensors["evidence_image_mask"] &= tensors["evidence_mask"]
    return {**data, **tensors}


def chat_prompts(prompt: MultimodalPrompt, asked: Asked, each: bool) -> tuple[list[Prompt], dict[str, torch.Tensor]]:
    """Prompts of a language model, one per question or (`each`) per question and passage, and the evidence tensors."""
    rows, places = _rows(prompt, asked, each, None)
    written = prompt.write(rows, answer_on_top=asked.answer_on_top)
    tensors = evidence_tensors(asked.passages)
    if tensors:
        tensors["evidence_mask"][:] = False
        for (question, passage), read in zip(places, written.read, strict=True):
            for place in read:
                tensors["evidence_mask"][question, place if passage is None else passage] = True
    return prompt.prompts(written), tensors


def _rows(
    prompt: MultimodalPrompt, asked: Asked, each: bool, load_image: Any
) -> tuple[list[MultimodalRow], list[tuple[int, int | None]]]:
    """The prompts, and of each its question and, with `each`, its passage."""
    settings, tokenizer = prompt.settings, prompt.processor.tokenizer
    targets: Sequence[list[int] | None] = [None] * len(asked.questions)
    if asked.answers is not None:
        targets = literal_ids(tokenizer, asked.answers, lead=prompt.answer_frame[0])
    system = None if settings.system_message is None else literal_ids(tokenizer, [settings.system_message])[0]
    shown = _shown_passages(prompt, asked, load_image)
    num_passages = max((len(row) for row in asked.passages), default=0)
    rows: list[MultimodalRow] = []
    places: list[tuple[int, int | None]] = []
    for i, of_question in enumerate(_questions(prompt, asked.questions)):
        given = {**of_question, "images": asked.images[i], "answer": targets[i]}
        if not each:
            rows.append(MultimodalRow(passages=shown[i], system=system, **given))
            places.append((i, None))
            continue
        of_place = {passage.place: passage for passage in shown[i]}
        for k in range(num_passages):
            one = [replace(of_place[k], place=0)] if k in of_place else []
            rows.append(MultimodalRow(passages=one, system=system, **given))
            places.append((i, k))
    return rows, places


def _questions(prompt: MultimodalPrompt, questions: list[str]) -> list[dict[str, Any]]:
    """Token ids of each question as it stands alone, also where a blank stands before it, and behind passages."""
    settings, tokenizer = prompt.settings, prompt.processor.tokenizer
    label = tokenize(tokenizer, QUESTION, add_special_tokens=False)["input_ids"]
    before = tokenize(tokenizer, f"{CITE}\n\n", add_special_tokens=False)["input_ids"] if settings.cite else []
    behind = [label + ids for ids in literal_ids(tokenizer, questions, lead=" ")]
    rows: list[dict[str, Any]] = [{"question": ids, "asked": before + ids} for ids in behind]
    if not prompt.labels_questions:
        alone, dot = literal_ids(tokenizer, questions), tokenize(tokenizer, ".", add_special_tokens=False)["input_ids"]
        for row, ids, framed in zip(rows, alone, literal_ids(tokenizer, questions, lead=". "), strict=True):
            row["question"] = ids
            row["behind_blank"] = framed[len(dot) :] if framed[: len(dot)] == dot else None
    return rows


def _shown_passages(prompt: MultimodalPrompt, asked: Asked, load_image: Any) -> list[list[ShownPassage]]:
    """Of each question the passages that have something to read, with their labels."""
    settings, tokenizer = prompt.settings, prompt.processor.tokenizer
    images = settings.passage_images and load_image is not None
    chosen = [
        chosen_passages(row, settings.passage_titles, images, settings.drop_duplicates) for row in asked.passages
    ]
    items = [
        [(number, place, asked.passages[i][place]) for number, place in enumerate(row, start=1)]
        for i, row in enumerate(chosen)
    ]
    texts = [item.words(settings.passage_titles) for row in items for _, _, item in row]
    words = iter(literal_ids(tokenizer, texts, lead=" "))
    end, blank = (tokenize(tokenizer, text, add_special_tokens=False)["input_ids"] for text in ("\n\n", " "))

    def label(number: int) -> list[int]:
        written = f"[{number}]" if settings.numbered else PASSAGE
        return tokenize(tokenizer, written, add_special_tokens=False)["input_ids"]

    def passage(number: int, place: int, item: EvidenceItem) -> ShownPassage:
        ids = next(words)
        first = 1 + (ids[: len(blank)] == blank) * len(blank)  # the blank before a word may be a token of its own
        return ShownPassage(
            words=ids[: max(settings.max_passage_length, first)],
            image=load_image(item.image) if images and item.image is not None else None,
            place=place,
            label=label(number),
            end=end,
            first=first,
        )

    return [[passage(*numbered) for numbered in row] for row in items]
