"""Answers over latent passages: likelihood and generation when each passage has a prompt of its own.

`p(y | x) = sum_k p(z_k | x) p(y | x, z_k)`: RAG-sequence for the answer as a whole, RAG-token for every token. The
prior `p(z | x)` is the softmax of the retriever's scores at its learned temperature. Inputs are flat, `(B * K, L)`,
passage by passage; `K` is known from `evidence_scores (B, K)`. What comes out is per query.
"""

from __future__ import annotations

import copy

import torch
from transformers.cache_utils import Cache, DynamicCache

from .branches_ravlm import BranchCache, read_rows, shared_prefix_length
from .objectives_ravlm import (
    answer_token_log_probs,
    passage_log_prior,
    rag_sequence_log_likelihood,
    rag_token_log_likelihood,
)
from .outputs_ravlm import RavlmCausalLMOutputWithPast, RavlmGenerateOutput
from .reading_ravlm import ENCODED_INPUTS, STATES, hide_passages, positions_from, repeat_for_passages


DECODINGS = ("thorough", "fast")


class PassageLikelihoods:
    """What [`RavlmForConditionalGeneration`] does with `config.marginalization` other than `"none"`."""

    def passages_are_latent(
        self, evidence_scores: torch.Tensor | None, branch_input_ids: torch.Tensor | None = None
    ) -> bool:
        """Whether inputs hold one prompt per passage; without evidence they are plain, closed-book ones."""
        if self.config.marginalization == "none":
            return False
        return branch_input_ids is not None or (evidence_scores is not None and evidence_scores.shape[1] > 0)

    def get_log_prior(self, evidence_scores: torch.Tensor, evidence_mask: torch.Tensor | None) -> torch.Tensor:
        """`log p(z_k | x)`, `(B, K)`: what the retriever believes, at its learned temperature."""
        return passage_log_prior(evidence_scores, evidence_mask, self.model.get_logit_scale())

    def read_passages(
        self,
        states: dict[str, torch.Tensor | None],
        evidence_scores: torch.Tensor,
        labels: torch.Tensor | None,
        evidence_mask: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **reading,
    ) -> RavlmCausalLMOutputWithPast:
        """`forward` over latent passages.

        Returns:
            Logits `(B * K, T, V)` of the last `T` positions: `logits_to_keep`, or with labels all that are needed for
            them; with labels the loss, `passage_log_likelihood (B, K)` and `posterior (B, K)`. The loss is the sum of
            `-log p(y | x)` over queries, divided by the number of answer tokens.
        """
        num_passages = evidence_scores.shape[1]
        flat = repeat_for_passages(states, num_passages)
        if evidence_mask is not None:
            reading["evidence_mask"] = evidence_mask.flatten().unsqueeze(1)
        if labels is not None and isinstance(logits_to_keep, int) and not logits_to_keep:
            answers = (labels != -100).any(dim=0)
            logits_to_keep = labels.shape[1] - int(answers.long().argmax()) + 1 if answers.any() else 1
        outputs = self.read_sharing_prefix(flat, num_passages, logits_to_keep=logits_to_keep, **reading)
        if labels is not None:
            self._add_likelihoods(outputs, labels, evidence_scores, evidence_mask, num_items_in_batch)
        return outputs

    def _add_likelihoods(self, outputs, labels, evidence_scores, evidence_mask, num_items_in_batch) -> None:
        num_passages = evidence_scores.shape[1]
        kept = labels[:, -outputs.logits.shape[1] :]
        token_log_probs, token_mask = answer_token_log_probs(outputs.logits, kept)  # (B * K, T)
        token_log_probs = token_log_probs.unflatten(0, (-1, num_passages))
        lengths = token_mask.sum(dim=1).unflatten(0, (-1, num_passages))
        if bool((lengths != lengths[:, :1]).any()):
            raise ValueError(
                f"the prompts of one query have answers of {lengths.tolist()} tokens: expected the same answer under "
                "each of its passages; give RavlmProcessor one answer per question"
            )
        log_prior = self.get_log_prior(evidence_scores, evidence_mask)
        outputs.passage_log_likelihood = token_log_probs.sum(dim=-1)
        if self.config.marginalization == "token":
            likelihood = rag_token_log_likelihood(token_log_probs, token_mask[::num_passages], log_prior)
        else:
            likelihood = rag_sequence_log_likelihood(outputs.passage_log_likelihood, log_prior)
        # The Trainer counts the labels of every prompt, and an answer stands in K of them.
        count = lengths[:, 0].sum() if num_items_in_batch is None else num_items_in_batch / num_passages
        outputs.loss = -likelihood.sum() / count
        outputs.posterior = (outputs.passage_log_likelihood + log_prior).softmax(dim=-1).detach()

    def read_sharing_prefix(
        self,
        states: dict[str, torch.Tensor | None],
        num_passages: int,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_passages: torch.Tensor | None = None,
        evidence_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> RavlmCausalLMOutputWithPast:
        """`read` for `B * K` prompts, with what the prompts of a query share read once wherever that is exact."""
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "token_passages": token_passages, **kwargs}
        given |= {"evidence_mask": evidence_mask, "past_key_values": past_key_values}
        cache = DynamicCache(config=self.config.get_text_config()) if past_key_values is None else past_key_values
        keep = input_ids.shape[1] if logits_to_keep == 0 and input_ids is not None else logits_to_keep
        prefix = 0
        if self._can_share(input_ids, token_passages, cache, keep, kwargs):
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            mask = hide_passages(mask, token_passages, evidence_mask)
            prefix = shared_prefix_length(input_ids, mask, token_passages, num_passages) if num_passages > 1 else 0
        if not prefix or keep > input_ids.shape[1] - prefix:
            return self.read(states, attention_mask=attention_mask, logits_to_keep=logits_to_keep, **given)
        inputs_embeds, image_states, memory = self.embed_prompt(states, input_ids, token_passages)
        logits = read_rows(self.language_model, inputs_embeds, mask, prefix, num_passages, keep, cache)
        return RavlmCausalLMOutputWithPast(
            logits=logits,
            past_key_values=None if kwargs.get("use_cache") is False else cache,
            image_hidden_states=image_states,
            evidence_hidden_states=memory,
        )

    def _can_share(self, input_ids, token_passages, cache, keep, kwargs) -> bool:
        reading = self.language_model.modules()
        recomputes = self.training and any(getattr(module, "gradient_checkpointing", False) for module in reading)
        wants_states = kwargs.get("output_hidden_states") or kwargs.get("output_attentions")
        inside = self.fusion.reads_evidence and self.fusion.num_memory_tokens == 0  # the prefix sees the passages, too
        return (
            input_ids is not None
            and token_passages is not None
            and isinstance(keep, int)
            and isinstance(cache, DynamicCache)
            and not cache.get_seq_length()
            and not (recomputes or wants_states or inside or torch.compiler.is_compiling())
        )

    def read_branches(
        self,
        branches: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        states: dict[str, torch.Tensor | None],
        evidence_scores: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        evidence_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        logits_to_keep: int = 0,
        use_cache: bool | None = None,
        **_,
    ) -> RavlmCausalLMOutputWithPast:
        """One step of RAG-token: the prompts of every passage behind one row of `input_ids`, mixed into one logit.

        `log sum_k p(z_k | x) p(next | x, z_k, before)`, `(B, T, V)`: a distribution already, so that sampling, beams
        and logits processors of `generate` work on it as on any other.
        """
        prompt_ids, prompt_mask, token_passages = (tensor.flatten(0, 1) for tensor in branches)  # (B * K, L)
        num_passages = evidence_scores.shape[1]
        flat = repeat_for_passages(states, num_passages)
        hidden = None if evidence_mask is None else evidence_mask.flatten().unsqueeze(1)
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        new = input_ids if seen else input_ids[:, prompt_ids.shape[1] :]
        new = new.repeat_interleave(num_passages, dim=0)  # (B * K, tokens behind the prompt, or since the last step)
        if seen:
            mask = hide_passages(prompt_mask, token_passages, hidden)
            behind = seen + new.shape[1] - mask.shape[1]
            mask = torch.cat([mask, mask.new_ones(len(mask), behind)], dim=1)
            outputs = self.language_model(
                inputs_embeds=self.get_input_embeddings()(new),
                attention_mask=mask,
                position_ids=positions_from(mask)[:, -new.shape[1] :],
                past_key_values=past_key_values,
                logits_to_keep=logits_to_keep,
                use_cache=True,
                **self.fusion_kwargs(flat),
            )
        else:
            outputs = self.read_sharing_prefix(
                flat,
                num_passages,
                input_ids=torch.cat([prompt_ids, new], dim=1),
                attention_mask=torch.cat([prompt_mask, torch.ones_like(new)], dim=1),
                token_passages=torch.cat([token_passages, torch.full_like(new, -1)], dim=1),
                evidence_mask=hidden,
                past_key_values=past_key_values,
                logits_to_keep=logits_to_keep or 1,
                use_cache=use_cache,
            )
        log_probs = outputs.logits.float().log_softmax(dim=-1).unflatten(0, (-1, num_passages))  # (B, K, T, V)
        log_prior = self.get_log_prior(evidence_scores, evidence_mask)[:, :, None, None]
        mixed = (log_probs + log_prior).logsumexp(dim=1)
        return RavlmCausalLMOutputWithPast(logits=mixed, past_key_values=past_key_values)

    @torch.no_grad()
    def generate_over_passages(
        self, input_ids: torch.Tensor, generation_config=None, *args, decoding: str = "thorough", **kwargs
    ):
        """`generate` over latent passages; `input_ids (B * K, L)`, one prompt per passage.

        Args:
            decoding (`"thorough"` or `"fast"`): for RAG-sequence. Both let every passage propose answers.
                `"thorough"` scores each proposal under every passage and takes the largest `p(y | x)`; `"fast"` takes
                the largest `p(z_k | x) p(y | x, z_k)` among what passage `k` itself proposed.

        Returns:
            Sequences `(B * num_return_sequences, L + T)`, best first for each query: the prompt of its first passage
            and the answer. With `return_dict_in_generate=True` (RAG-sequence) a [`RavlmGenerateOutput`].
        """
        if decoding not in DECODINGS:
            raise ValueError(f"decoding={decoding!r}: expected one of {list(DECODINGS)}")
        scores, evidence_mask = kwargs.pop("evidence_scores"), kwargs.pop("evidence_mask", None)
        inputs = {name: kwargs.pop(name) for name in (*ENCODED_INPUTS, *STATES) if name in kwargs}
        prompt = {
            "input_ids": input_ids,
            "attention_mask": kwargs.pop("attention_mask", torch.ones_like(input_ids)),
            "token_passages": kwargs.pop("token_passages", None),
        }
        self._check_prompts(prompt, scores)
        states = self.encode_inputs(**inputs, evidence_mask=evidence_mask)
        generate = super().generate
        if self.config.marginalization == "sequence":
            return self._generate_sequence(
                generate, prompt, states, scores, evidence_mask, decoding, generation_config, args, kwargs
            )
        num_passages = scores.shape[1]
        branches = {f"branch_{name}": tensor.unflatten(0, (-1, num_passages)) for name, tensor in prompt.items()}
        if kwargs.get("use_cache", True) is not False:
            kwargs["past_key_values"] = BranchCache(self.config.get_text_config(), num_passages)
        first = branches["branch_input_ids"][:, 0]
        return generate(
            first,
            generation_config,
            *args,
            attention_mask=torch.ones_like(first),
            evidence_scores=scores,
            evidence_mask=evidence_mask,
            **branches,
            **{name: tensor for name, tensor in states.items() if tensor is not None},
            **kwargs,
        )

    def _check_prompts(self, prompt: dict[str, torch.Tensor | None], scores: torch.Tensor) -> None:
        rows, wanted = len(prompt["input_ids"]), scores.numel()
        if rows != wanted or prompt["token_passages"] is None:
            raise ValueError(
                f"config.marginalization={self.config.marginalization!r} reads one prompt per passage: expected "
                f"input_ids with B * K = {wanted} rows and token_passages of the same shape, got {rows} rows"
                f"{'' if prompt['token_passages'] is not None else ' and no token_passages'}; make the inputs with "
                "RavlmProcessor(..., passage_prompts=True)"
            )

    def _generate_sequence(
        self, generate, prompt, states, scores, evidence_mask, decoding, generation_config, args, kwargs
    ):
        num_passages = scores.shape[1]
        flat = repeat_for_passages(states, num_passages)
        hidden = None if evidence_mask is None else evidence_mask.flatten().unsqueeze(1)
        mask = hide_passages(prompt["attention_mask"], prompt["token_passages"], hidden)
        settings = generation_config or self.generation_config
        wanted, beams = (
            kwargs.pop(name, None) or getattr(settings, name, None) or 1
            for name in ("num_return_sequences", "num_beams")
        )
        as_dict = kwargs.pop("return_dict_in_generate", settings.return_dict_in_generate)
        proposals = generate(
            prompt["input_ids"],
            generation_config,
            *args,
            attention_mask=mask,
            token_passages=prompt["token_passages"],
            num_beams=beams,
            num_return_sequences=max(wanted, beams),
            return_dict_in_generate=False,
            **{name: tensor for name, tensor in flat.items() if tensor is not None},
            **kwargs,
        )
        answers = proposals[:, prompt["input_ids"].shape[1] :].unflatten(0, (len(scores), num_passages, -1))
        answers, log_likelihood = self._weigh_proposals(
            answers, prompt, mask, flat, scores, evidence_mask, decoding
        )  # (B, C, T), (B, C)
        best = log_likelihood.topk(min(wanted, log_likelihood.shape[1]), dim=1)
        chosen = answers.gather(1, best.indices.unsqueeze(-1).expand(-1, -1, answers.shape[-1]))
        first = prompt["input_ids"].unflatten(0, (-1, num_passages))[:, 0]
        sequences = torch.cat([first.repeat_interleave(chosen.shape[1], dim=0), chosen.flatten(0, 1)], dim=1)
        return RavlmGenerateOutput(sequences, best.values.flatten()) if as_dict else sequences

    def _weigh_proposals(self, answers, prompt, mask, flat, scores, evidence_mask, decoding):
        """Answers `(B, C, T)` and `log p(y | x)` `(B, C)`; for `"fast"` `log p(z_k | x) p(y | x, z_k)`."""
        log_prior = self.get_log_prior(scores, evidence_mask)  # (B, K)
        batch, num_passages = scores.shape
        if decoding == "fast":
            own = self._score_answers(answers.flatten(0, 1), prompt, mask, flat, num_passages)  # (B * K, R)
            weighed = own.unflatten(0, (batch, num_passages)) + log_prior.unsqueeze(-1)
            return answers.flatten(1, 2), weighed.flatten(1, 2)
        answers, real = _distinct(answers.flatten(1, 2), self._pad_id())  # (B, C, T), (B, C)
        rows = answers.repeat_interleave(num_passages, dim=0)
        each = self._score_answers(rows, prompt, mask, flat, num_passages).unflatten(0, (batch, num_passages))
        total = (each + log_prior.unsqueeze(-1)).logsumexp(dim=1)  # (B, C)
        return answers, total.masked_fill(~real, float("-inf"))

    def _score_answers(self, answers, prompt, mask, flat, num_passages: int) -> torch.Tensor:
        """`log p(y | x, z)` of `C` answers `(B * K, C, T)` for each prompt, which is read once: `(B * K, C)`."""
        cache = DynamicCache(config=self.config.get_text_config())
        asked = {**prompt, "attention_mask": mask, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        first = self.read_sharing_prefix(flat, num_passages, **asked).logits  # (B * K, 1, V)
        kept = _answer_mask(answers, self._end_ids())  # (B * K, C, T)
        scores = []
        for c in range(answers.shape[1]):
            tokens, logits = answers[:, c], first
            if tokens.shape[1] > 1:
                behind = torch.cat([mask, kept[:, c, :-1].to(mask.dtype)], dim=1)
                more = self.language_model(
                    inputs_embeds=self.get_input_embeddings()(tokens[:, :-1]),
                    attention_mask=behind,
                    position_ids=positions_from(behind)[:, mask.shape[1] :],
                    past_key_values=copy.deepcopy(cache),
                    **self.fusion_kwargs(flat),
                ).logits
                logits = torch.cat([first, more], dim=1)
            log_probs = logits.float().log_softmax(dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            scores.append((log_probs * kept[:, c]).sum(dim=-1))
        return torch.stack(scores, dim=1)

    def _end_ids(self) -> list[int]:
        ends = self.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [] if ends is None else [ends]

    def _pad_id(self) -> int:
        pad = self.generation_config.pad_token_id
        return pad if pad is not None else (self._end_ids() or [0])[0]


def _distinct(answers: torch.Tensor, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers `(B, N, T)` without repetitions: `(B, C, T)`, and which are real `(B, C)`."""
    unique = [list(dict.fromkeys(map(tuple, row))) for row in answers.tolist()]
    most = max(map(len, unique))
    blank = (pad,) * answers.shape[-1]
    filled = [row + [blank] * (most - len(row)) for row in unique]
    real = [[c < len(row) for c in range(most)] for row in unique]
    return answers.new_tensor(filled), torch.tensor(real, device=answers.device)


def _answer_mask(answers: torch.Tensor, end_ids: list[int]) -> torch.Tensor:
    """Tokens up to and with the first end mark, `(..., T)`."""
    ended = torch.isin(answers, torch.tensor(end_ids, dtype=answers.dtype, device=answers.device)).long()
    return ended.cumsum(dim=-1) - ended == 0
