"""Latent passages: each has a prompt of its own, and the answer's likelihood is summed over them.

`p(y | x) = sum_k p(z_k | x) p(y | x, z_k)`: RAG-sequence for the answer as a whole, RAG-token for every token. Prompts
are flat, `(B * K, L)`, passage by passage; `K` is known from `evidence_scores (B, K)`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache

from ..outputs import RavlmCausalLMOutputWithPast
from .inputs import EncodedInputs
from .likelihoods import (
    answer_token_log_probs,
    passage_log_prior,
    rag_sequence_log_likelihood,
    rag_token_log_likelihood,
)
from .placing import PromptTensors, hide_passages, positions_from
from .reading import evidence_memory, read


def passages_are_latent(config: Any, evidence_scores: torch.Tensor | None) -> bool:
    """Whether inputs hold one prompt per passage; closed-book ones never do."""
    return config.marginalization != "none" and evidence_scores is not None and evidence_scores.shape[1] > 0


NEUTRAL_SCALE = 1.0  # of scores of unknown origin: cosines differ by 2 nats at most, so that the reader decides


def own_prior_scale(model: Any) -> torch.Tensor | float:
    """`1 / temperature` of the scores that passages came with, where nobody says which encoder gave them.

    That of a reader's own towers, if it reads through them; an image-text-to-text reader, or one without towers, is
    not what has searched.
    """
    scale: torch.Tensor | float = model.get_logit_scale()
    return NEUTRAL_SCALE if model.reads_images or model.model is None else scale


def log_prior(model: Any, inputs: EncodedInputs) -> torch.Tensor:
    """`log p(z_k | x)`, `(B, K)`: what the retriever believes, at the temperature of the encoder that scored."""
    given = inputs.prior_scale
    scale = own_prior_scale(model) if given is None else given.unsqueeze(1)
    return passage_log_prior(inputs.evidence_scores, inputs.evidence_mask, scale)


def read_passages(
    model: Any,
    inputs: EncodedInputs,
    prompt: PromptTensors,
    labels: torch.Tensor | None,
    logits_to_keep: int | torch.Tensor = 0,
    num_items_in_batch: torch.Tensor | int | None = None,
    **kwargs,
) -> RavlmCausalLMOutputWithPast:
    """`forward` over latent passages.

    Returns:
        Logits `(B * K, T, V)` of the last `T` positions: `logits_to_keep`, or with labels all that are needed for
        them; with labels the loss, `passage_log_likelihood (B, K)` and `posterior (B, K)`. The loss is the sum of
        `-log p(y | x)` over queries, divided by the number of answer tokens. `num_items_in_batch` counts every answer
        `K` times, which is taken back: exactly, if `K` is the same in all batches that it counts.

    Raises:
        `ValueError`: if the prompts of a query have answers of different lengths.
    """
    num_passages = inputs.evidence_scores.shape[1]
    if labels is not None and isinstance(logits_to_keep, int) and not logits_to_keep:
        logits_to_keep = columns_of_answers(labels)
    outputs = read(model, inputs.per_passage(), prompt, num_passages, logits_to_keep=logits_to_keep, **kwargs)
    if labels is None:
        return outputs
    token_log_probs, token_mask = answers_under_passages(outputs.logits, labels, num_passages)
    prior = log_prior(model, inputs)
    outputs.passage_log_likelihood = token_log_probs.sum(dim=-1)
    likelihood = marginal_log_likelihood(model.config.marginalization, token_log_probs, token_mask, prior)
    count = token_mask.sum() if num_items_in_batch is None else num_items_in_batch / num_passages
    outputs.loss = -likelihood.sum() / count
    outputs.posterior = (outputs.passage_log_likelihood + prior).softmax(dim=-1).detach()
    return outputs


def answers_under_passages(
    logits: torch.Tensor, labels: torch.Tensor, num_passages: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities `(B, K, T)` of the tokens of each answer under each of its passages, and their mask `(B, T)`.

    Args:
        logits (`torch.Tensor` of shape `(B * K, L', V)`): of the last `L'` positions.
        labels (`torch.LongTensor` of shape `(B * K, L)`): -100 is ignored.
        num_passages (`int`): `K`.

    Raises:
        `ValueError`: if the prompts of a query have answers of different lengths.
    """
    token_log_probs, token_mask = answer_token_log_probs(logits, labels[:, -logits.shape[1] :])  # (B * K, T)
    lengths = token_mask.sum(dim=1).unflatten(0, (-1, num_passages))
    if bool((lengths != lengths[:, :1]).any()):
        raise ValueError(
            f"the prompts of one query have answers of {lengths.tolist()} tokens: expected the same answer under each "
            "of its passages; give RavlmProcessor one answer per question"
        )
    return token_log_probs.unflatten(0, (-1, num_passages)), token_mask[::num_passages]


def marginal_log_likelihood(
    marginalization: str, token_log_probs: torch.Tensor, token_mask: torch.Tensor, prior: torch.Tensor
) -> torch.Tensor:
    """`log p(y | x)`, `(B,)`, of what `answers_under_passages` returns: RAG-token for `"token"`, else RAG-sequence."""
    if marginalization == "token":
        return rag_token_log_likelihood(token_log_probs, token_mask, prior)
    return rag_sequence_log_likelihood(token_log_probs.sum(dim=-1), prior)


def columns_of_answers(labels: torch.Tensor) -> int:
    """How many of the last columns of `labels (N, L)` give logits for all answers; at least 1.

    >>> columns_of_answers(torch.tensor([[-100, -100, 7, 8], [-100, -100, -100, 9]]))
    3
    """
    answers = (labels != -100).any(dim=0)
    return labels.shape[1] - int(answers.long().argmax()) + 1 if answers.any() else 1


def read_branches(
    model: Any,
    inputs: EncodedInputs,
    prompt: PromptTensors,
    input_ids: torch.Tensor,
    past_key_values: Cache | None = None,
    logits_to_keep: int = 0,
    use_cache: bool | None = None,
) -> RavlmCausalLMOutputWithPast:
    """One step of RAG-token: the prompts of every passage behind one row of `input_ids`, mixed into one logit.

    Args:
        inputs ([`EncodedInputs`]): encoded, of `B` queries.
        prompt ([`PromptTensors`]): of every passage, `B * K` rows.
        input_ids (`torch.LongTensor` of shape `(B, L + t)` or `(B, 1)`): what `generate` has written; with a filled
            cache the last token alone.

    Returns:
        `log sum_k p(z_k | x) p(next | x, z_k, before)` as logits `(B, T, V)`: a distribution already, so that
        sampling, beams and logits processors of `generate` work on it as on any other.
    """
    num_passages = inputs.evidence_scores.shape[1]
    flat = inputs.per_passage()
    seen = 0 if past_key_values is None else past_key_values.get_seq_length()
    new = input_ids if seen else input_ids[:, prompt.input_ids.shape[1] :]
    new = new.repeat_interleave(num_passages, dim=0)  # (B * K, tokens behind the prompt, or since the last step)
    if seen:
        mask = hide_passages(prompt.attention_mask, prompt.token_passages, flat.evidence_mask)
        mask = torch.nn.functional.pad(mask, (0, seen + new.shape[1] - mask.shape[1]), value=1)
        outputs = model.language_model(
            inputs_embeds=model.get_input_embeddings()(new),
            attention_mask=mask,
            position_ids=positions_from(mask)[:, -new.shape[1] :],
            past_key_values=past_key_values,
            logits_to_keep=logits_to_keep,
            use_cache=True,
            **evidence_memory(model, flat),
        )
    else:
        whole = PromptTensors(
            torch.cat([prompt.input_ids, new], dim=1),
            torch.cat([prompt.attention_mask, torch.ones_like(new)], dim=1),
            torch.cat([prompt.token_passages, torch.full_like(new, -1)], dim=1),
        )
        given = {"past_key_values": past_key_values, "logits_to_keep": logits_to_keep or 1, "use_cache": use_cache}
        outputs = read(model, flat, whole, num_passages, **given)
    log_probs = outputs.logits.float().log_softmax(dim=-1).unflatten(0, (-1, num_passages))  # (B, K, T, V)
    mixed = (log_probs + log_prior(model, inputs)[:, :, None, None]).logsumexp(dim=1)
    return RavlmCausalLMOutputWithPast(logits=mixed, past_key_values=past_key_values)
