"""The path of one batch of questions: retriever -> processor -> model -> answers with their evidence.

Every pipeline goes through `answer_questions`; nothing here knows what a pipeline is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..errors import InvalidInputError
from ..model import RavlmForConditionalGeneration, RavlmProcessor
from ..model.multimodal_attribution_ravlm import attribute_prompts
from ..model.outputs_ravlm import RavlmAttribution


if TYPE_CHECKING:
    from ..retrieval import Evidence, RavlmRetriever
    from .encoded_knowledge import EncodedKnowledge

EVIDENCE_FIELDS = (
    *("id", "text", "image", "score", "rank"),
    *("source", "licence", "url", "revision", "title", "metadata"),
)


@dataclass
class Answer:
    """One answer and what it rests on.

    Args:
        text (`str`): the generated words.
        evidence (`list[Evidence]`): the passages that the reader saw, best first.
        posterior (`list[float]`): `p(passage | question, answer)` of each, sums to 1; empty without evidence.
        leave_one_out (`list[float]`):
            by how much the answer's log-probability, in nats, falls without each passage; empty without evidence.
    """

    text: str
    evidence: list[Evidence] = field(default_factory=list)
    posterior: list[float] = field(default_factory=list)
    leave_one_out: list[float] = field(default_factory=list)

    def to_record(self) -> dict[str, Any]:
        """As a pipeline returns it: plain dictionaries."""
        evidence = [{name: getattr(passage, name) for name in EVIDENCE_FIELDS} for passage in self.evidence]
        return {
            "generated_text": self.text,
            "evidence": evidence,
            "posterior": self.posterior,
            "leave_one_out": self.leave_one_out,
        }


@torch.inference_mode()
def answer_questions(
    model: RavlmForConditionalGeneration,
    processor: RavlmProcessor,
    retriever: RavlmRetriever | None,
    images: Sequence[Image.Image] | None,
    questions: Sequence[str],
    k: int | None = None,
    evidence: Sequence[Sequence[Any]] | None = None,
    with_posterior: bool = True,
    encoded_knowledge: EncodedKnowledge | None = None,
    **generate_kwargs,
) -> list[list[Answer]]:
    """Answers questions about images with what the retriever finds.

    Args:
        model, processor: the reader and its processor.
        retriever: finds passages by image and question; `None` answers closed-book, unless `evidence` is given.
        images (`list`, *optional*), questions (`list[str]`): of one length.
        k (`int`, *optional*): passages per question, `config.num_passages` by default; 0 is closed-book.
        evidence (`list[list[Evidence]]`, *optional*): use these passages and do not retrieve.
        with_posterior (`bool`): also attribute each answer to its passages (about `2 * K` forward passes each).
        encoded_knowledge (`EncodedKnowledge`, *optional*): states of the passages, read once and kept.
        generate_kwargs: passed to `model.generate`.

    Returns:
        Per question a list of `num_return_sequences` answers.
    """
    k = model.config.num_passages if k is None else k
    if k < 0:
        raise InvalidInputError(f"k={k}: expected 0 (closed-book) or more passages")
    if evidence is None:
        find = retriever is not None and k > 0
        evidence = retriever.retrieve(images, list(questions), k=k) if find else [[] for _ in questions]
    inputs = processor(images=images, text=list(questions), evidence=evidence).to(model.device)
    if encoded_knowledge is not None:
        encoded_knowledge.replace_inputs(inputs, evidence)
    for name in ("pixel_values", "evidence_pixel_values"):
        if name in inputs:
            inputs[name] = inputs[name].to(model.dtype)
    sequences = model.generate(**inputs, **generate_kwargs)
    sequences = getattr(sequences, "sequences", sequences)  # with `return_dict_in_generate`
    new_tokens = sequences[:, inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in processor.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)]
    per_question = len(texts) // len(questions)
    rows = [row for row in range(len(questions)) for _ in range(per_question)]
    answers = [Answer(text, list(evidence[row])) for text, row in zip(texts, rows, strict=True)]
    if with_posterior:
        pictures = None if images is None else [images[row] for row in rows]
        add_attributions(model, processor, pictures, [questions[row] for row in rows], answers, encoded_knowledge)
    return [answers[start : start + per_question] for start in range(0, len(answers), per_question)]


@torch.inference_mode()
def add_attributions(
    model: RavlmForConditionalGeneration,
    processor: RavlmProcessor,
    images: Sequence[Image.Image] | None,
    questions: Sequence[str],
    answers: Sequence[Answer],
    encoded_knowledge: EncodedKnowledge | None = None,
) -> None:
    """Fills in `posterior` and `leave_one_out` of each answer; see `RavlmForConditionalGeneration.attribute`."""
    rows = [row for row, answer in enumerate(answers) if answer.evidence]
    if not rows:
        return
    # What was generated came on top of a full prompt; it may stand there once more when it is scored.
    longest = max(map(len, processor.encode_text([answer.text for answer in answers]))) + 1
    reader = without_adapters(model)
    if reader.reads_images:
        told = attribute_prompts(
            model,
            processor,
            None if images is None else [images[row] for row in rows],
            [questions[row] for row in rows],
            [answers[row].evidence for row in rows],
            [answers[row].text for row in rows],
            processor.max_length + longest,
        )
        fill_attributions(rows, told, answers)
        return
    inputs = processor(
        images=None if images is None else [images[row] for row in rows],
        text=[questions[row] for row in rows],
        evidence=[answers[row].evidence for row in rows],
        answers=[answers[row].text for row in rows],
        padding_side="left",
        max_length=processor.max_length + longest,
    ).to(model.device)
    if encoded_knowledge is not None:
        encoded_knowledge.replace_inputs(inputs, [answers[row].evidence for row in rows])
    for name in ("pixel_values", "evidence_pixel_values"):
        if name in inputs:
            inputs[name] = inputs[name].to(model.dtype)
    fill_attributions(rows, reader.attribute(**inputs), answers)


def fill_attributions(rows: Sequence[int], told: RavlmAttribution, answers: Sequence[Answer]) -> None:
    """Writes what was told of the answers in `rows` to them."""
    for row, posterior, without in zip(rows, told.posterior.tolist(), told.leave_one_out.tolist(), strict=True):
        number = len(answers[row].evidence)
        answers[row].posterior, answers[row].leave_one_out = posterior[:number], without[:number]


def without_adapters(model) -> RavlmForConditionalGeneration:
    """The reader itself, where PEFT wrapped it (`get_peft_model`)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
