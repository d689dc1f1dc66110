"""Which passage an answer rests on: what it is worth under each passage alone, and without each of them."""

from __future__ import annotations

import torch

from ..outputs import RavlmAttribution
from .likelihoods import (
    answer_log_likelihood,
    leave_one_out,
    passage_log_prior,
    passage_posterior,
    rag_sequence_log_likelihood,
)
from .placing import hide_passages, positions_from


ROWS_PER_PASS = 64  # prompts per forward pass when an answer is scored under many sets of passages


class PassageAttribution:
    """Attribution for [`RavlmForConditionalGeneration`]."""

    @torch.no_grad()
    def attribute(
        self,
        input_ids: torch.LongTensor,
        labels: torch.LongTensor,
        evidence_scores: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        token_passages: torch.LongTensor | None = None,
        evidence_mask: torch.Tensor | None = None,
        **inputs,
    ) -> RavlmAttribution:
        """Which passage an answer rests on.

        Args: as of `forward`, the answer in `input_ids` and `labels`, with all passages in one prompt `(B, L)` or,
            with `config.marginalization`, one prompt per passage `(B * K, L)`: what
            `processor(images, text, evidence, answers=...)` returns.

        Returns:
            [`RavlmAttribution`]: `posterior (B, K)`, the probability that a passage carries the answer; `leave_one_out
            (B, K)`, by how much the answer's log-probability falls when a passage is taken away; `log_likelihood
            (B,)`; `passage_log_likelihood (B, K)`. A passage that `evidence_mask` leaves out has 0 and 0.
        """
        if self.reads_images:
            raise ValueError(
                "the reader is an image-text-to-text model, whose passages cannot be masked in a prompt: use "
                "attribute_prompts(model, processor, images, questions, evidence, answers)"
            )
        if evidence_mask is None:
            evidence_mask = torch.ones_like(evidence_scores, dtype=torch.bool)
        evidence_mask, scale = evidence_mask.bool(), self.model.get_logit_scale()
        states = self.encode_inputs(**inputs, evidence_mask=evidence_mask)
        prompt = {"input_ids": input_ids, "attention_mask": attention_mask, "token_passages": token_passages}
        if self.passages_are_latent(evidence_scores):
            outputs = self.read_passages(states, evidence_scores, labels, evidence_mask=evidence_mask, **prompt)
            log_prior = passage_log_prior(evidence_scores, evidence_mask, scale)
            alone = outputs.passage_log_likelihood
            joint = rag_sequence_log_likelihood(alone, log_prior)
            without = leave_one_out(alone, log_prior, evidence_mask)
        else:
            alone, joint, without = self._read_subsets(states, prompt, labels, evidence_mask)
        return RavlmAttribution(
            posterior=passage_posterior(alone, evidence_scores, scale, evidence_mask) * evidence_mask,
            leave_one_out=without * evidence_mask,
            log_likelihood=joint,
            passage_log_likelihood=alone,
        )

    def _read_subsets(self, states, prompt, labels, evidence_mask):
        """Likelihoods under each passage alone `(B, K)`, under all `(B,)`, and the loss of each left out `(B, K)`."""
        num_passages = evidence_mask.shape[1]
        one = torch.eye(num_passages, dtype=torch.bool, device=evidence_mask.device)
        asked = torch.cat([one, ~one, torch.ones_like(one[:1])])  # (2 * K + 1, K)
        subsets, place = asked.unique(dim=0, return_inverse=True)  # with K = 2 "without one" is "the other alone"
        masks = (subsets & evidence_mask.unsqueeze(1)).flatten(0, 1)  # (B * number of subsets, K)
        rows = torch.arange(len(evidence_mask), device=masks.device).repeat_interleave(len(subsets))
        prompts = {name: None if tensor is None else tensor[rows] for name, tensor in prompt.items()}
        if prompts["attention_mask"] is None:
            prompts["attention_mask"] = torch.ones_like(prompts["input_ids"])
        kept = hide_passages(prompts["attention_mask"], prompts["token_passages"], masks)
        order = kept.sum(dim=1).argsort(descending=True)  # rows of one length share a pass
        scored = kept.new_zeros(len(rows), dtype=torch.float32)
        for chunk in order.split(ROWS_PER_PASS):
            picked = {name: None if tensor is None else tensor[rows[chunk]] for name, tensor in states.items()}
            passages = None if prompts["token_passages"] is None else prompts["token_passages"][chunk]
            ids, answers = prompts["input_ids"][chunk], labels[rows[chunk]]
            scored[chunk] = self._score_prompts(picked, ids, kept[chunk], passages, answers, masks[chunk])
        scored = scored.unflatten(0, (-1, len(subsets)))[:, place]  # (B, 2 * K + 1)
        alone, without, joint = scored.split([num_passages, num_passages, 1], dim=1)
        return alone, joint.squeeze(1), joint - without

    def _score_prompts(self, states, input_ids, mask, token_passages, labels, evidence_mask) -> torch.Tensor:
        """`log p(y | x, passages of evidence_mask)`, `(N,)`; tokens that `mask` hides are cut out."""
        if states["evidence_token_mask"] is not None and self.fusion.num_memory_tokens == 0:  # read without a place
            kept = states["evidence_token_mask"].bool() & evidence_mask.unsqueeze(-1)
            states = {**states, "evidence_token_mask": kept}
        embeds = self.embed_prompt(states, input_ids, token_passages)[0]
        order = mask.long().argsort(dim=1, stable=True)[:, mask.shape[1] - int(mask.sum(dim=1).max()) :]
        mask, labels = mask.gather(1, order), labels.gather(1, order)
        outputs = self.language_model(
            inputs_embeds=embeds.gather(1, order.unsqueeze(-1).expand(-1, -1, embeds.shape[-1])),
            attention_mask=mask,
            position_ids=positions_from(mask),
            use_cache=False,
            logits_to_keep=(keep := labels.shape[1] - int((labels != -100).any(dim=0).long().argmax()) + 1),
            **self.fusion_kwargs(states),
        )
        return answer_log_likelihood(outputs.logits, labels[:, -keep:])
