"""What the text encoder of a processor reads, and which tokens of the language model stand on its states."""

from __future__ import annotations

from typing import Any

import torch

from .alignment import aligned_tokens
from .evidence import pad_rows
from .literal import framed_literal_ids
from .settings import PromptSettings


def tower_texts(processor: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` `(n, L)` of texts, in the case and the padding that it was trained with."""
    texts = [text.lower() for text in texts] if processor.lower_case_text else texts
    encoded = framed_literal_ids(processor.text_tokenizer, texts, processor.max_text_length)
    pad = processor.text_tokenizer.pad_token_id or 0
    reads_padding = processor.pad_text and "attention_mask" not in processor.text_tokenizer.model_input_names
    missing = [processor.max_text_length - len(ids) if processor.pad_text else 0 for ids in encoded]
    mask = [[1] * len(ids) + [int(reads_padding)] * n for ids, n in zip(encoded, missing, strict=True)]
    encoded = [[*ids, *[pad] * n] for ids, n in zip(encoded, missing, strict=True)]
    mask = pad_rows(mask, 0, "right")
    return {"input_ids": pad_rows(encoded, pad, "right"), "attention_mask": mask}


def tokens_on_states(
    processor: Any, texts: list[str], with_image: list[bool], read: torch.Tensor, settings: PromptSettings
) -> dict[str, torch.Tensor]:
    """The language model's tokens of passages, as they would stand in the prompt, and the states under them.

    A mark, then the places of the image if there is one, then the words. States are counted from the last that
    the text encoder reads (`read (n, T)`), so that those of an image may stand before them or not.
    """
    lower, limits = processor.lower_case_text, (processor.max_text_length, settings.max_passage_length)
    words = aligned_tokens(processor.tokenizer, processor.text_tokenizer, texts, *limits, lower)
    ids, alignment = [], []
    for (tokens, places), image, length in zip(words, with_image, read.sum(dim=1).tolist(), strict=True):
        before = processor.num_image_tokens if image else 0
        ids.append([processor.markers.passage, *[processor.image_token_id] * before, *tokens])
        states = [0, *range(-before, 0), *places]  # the mark stands on the first
        alignment.append([length - 1 - state for state in states])
    return {"token_ids": pad_rows(ids, -1, "right"), "alignment": pad_rows(alignment, 0, "right")}
