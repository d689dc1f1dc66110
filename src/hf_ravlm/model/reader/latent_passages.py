"""Answers over latent passages: likelihood and generation when each passage has a prompt of its own.

`p(y | x) = sum_k p(z_k | x) p(y | x, z_k)`: RAG-sequence for the answer as a whole, RAG-token for every token. The
prior `p(z | x)` is the softmax of the retriever's scores at its learned temperature. Inputs are flat, `(B * K, L)`,
passage by passage; `K` is known from `evidence_scores (B, K)`. What comes out is per query.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from transformers.cache_utils import Cache, DynamicCache

from ..outputs import RavlmCausalLMOutputWithPast, RavlmGenerateOutput
from .likelihoods import (
    answer_token_log_probs,
    passage_log_prior,
    rag_sequence_log_likelihood,
    rag_token_log_likelihood,
)
from .placing import ENCODED_INPUTS, STATES, cut_out_hidden, hide_passages, positions_from, repeat_for_passages
from .shared_prefix import BranchCache, read_rows, shared_prefix_length


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
            `-log p(y | x)` over queries, divided by the number of answer tokens; where a trainer counts these over
            several batches (`num_items_in_batch`), it counts every answer `K` times, which is taken back here, exactly
            if `K` is the same in all of them.
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
        everything = isinstance(logits_to_keep, int) and logits_to_keep == 0
        keep = input_ids.shape[1] if everything and input_ids is not None else logits_to_keep
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
            and not (recomputes or wants_states or inside or self.counts_columns or torch.compiler.is_compiling())
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
            and the answer; with RAG-sequence and sampling, the best of the samples. RAG-sequence with
            `return_dict_in_generate=True` returns a [`RavlmGenerateOutput`].
        """
        if decoding not in DECODINGS or (decoding != "thorough" and self.config.marginalization == "token"):
            raise ValueError(f"decoding={decoding!r}: expected one of {list(DECODINGS)}, and for RAG-token none")
        scores, evidence_mask = kwargs.pop("evidence_scores"), kwargs.pop("evidence_mask", None)
        inputs = {name: kwargs.pop(name) for name in (*ENCODED_INPUTS, *STATES) if name in kwargs}
        prompt = {
            "input_ids": input_ids,
            "attention_mask": kwargs.pop("attention_mask", torch.ones_like(input_ids)),
            "token_passages": kwargs.pop("token_passages", None),
        }
        self._check_prompts(prompt, scores)
        states = self.encode_inputs(**inputs, evidence_mask=evidence_mask)
        shown = prompt["input_ids"]
        if self.counts_columns:
            hidden = None if evidence_mask is None else evidence_mask.flatten().unsqueeze(1)
            mask = hide_passages(prompt["attention_mask"], prompt["token_passages"], hidden)
            prompt = cut_out_hidden({**prompt, "attention_mask": mask}, self.get_pad_id())
            if hidden is not None and states["evidence_image_mask"] is not None:
                states["evidence_image_mask"] = states["evidence_image_mask"].bool() & evidence_mask.bool()
        generate = super().generate
        if self.config.marginalization == "sequence":
            return self._generate_sequence(
                generate, prompt, shown, states, scores, evidence_mask, decoding, generation_config, args, kwargs
            )
        num_passages = scores.shape[1]
        branches = {f"branch_{name}": tensor.unflatten(0, (-1, num_passages)) for name, tensor in prompt.items()}
        if kwargs.get("past_key_values") is not None or kwargs.get("cache_implementation"):
            raise ValueError(
                "marginalization='token' keeps a cache of its own, with every passage's branch in it: leave out "
                "past_key_values and cache_implementation"
            )
        if self._setting("use_cache", kwargs, generation_config) is not False:
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
        self, generate, prompt, shown, states, scores, evidence_mask, decoding, generation_config, args, kwargs
    ):
        num_passages = scores.shape[1]
        flat = repeat_for_passages(states, num_passages)
        hidden = None if evidence_mask is None else evidence_mask.flatten().unsqueeze(1)
        mask = hide_passages(prompt["attention_mask"], prompt["token_passages"], hidden)
        setting = partial(self._setting, kwargs=kwargs, generation_config=generation_config)
        wanted, beams = setting("num_return_sequences") or 1, setting("num_beams") or 1
        as_dict = setting("return_dict_in_generate")
        ends, pad = setting("eos_token_id"), setting("pad_token_id")
        ends = ends if isinstance(ends, list) else [] if ends is None else [int(ends)]
        pad = pad if pad is not None else (ends or [0])[0]
        own = {"num_beams": beams, "return_dict_in_generate": False}
        own["num_return_sequences"] = max(wanted, beams) if setting("do_sample") else beams
        proposals = generate(
            prompt["input_ids"],
            generation_config,
            *args,
            attention_mask=mask,
            token_passages=prompt["token_passages"],
            **{name: tensor for name, tensor in flat.items() if tensor is not None},
            **{**kwargs, **own},
        )
        answers = proposals[:, prompt["input_ids"].shape[1] :].unflatten(0, (len(scores), num_passages, -1))
        score = partial(self._score_answers, prompt=prompt, mask=mask, flat=flat, ends=ends, pad=pad)
        log_prior = self.get_log_prior(scores, evidence_mask)  # (B, K)
        weigh = _weigh_own if decoding == "fast" else _weigh_all
        answers, log_likelihood = weigh(answers, log_prior, evidence_mask, score, pad)  # (B, C, T), (B, C)
        best = log_likelihood.topk(min(wanted, log_likelihood.shape[1]), dim=1)
        chosen = answers.gather(1, best.indices.unsqueeze(-1).expand(-1, -1, answers.shape[-1]))
        first = shown.unflatten(0, (-1, num_passages))[:, 0]
        sequences = torch.cat([first.repeat_interleave(chosen.shape[1], dim=0), chosen.flatten(0, 1)], dim=1)
        return RavlmGenerateOutput(sequences, best.values.flatten()) if as_dict else sequences

    def _score_answers(self, answers, num_passages: int, *, prompt, mask, flat, ends, pad) -> torch.Tensor:
        """`log p(y | x, z)` of `C` answers `(B * K, C, T)` for each prompt, which is read once: `(B * K, C)`."""
        cache = DynamicCache(config=self.config.get_text_config())
        asked = {**prompt, "attention_mask": mask, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        first = self.read_sharing_prefix(flat, num_passages, **asked).logits  # (B * K, 1, V)
        kept = _answer_mask(answers, ends, pad)  # (B * K, C, T)
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

    def _setting(self, name: str, kwargs: dict, generation_config=None):
        """A setting of `generate`: of the call, else of its generation config, else of the model's."""
        for given in (kwargs.get(name), getattr(generation_config, name, None)):
            if given is not None:
                return given
        return getattr(self.generation_config, name, None)


def _weigh_own(answers, log_prior, evidence_mask, score, pad):
    """Answers `(B, K * R, T)` with `log p(z_k | x) p(y | x, z_k)` of the passage that proposed each."""
    batch, num_passages = log_prior.shape
    own = score(answers.flatten(0, 1), num_passages).unflatten(0, (batch, num_passages))  # (B, K, R)
    weighed = own + log_prior.unsqueeze(-1)
    return answers.flatten(1, 2), _hide(weighed, evidence_mask).flatten(1, 2)


def _weigh_all(answers, log_prior, evidence_mask, score, pad):
    """Distinct answers `(B, C, T)` of the passages that count, with `log p(y | x)` over all of them."""
    batch, num_passages = log_prior.shape
    counts = _hide(torch.zeros(answers.shape[:3], device=answers.device), evidence_mask) == 0  # (B, K, R)
    answers, real = _distinct(answers.flatten(1, 2), counts.flatten(1, 2), pad)  # (B, C, T), (B, C)
    rows = answers.repeat_interleave(num_passages, dim=0)
    each = score(rows, num_passages).unflatten(0, (batch, num_passages))  # (B, K, C)
    total = (each + log_prior.unsqueeze(-1)).logsumexp(dim=1)
    return answers, total.masked_fill(~real, float("-inf"))


def _hide(weights: torch.Tensor, evidence_mask: torch.Tensor | None) -> torch.Tensor:
    """`weights (B, K, R)` with `-inf` for passages that do not count, unless none of their row does."""
    if evidence_mask is None:
        return weights
    counts = evidence_mask.bool() | ~evidence_mask.bool().any(dim=1, keepdim=True)
    return weights.masked_fill(~counts.unsqueeze(-1), float("-inf"))


def _distinct(answers: torch.Tensor, counts: torch.Tensor, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers `(B, N, T)` that count `(B, N)`, without repetitions: `(B, C, T)`, and which are real `(B, C)`."""
    unique = [
        list(dict.fromkeys(tuple(answer) for answer, keep in zip(*row, strict=True) if keep))
        for row in zip(answers.tolist(), counts.tolist(), strict=True)
    ]
    most = max(map(len, unique))
    blank = (pad,) * answers.shape[-1]
    filled = [row + [blank] * (most - len(row)) for row in unique]
    real = [[c < len(row) for c in range(most)] for row in unique]
    return answers.new_tensor(filled), torch.tensor(real, device=answers.device)


def _answer_mask(answers: torch.Tensor, ends: list[int], pad: int) -> torch.Tensor:
    """Tokens up to and with the first end mark, `(..., T)`; where none stands, up to the padding."""
    ended = torch.isin(answers, torch.tensor(ends, dtype=answers.dtype, device=answers.device)).long()
    padding = (answers == pad).flip(-1).long().cumprod(dim=-1).flip(-1).bool()
    open_ended = ~ended.any(dim=-1, keepdim=True)
    return (ended.cumsum(dim=-1) - ended == 0) & ~(padding & open_ended)
