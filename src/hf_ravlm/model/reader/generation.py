"""Generation: all inputs are encoded before the first step, and live in the cache afterwards."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from transformers.generation import (
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from ..outputs import RavlmGenerateOutput
from .inputs import EncodedInputs, check_evidence, encode_inputs, split_inputs
from .latent_passages import passages_are_latent
from .multimodal import generate_multimodal
from .placing import PromptTensors, cut_out_hidden, flush_right, hide_passages
from .proposals import best_proposals, generation_setting
from .shared_prefix import BranchCache


@torch.no_grad()
def generate(model: Any, input_ids: torch.Tensor | None = None, *args, **kwargs) -> Any:
    """`generate` of [`RavlmForConditionalGeneration`], see there."""
    names = list(inspect.signature(GenerationMixin.generate).parameters)[2:]  # behind `self` and `inputs`
    kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
    if model.reads_images:
        return generate_multimodal(model, input_ids, **kwargs)
    if passages_are_latent(model.config, kwargs.get("evidence_scores")):
        return generate_over_passages(model, input_ids, **kwargs)
    if model.config.marginalization != "none":
        kwargs.pop("decoding", None)  # closed-book: there is nothing to choose
    if input_ids is None and kwargs.get("inputs_embeds") is None:
        return GenerationMixin.generate(model, None, **kwargs)
    prompt, inputs, kwargs = encode_prompts(model, input_ids, kwargs, latent=False)
    inputs = replace(inputs, evidence_scores=None, evidence_mask=None, prior_scale=None)
    given = prompt.given() | inputs.given()
    outputs = GenerationMixin.generate(model, given.pop("input_ids", None), **given, **kwargs)
    if input_ids is not None and prompt.input_ids is not input_ids:
        sequences = getattr(outputs, "sequences", outputs)  # the caller's prompt, with what was hidden, stands before
        sequences[:, : input_ids.shape[1]] = input_ids.repeat_interleave(len(sequences) // len(input_ids), dim=0)
    return outputs


def encode_prompts(
    model: Any, input_ids: torch.Tensor | None, kwargs: dict[str, Any], latent: bool
) -> tuple[PromptTensors, EncodedInputs, dict[str, Any]]:
    """Arguments of `generate`: prompts that show no hidden passage, every input encoded, and the rest."""
    inputs, rest = split_inputs(kwargs)
    prompt = PromptTensors(input_ids, rest.pop("attention_mask", None), rest.pop("token_passages", None))
    _check_prompts(model, prompt, rest, latent)
    if latent:
        prompt.attention_mask = torch.ones_like(input_ids) if prompt.attention_mask is None else prompt.attention_mask
    check_evidence(inputs, len(rest["inputs_embeds"] if input_ids is None else input_ids), latent)
    inputs = encode_inputs(model, inputs)
    counts = inputs.evidence_mask
    shown = counts if counts is None or not latent else counts.flatten().unsqueeze(1)  # (B * K, 1)
    prompt.attention_mask = hide_passages(prompt.attention_mask, prompt.token_passages, shown)
    if model.counts_columns and prompt.attention_mask is not None:
        order = flush_right(prompt.attention_mask)
        settings = model.generation_config
        pad = settings.eos_token_id if settings.pad_token_id is None else settings.pad_token_id
        prompt = cut_out_hidden(prompt, order, (pad[0] if isinstance(pad, list) else pad) or 0)
        if rest.get("inputs_embeds") is not None:
            embeds = rest["inputs_embeds"]
            moved = embeds.gather(1, order.unsqueeze(-1).expand_as(embeds))
            rest["inputs_embeds"] = moved.masked_fill((prompt.attention_mask == 0).unsqueeze(-1), 0)
        if counts is not None and inputs.evidence_image_mask is not None:
            inputs.evidence_image_mask = inputs.evidence_image_mask.bool() & counts.bool()
    if prompt.token_passages is None and inputs.evidence_states is None and inputs.evidence_patches is None:
        # Says where the prompt ends: a placeholder that is written behind it is a word like others.
        prompt.token_passages = None if input_ids is None else torch.full_like(input_ids, -1)
    return prompt, inputs, rest


def _check_prompts(model: Any, prompt: PromptTensors, rest: dict[str, Any], latent: bool) -> None:
    """Refuses prompts that `generate` cannot go on from.

    Raises:
        `ValueError`: with what is missing, or what came.
    """
    if latent and (prompt.token_passages is None or prompt.input_ids is None):
        missing = "input_ids" if prompt.input_ids is None else "token_passages"
        raise ValueError(
            f"config.marginalization={model.config.marginalization!r} reads one prompt per passage, and there are "
            f"no {missing}; make the inputs with RavlmProcessor(..., passage_prompts=True)"
        )
    mask = prompt.attention_mask
    if mask is not None and (not torch.is_tensor(mask) or mask.dim() != 2):
        shape = tuple(mask.shape) if torch.is_tensor(mask) else type(mask).__name__
        raise ValueError(f"attention_mask {shape}: expected (B, L), which grows with every token that is generated")
    if prompt.input_ids is None and rest.get("use_cache") is False:
        raise ValueError(
            "inputs_embeds with use_cache=False: without a cache every step reads the prompt again from "
            "its ids; give input_ids, or leave out use_cache"
        )


def generate_over_passages(
    model: Any, input_ids: torch.Tensor | None, decoding: str = "thorough", streamer: Any = None, **kwargs
) -> Any:
    """`generate` over latent passages; `input_ids (B * K, L)`, one prompt per passage.

    Args:
        decoding (`"thorough"` or `"fast"`): for RAG-sequence. Both let every passage propose answers. `"thorough"`
            scores each proposal under every passage and takes the largest `p(y | x)`; `"fast"` takes the largest
            `p(z_k | x) p(y | x, z_k)` among what passage `k` itself proposed.
        streamer (*optional*): of one answer. With RAG-sequence it gets the chosen answer when all are scored.

    Returns:
        Sequences `(B * num_return_sequences, L + T)`, best first for each query, no two of a query alike with
        RAG-sequence: the prompt of its first passage and the answer; with RAG-sequence and sampling, the best of the
        samples. RAG-sequence with `return_dict_in_generate=True` returns a [`RavlmGenerateOutput`].

    Raises:
        `ValueError`: if `decoding` is not known, the prompts are not one per passage, or a cache is given.
    """
    decodings = ["thorough", "fast"]
    if decoding not in decodings or (decoding != "thorough" and model.config.marginalization == "token"):
        raise ValueError(f"decoding={decoding!r}: expected one of {decodings}, and for RAG-token none")
    prompt, inputs, kwargs = encode_prompts(model, input_ids, kwargs, latent=True)
    if model.config.marginalization == "sequence":
        return _generate_sequence(model, inputs, prompt, input_ids, decoding, streamer, kwargs)
    return _generate_token(model, inputs, prompt, {"streamer": streamer, **kwargs})


def _generate_sequence(
    model: Any,
    inputs: EncodedInputs,
    prompt: PromptTensors,
    input_ids: torch.Tensor,
    decoding: str,
    streamer: Any,
    kwargs: dict[str, Any],
) -> Any:
    num_queries, num_passages = inputs.evidence_scores.shape
    wanted = generation_setting(model, "num_return_sequences", kwargs) or 1
    if streamer is not None and num_queries * wanted > 1:
        raise ValueError(
            f"a streamer takes one answer, and there are {num_queries * wanted}: leave it out, or ask once"
        )
    best = best_proposals(model, inputs, prompt, decoding, wanted, kwargs)
    first = input_ids.unflatten(0, (-1, num_passages))[:, 0].repeat_interleave(wanted, dim=0)
    sequences = torch.cat([first, best.answers.flatten(0, 1)], dim=1)
    if streamer is not None:
        streamer.put(first.cpu())
        for token in best.answers[0, 0].cpu()[best.kept[0, 0].cpu()]:
            streamer.put(token.unsqueeze(0))
        streamer.end()
    as_dict = generation_setting(model, "return_dict_in_generate", kwargs)
    return RavlmGenerateOutput(sequences, best.scores.flatten()) if as_dict else sequences


def _generate_token(model: Any, inputs: EncodedInputs, prompt: PromptTensors, kwargs: dict[str, Any]) -> Any:
    if kwargs.get("past_key_values") is not None or kwargs.get("cache_implementation"):
        raise ValueError(
            "marginalization='token' keeps a cache of its own, with every passage's branch in it: leave out "
            "past_key_values and cache_implementation"
        )
    num_passages = inputs.evidence_scores.shape[1]
    if generation_setting(model, "use_cache", kwargs) is not False:
        kwargs["past_key_values"] = BranchCache(model.config.get_text_config(), num_passages)
    branches = {f"branch_{name}": tensor.unflatten(0, (-1, num_passages)) for name, tensor in prompt.given().items()}
    first = branches["branch_input_ids"][:, 0]
    kwargs |= penalties_over_passages(model, branches["branch_input_ids"], inputs.evidence_mask, kwargs)
    given = {"attention_mask": torch.ones_like(first), **branches, **inputs.given(), **kwargs}
    return GenerationMixin.generate(model, first, **given)


def penalties_over_passages(
    model: Any, prompts: torch.Tensor, counts: torch.Tensor | None, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of `generate` in whose place repetitions are judged by the prompts `(B, K, L)` of all passages.

    Raises:
        `ValueError`: for penalties of an encoder's input, of which there is none.
    """
    for name, none in (("encoder_repetition_penalty", 1.0), ("encoder_no_repeat_ngram_size", 0)):
        if generation_setting(model, name, kwargs) not in (None, none):
            raise ValueError(f"{name} with marginalization='token': there is no encoder's input; leave it out")
    penalty = generation_setting(model, "repetition_penalty", kwargs)
    size = generation_setting(model, "no_repeat_ngram_size", kwargs)
    judges = LogitsProcessorList()
    if penalty not in (None, 1.0):
        judges.append(RepetitionPenaltyLogitsProcessor(penalty))
    if size:
        judges.append(NoRepeatNGramLogitsProcessor(size))
    if not judges:
        return {}
    over = LogitsProcessorList([OverPassages(judges, prompts, counts), *(kwargs.get("logits_processor") or ())])
    return {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "logits_processor": over}


class OverPassages(LogitsProcessor):
    """Judges the next token behind the prompt of each passage that counts: what one of them changes is changed."""

    def __init__(self, judges: LogitsProcessorList, prompts: torch.Tensor, counts: torch.Tensor | None):
        self.judges, self.prompts = judges, prompts  # (B, K, L)
        self.counts = prompts.new_ones(prompts.shape[:2]).bool() if counts is None else counts.bool()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores `(N, V)` of the next token behind `input_ids (N, L + t)`, `N` a multiple of `B`."""
        times = len(input_ids) // len(self.prompts)
        prompts, counts = (tensor.repeat_interleave(times, dim=0) for tensor in (self.prompts, self.counts))
        answer, judged = input_ids[:, prompts.shape[2] :], scores
        for k in range(prompts.shape[1]):
            own = self.judges(torch.cat([prompts[:, k], answer], dim=1), scores.clone())
            judged = torch.where((own != scores) & counts[:, k : k + 1], own, judged)
        return judged
