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
from ..model.modeling_ravlm import MAX_LOGIT_SCALE
from ..model.objectives_ravlm import answer_log_likelihood, passage_posterior


if TYPE_CHECKING:
    from ..retrieval import Evidence, RavlmRetriever

EVIDENCE_FIELDS = ("id", "text", "image", "score", "rank", "source", "licence", "url", "title", "metadata")
POSTERIOR_BATCH = 64  # prompts per forward pass when answers are scored under each passage


@dataclass
class Answer:
    """One answer and what it rests on.

    Args:
        text (`str`): the generated words.
        evidence (`list[Evidence]`): the passages that the reader saw, best first.
        posterior (`list[float]`): `p(passage | question, answer)` of each, sums to 1; empty without evidence.
    """

    text: str
    evidence: list[Evidence] = field(default_factory=list)
    posterior: list[float] = field(default_factory=list)

    def to_record(self) -> dict[str, Any]:
        """As a pipeline returns it: plain dictionaries."""
        evidence = [{name: getattr(passage, name) for name in EVIDENCE_FIELDS} for passage in self.evidence]
        return {"generated_text": self.text, "evidence": evidence, "posterior": self.posterior}


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
    **generate_kwargs,
) -> list[list[Answer]]:
    """Answers questions about images with what the retriever finds.

    Args:
        model, processor: the reader and its processor.
        retriever: finds passages by image and question; `None` answers closed-book, unless `evidence` is given.
        images (`list`, *optional*), questions (`list[str]`): of one length.
        k (`int`, *optional*): passages per question, `config.num_passages` by default; 0 is closed-book.
        evidence (`list[list[Evidence]]`, *optional*): use these passages and do not retrieve.
        with_posterior (`bool`): also score each answer under each passage alone (`B * K` short forward passes).
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
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    sequences = model.generate(**inputs, **generate_kwargs)
    sequences = getattr(sequences, "sequences", sequences)  # with `return_dict_in_generate`
    new_tokens = sequences[:, inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in processor.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)]
    per_question = len(texts) // len(questions)
    rows = [row for row in range(len(questions)) for _ in range(per_question)]
    answers = [Answer(text, list(evidence[row])) for text, row in zip(texts, rows, strict=True)]
    if with_posterior:
        pictures = None if images is None else [images[row] for row in rows]
        add_posteriors(model, processor, pictures, [questions[row] for row in rows], answers)
    return [answers[start : start + per_question] for start in range(0, len(answers), per_question)]


@torch.inference_mode()
def add_posteriors(
    model: RavlmForConditionalGeneration,
    processor: RavlmProcessor,
    images: Sequence[Image.Image] | None,
    questions: Sequence[str],
    answers: Sequence[Answer],
) -> None:
    """Fills in `posterior` of each answer: `softmax_k(log p(y | x, z_k) + log p(z_k | x))`.

    `p(y | x, z_k)` is the reader's probability of the answer when it sees passage `k` alone, `p(z_k | x)` the softmax
    of the retriever's scores at its temperature.
    """
    pairs = [(row, passage) for row, answer in enumerate(answers) for passage in answer.evidence]
    if not pairs:
        return
    log_likelihood = []
    # What was generated came on top of a full prompt; it may stand there once more when it is scored.
    longest = max(map(len, processor.encode_text([answer.text for answer in answers]))) + 1
    for start in range(0, len(pairs), POSTERIOR_BATCH):
        chunk = pairs[start : start + POSTERIOR_BATCH]
        inputs = processor(
            images=None if images is None else [images[row] for row, _ in chunk],
            text=[questions[row] for row, _ in chunk],
            evidence=[[passage] for _, passage in chunk],
            answers=[answers[row].text for row, _ in chunk],
            padding_side="left",
            max_length=processor.max_length + longest,
        ).to(model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        labels = inputs.pop("labels")
        keep = int((labels != -100).sum(dim=1).max()) + 1  # answers end at the right edge
        logits = model(**inputs, logits_to_keep=keep).logits  # (n, keep, V)
        log_likelihood.append(answer_log_likelihood(logits, labels[:, -keep:]))
    log_likelihood = torch.cat(log_likelihood)
    scale = without_adapters(model).model.logit_scale.float().clamp(0, MAX_LOGIT_SCALE).exp()
    start = 0
    for answer in answers:
        stop = start + len(answer.evidence)
        if stop > start:
            scores = torch.tensor([[passage.score for passage in answer.evidence]], device=log_likelihood.device)
            answer.posterior = passage_posterior(log_likelihood[None, start:stop], scores, scale)[0].tolist()
        start = stop


def without_adapters(model) -> RavlmForConditionalGeneration:
    """The reader itself, where PEFT wrapped it (`get_peft_model`)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
