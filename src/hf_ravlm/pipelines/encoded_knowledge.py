"""A knowledge base whose passages the reader's text encoder has read already, once for all questions.

Readers whose fusion reads states (all but `in_context`) need no text of a passage when they answer: its states do not
depend on the question. They are kept in one file, memory-mapped, in bfloat16: 77 KB for 100 tokens of 384 channels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import InvalidInputError
from ..model import RavlmForConditionalGeneration, RavlmProcessor
from ..model.loading import without_adapters
from ..retrieval import KnowledgeBase
from ..retrieval.encoding.encoders import fingerprint_of
from ..retrieval.passage import input_digest
from .passage_states import PassageStates


class EncodedKnowledge:
    """States of the passages of one knowledge base, for one reader.

    Make it with `EncodedKnowledge.build`, which writes the file, or `EncodedKnowledge.open`, and give it to a pipeline
    or to `answer_questions` as `encoded_knowledge`.

    Args:
        knowledge_base (`KnowledgeBase`): the passages.
        states (`PassageStates`): their states, in its order.

    Example:

    >>> encoded = EncodedKnowledge.build(model, processor, retriever.knowledge_base, "states.safetensors")  # doctest: +SKIP
    >>> ask("kite.png", question="What is this?", encoded_knowledge=encoded)  # doctest: +SKIP
    """  # noqa: E501

    def __init__(self, knowledge_base: KnowledgeBase, states: PassageStates):
        if len(states) != len(knowledge_base):
            raise InvalidInputError(
                f"states of {len(states)} passages came with a knowledge base of {len(knowledge_base)}; build them "
                "again: EncodedKnowledge.build(model, processor, knowledge_base, path)"
            )
        self.knowledge_base = knowledge_base
        self.states = states
        self.row_of = {passage_id: row for row, passage_id in enumerate(knowledge_base.ids)}

    @classmethod
    def build(
        cls,
        model: RavlmForConditionalGeneration,
        processor: RavlmProcessor,
        knowledge_base: KnowledgeBase,
        path: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
    ) -> EncodedKnowledge:
        """Reads all passages once; `path` is the file to write, `None` keeps the states in memory.

        Raises:
            `InvalidInputError`: if the reader sees words of passages and no states (`fusion="in_context"`).
        """
        check_reader(model)

        @torch.inference_mode()
        def encode_states(texts: list[str | None], images: list[Any]) -> list[torch.Tensor]:
            evidence = [[{"text": text, "image": image}] for text, image in zip(texts, images, strict=True)]
            inputs = processor(text=["?"] * len(texts), evidence=evidence).to(model.device)
            pixels = inputs.get("evidence_pixel_values")
            states, mask = without_adapters(model).encode_evidence(
                inputs["evidence_input_ids"],
                inputs["evidence_attention_mask"],
                None if pixels is None else pixels.to(model.dtype),
                inputs.get("evidence_image_mask"),
            )
            return [row[keep].cpu() for row, keep in zip(states[:, 0], mask[:, 0], strict=True)]

        training = model.training
        model.eval()
        try:
            fingerprint = states_fingerprint(model, processor, knowledge_base)
            states = PassageStates.build(knowledge_base, encode_states, fingerprint, batch_size=batch_size, path=path)
        finally:
            model.train(training)
        return cls(knowledge_base, states)

    @classmethod
    def open(
        cls,
        model: RavlmForConditionalGeneration,
        processor: RavlmProcessor,
        knowledge_base: KnowledgeBase,
        path: str | os.PathLike[str],
    ) -> EncodedKnowledge:
        """Maps what `build` wrote; states of another reader or other passages are a `KnowledgeBaseMismatchError`."""
        check_reader(model)
        return cls(knowledge_base, PassageStates.open(path, states_fingerprint(model, processor, knowledge_base)))

    def replace_inputs(self, inputs: dict[str, Any], evidence: Sequence[Sequence[Any]]) -> None:
        """Puts stored states in the place of the passages' tokens and pictures, in the inputs of a batch.

        Args:
            inputs: what `RavlmProcessor` returned for this evidence; changed in place.
            evidence: per question its passages, with the ids of this knowledge base.

        Raises:
            `InvalidInputError`: if a passage is not of this knowledge base.
        """
        if "evidence_input_ids" not in inputs:
            return
        device = inputs["evidence_input_ids"].device
        shape = inputs["evidence_input_ids"].shape[:2]
        rows = [[self._row(passage) for passage in row] + [-1] * (shape[1] - len(row)) for row in evidence]
        states, mask = self.states.gather(rows)
        for name in ("input_ids", "attention_mask", "pixel_values", "image_mask"):
            inputs.pop(f"evidence_{name}", None)
        inputs["evidence_states"], inputs["evidence_token_mask"] = states.to(device), mask.to(device)

    def _row(self, passage: Any) -> int:
        row = self.row_of.get(str(getattr(passage, "id", None)))
        if row is None:
            raise InvalidInputError(
                f"passage {getattr(passage, 'id', passage)!r} has no stored states: expected passages of the "
                "knowledge base that encoded_knowledge was built from"
            )
        return row


def check_reader(model: RavlmForConditionalGeneration) -> None:
    """Refuses readers that read no states."""
    if model.config.fusion == "in_context":
        raise InvalidInputError(
            "fusion='in_context' reads the words of passages, so there are no states to keep; it fits the fusions "
            "concat, product, attention, gated and cross_attention"
        )


def states_fingerprint(
    model: RavlmForConditionalGeneration, processor: RavlmProcessor, knowledge_base: KnowledgeBase
) -> str:
    """Identifies what the states are made by and of: text encoder, with pictures also vision tower, and passages."""
    reader = without_adapters(model)
    parts = [reader.model.text_encoder]
    if processor.passage_images:
        parts += [reader.model.vision_tower, reader.evidence_image_projector]
    settings = {
        "passage_images": processor.passage_images,
        "num_image_tokens": reader.config.num_image_tokens,
        "passages": input_digest(knowledge_base.table),
    }
    return fingerprint_of(nn.ModuleList(parts), {**processor.retrieval_fingerprint(), **settings})
