"""Which passage an answer rests on: what it is worth under each passage alone, and without each of them.

[`attribute`] masks passages in encoded prompts; [`attribute_prompts`] writes the prompts again, for image-text-to-text
models, which count positions and images over their prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..outputs import RavlmAttribution
from ..prompts.evidence import EvidenceItem, read_evidence
from .inputs import EncodedInputs, encode_inputs
from .latent_passages import columns_of_answers, log_prior, passages_are_latent, read_passages
from .likelihoods import answer_log_likelihood, leave_one_out, passage_posterior, rag_sequence_log_likelihood
from .placing import PromptTensors, flush_right, hide_passages, positions_from
from .reading import embed_prompt, evidence_memory


ROWS_PER_PASS = 64  # prompts per forward pass when an answer is scored under many sets of passages
PROMPTS_PER_PASS = 8  # of an image-text-to-text model, each with its images


@torch.no_grad()
def attribute(model: Any, inputs: EncodedInputs, prompt: PromptTensors, labels: torch.Tensor) -> RavlmAttribution:
    """Attribution by masks: `attribute` of [`RavlmForConditionalGeneration`]; `inputs` need `evidence_scores`.

    Raises:
        `ValueError`: for an image-text-to-text reader.
    """
    if model.reads_images:
        raise ValueError(
            "the reader is an image-text-to-text model, whose passages cannot be masked in a prompt: use "
            "attribute_prompts(model, processor, images, questions, evidence, answers)"
        )
    counts = inputs.evidence_mask
    counts = torch.ones_like(inputs.evidence_scores, dtype=torch.bool) if counts is None else counts.bool()
    inputs = encode_inputs(model, replace(inputs, evidence_mask=counts))
    if passages_are_latent(model.config, inputs.evidence_scores):
        prior = log_prior(model, inputs)
        alone = read_passages(model, inputs, prompt, labels).passage_log_likelihood
        joint, without = rag_sequence_log_likelihood(alone, prior), leave_one_out(alone, prior, counts)
    else:
        alone, joint, without = _read_subsets(model, inputs, prompt, labels)
    posterior = passage_posterior(alone, inputs.evidence_scores, model.get_logit_scale(), counts)
    return RavlmAttribution(
        posterior=posterior * counts,
        leave_one_out=without * counts,
        log_likelihood=joint,
        passage_log_likelihood=alone,
    )


def _read_subsets(
    model: Any, inputs: EncodedInputs, prompt: PromptTensors, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Likelihoods under each passage alone `(B, K)`, under all `(B,)`, and the loss of each left out `(B, K)`."""
    counts = inputs.evidence_mask
    num_passages = counts.shape[1]
    one = torch.eye(num_passages, dtype=torch.bool, device=counts.device)
    asked = torch.cat([one, ~one, torch.ones_like(one[:1])])  # (2 * K + 1, K)
    subsets, place = asked.unique(dim=0, return_inverse=True)  # with K = 2 "without one" is "the other alone"
    rows = torch.arange(len(counts), device=counts.device).repeat_interleave(len(subsets))
    shown = (subsets & counts.unsqueeze(1)).flatten(0, 1)  # (B * number of subsets, K)
    prompt = PromptTensors(**{"input_ids": None, **{name: tensor[rows] for name, tensor in prompt.given().items()}})
    mask = torch.ones_like(prompt.input_ids) if prompt.attention_mask is None else prompt.attention_mask
    prompt.attention_mask = hide_passages(mask, prompt.token_passages, shown)
    order = prompt.attention_mask.sum(dim=1).argsort(descending=True)  # rows of one length share a pass
    scored = torch.zeros(len(rows), device=counts.device)
    for chunk in order.split(ROWS_PER_PASS):
        picked = replace(inputs.rows(rows[chunk]), evidence_mask=shown[chunk])
        some = PromptTensors(**{name: tensor[chunk] for name, tensor in prompt.given().items()})
        scored[chunk] = _score_prompts(model, picked, some, labels[rows[chunk]])
    scored = scored.unflatten(0, (-1, len(subsets)))[:, place]  # (B, 2 * K + 1)
    alone, without, joint = scored.split([num_passages, num_passages, 1], dim=1)
    return alone, joint.squeeze(1), joint - without


def _score_prompts(model: Any, inputs: EncodedInputs, prompt: PromptTensors, labels: torch.Tensor) -> torch.Tensor:
    """`log p(y | x, passages of evidence_mask)`, `(N,)`; tokens that the attention mask hides are cut out."""
    if inputs.evidence_token_mask is not None and model.fusion.num_memory_tokens == 0:  # read without a place
        kept = inputs.evidence_token_mask.bool() & inputs.evidence_mask.unsqueeze(-1)
        inputs = replace(inputs, evidence_token_mask=kept)
    embeds, mask = embed_prompt(model, inputs, prompt)[0], prompt.attention_mask
    order = flush_right(mask)[:, mask.shape[1] - int(mask.sum(dim=1).max()) :]
    mask, labels = mask.gather(1, order), labels.gather(1, order)
    keep = columns_of_answers(labels)
    outputs = model.language_model(
        inputs_embeds=embeds.gather(1, order.unsqueeze(-1).expand(-1, -1, embeds.shape[-1])),
        attention_mask=mask,
        position_ids=positions_from(mask),
        use_cache=False,
        logits_to_keep=keep,
        **evidence_memory(model, inputs),
    )
    return answer_log_likelihood(outputs.logits, labels[:, -keep:])


@torch.no_grad()
def attribute_prompts(
    model: Any,
    processor: Any,
    images: Sequence[Any] | None,
    questions: Sequence[str],
    evidence: Sequence[Sequence[Any]],
    answers: Sequence[str],
    max_length: int | None = None,
    prompt: Mapping[str, Any] | None = None,
) -> RavlmAttribution:
    """Attribution of answers to passages by prompts written anew, `B` questions with up to `K` passages each.

    Args:
        model, processor: an image-text-to-text reader, and its processor.
        images (`Sequence`, *optional*), questions, evidence, answers (`Sequence`): of one length; passages best first.
        max_length (`int`, *optional*): tokens of a prompt, as it was read, without the answer.
        prompt (`dict`, *optional*): settings of the prompt, as it was read.

    Returns:
        [`RavlmAttribution`], with 0 where a question has no such passage.
    """
    asked = []  # (question, the passages that its prompt shows)
    for row, passages in enumerate(evidence):
        every = tuple(range(len(passages)))
        subsets = {every, *((k,) for k in every), *(every[:k] + every[k + 1 :] for k in every)}
        asked += [(row, kept) for kept in sorted(subsets)]
    scored: dict[tuple[int, tuple[int, ...]], float] = {}
    for start in range(0, len(asked), PROMPTS_PER_PASS):
        chunk = asked[start : start + PROMPTS_PER_PASS]
        inputs = processor(
            images=None if images is None else [images[row] for row, _ in chunk],
            text=[questions[row] for row, _ in chunk],
            evidence=[[evidence[row][k] for k in kept] for row, kept in chunk],
            answers=[answers[row] for row, _ in chunk],
            padding_side="left",
            answer_on_top=True,
            prompt={**(prompt or {}), **({} if max_length is None else {"max_length": max_length})},
        ).to(model.device)
        labels = inputs.pop("labels")
        keep = columns_of_answers(labels)
        logits = model(**inputs, logits_to_keep=keep).logits[:, -keep:]
        scored.update(zip(chunk, answer_log_likelihood(logits, labels[:, -keep:]).tolist(), strict=True))
    return _as_tensors(scored, read_evidence(evidence, len(questions)), model.get_logit_scale())


def _as_tensors(scored: dict, evidence: Sequence[Sequence[EvidenceItem]], scale: torch.Tensor) -> RavlmAttribution:
    shape = (len(evidence), max(len(row) for row in evidence))
    alone, without, scores = (torch.zeros(shape, device=scale.device) for _ in range(3))
    mask = torch.zeros(shape, dtype=torch.bool, device=scale.device)
    joint = torch.zeros(len(evidence), device=scale.device)
    for row, passages in enumerate(evidence):
        every = tuple(range(len(passages)))
        joint[row] = scored[row, every]
        for k in every:
            mask[row, k] = True
            alone[row, k] = scored[row, (k,)]
            without[row, k] = scored[row, every[:k] + every[k + 1 :]]
            scores[row, k] = passages[k].score
    return RavlmAttribution(
        posterior=passage_posterior(alone, scores, scale, mask) * mask,
        leave_one_out=(joint.unsqueeze(1) - without) * mask,
        log_likelihood=joint,
        passage_log_likelihood=alone,
    )
