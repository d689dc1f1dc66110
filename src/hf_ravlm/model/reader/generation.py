"""Generation: all inputs are encoded before the first step, and live in the cache afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers.generation import GenerationMixin

from ..outputs import RavlmGenerateOutput
from .inputs import EncodedInputs, check_evidence, encode_inputs, split_inputs
from .latent_passages import passages_are_latent
from .placing import PromptTensors, cut_out_hidden, hide_passages
from .proposals import best_proposals, generation_setting
from .reading import NOT_OF_IMAGE_TEXT
from .shared_prefix import BranchCache


@torch.no_grad()
def generate(model: Any, input_ids: torch.Tensor | None = None, *args, **kwargs) -> Any:
    """`generate` of [`RavlmForConditionalGeneration`], see there."""
    if model.reads_images:
        model.language_model.generation_config = model.generation_config
        kwargs = {name: value for name, value in kwargs.items() if name not in NOT_OF_IMAGE_TEXT}
        return model.language_model.generate(input_ids, *args, **kwargs)
    if passages_are_latent(model.config, kwargs.get("evidence_scores")):
        return generate_over_passages(model, input_ids, *args, **kwargs)
    if model.config.marginalization != "none":
        kwargs.pop("decoding", None)  # closed-book: there is nothing to choose
    if input_ids is None:
        return GenerationMixin.generate(model, None, *args, **kwargs)
    prompt, inputs, kwargs = encode_prompts(model, input_ids, kwargs, latent=False)
    inputs = replace(inputs, evidence_scores=None, evidence_mask=None)
    given = prompt.given() | inputs.given()
    outputs = GenerationMixin.generate(model, given.pop("input_ids"), *args, **given, **kwargs)
    if prompt.input_ids is not input_ids:  # the caller's prompt, with what was hidden, before what was generated
        sequences = getattr(outputs, "sequences", outputs)
        sequences[:, : input_ids.shape[1]] = input_ids.repeat_interleave(len(sequences) // len(input_ids), dim=0)
    return outputs


def encode_prompts(
    model: Any, input_ids: torch.Tensor, kwargs: dict[str, Any], latent: bool
) -> tuple[PromptTensors, EncodedInputs, dict[str, Any]]:
    """Arguments of `generate`: prompts that show no hidden passage, every input encoded, and the rest."""
    inputs, rest = split_inputs(kwargs)
    prompt = PromptTensors(input_ids, rest.pop("attention_mask", None), rest.pop("token_passages", None))
    if latent:
        if prompt.token_passages is None:
            raise ValueError(
                f"config.marginalization={model.config.marginalization!r} reads one prompt per passage, and there are "
                "no token_passages; make the inputs with RavlmProcessor(..., passage_prompts=True)"
            )
        prompt.attention_mask = torch.ones_like(input_ids) if prompt.attention_mask is None else prompt.attention_mask
    check_evidence(inputs, len(input_ids), latent)
    inputs = encode_inputs(model, inputs)
    counts = inputs.evidence_mask
    shown = counts if counts is None or not latent else counts.flatten().unsqueeze(1)  # (B * K, 1)
    prompt.attention_mask = hide_passages(prompt.attention_mask, prompt.token_passages, shown)
    if model.counts_columns and prompt.attention_mask is not None:
        settings = model.generation_config
        pad = settings.eos_token_id if settings.pad_token_id is None else settings.pad_token_id
        prompt = cut_out_hidden(prompt, (pad[0] if isinstance(pad, list) else pad) or 0)
        if counts is not None and inputs.evidence_image_mask is not None:
            inputs.evidence_image_mask = inputs.evidence_image_mask.bool() & counts.bool()
    return prompt, inputs, rest


def generate_over_passages(
    model: Any, input_ids: torch.Tensor, generation_config: Any = None, *args, decoding: str = "thorough", **kwargs
) -> Any:
    """`generate` over latent passages; `input_ids (B * K, L)`, one prompt per passage.

    Args:
        decoding (`"thorough"` or `"fast"`): for RAG-sequence. Both let every passage propose answers. `"thorough"`
            scores each proposal under every passage and takes the largest `p(y | x)`; `"fast"` takes the largest
            `p(z_k | x) p(y | x, z_k)` among what passage `k` itself proposed.

    Returns:
        Sequences `(B * num_return_sequences, L + T)`, best first for each query: the prompt of its first passage and
        the answer; with RAG-sequence and sampling, the best of the samples. RAG-sequence with
        `return_dict_in_generate=True` returns a [`RavlmGenerateOutput`].

    Raises:
        `ValueError`: if `decoding` is not known, the prompts are not one per passage, or a cache is given.
    """
    decodings = ["thorough", "fast"]
    if decoding not in decodings or (decoding != "thorough" and model.config.marginalization == "token"):
        raise ValueError(f"decoding={decoding!r}: expected one of {decodings}, and for RAG-token none")
    prompt, inputs, kwargs = encode_prompts(model, input_ids, kwargs, latent=True)
    num_passages = inputs.evidence_scores.shape[1]
    if model.config.marginalization == "sequence":
        best = best_proposals(model, inputs, prompt, decoding, generation_config, *args, **kwargs)
        first = input_ids.unflatten(0, (-1, num_passages))[:, 0].repeat_interleave(best.answers.shape[1], dim=0)
        sequences = torch.cat([first, best.answers.flatten(0, 1)], dim=1)
        as_dict = generation_setting(model, "return_dict_in_generate", kwargs, generation_config)
        return RavlmGenerateOutput(sequences, best.scores.flatten()) if as_dict else sequences
    if kwargs.get("past_key_values") is not None or kwargs.get("cache_implementation"):
        raise ValueError(
            "marginalization='token' keeps a cache of its own, with every passage's branch in it: leave out "
            "past_key_values and cache_implementation"
        )
    if generation_setting(model, "use_cache", kwargs, generation_config) is not False:
        kwargs["past_key_values"] = BranchCache(model.config.get_text_config(), num_passages)
    branches = {f"branch_{name}": tensor.unflatten(0, (-1, num_passages)) for name, tensor in prompt.given().items()}
    first = branches["branch_input_ids"][:, 0]
    given = {"attention_mask": torch.ones_like(first), **branches, **inputs.given(), **kwargs}
    return GenerationMixin.generate(model, first, generation_config, *args, **given)
