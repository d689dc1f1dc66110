"""The inputs of the reader beside its prompts: the keys of a batch, and what the towers make of them, each once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ...errors import InvalidInputError
from ..loading import compute_dtype


@dataclass
class EncodedInputs:
    """What a batch of `B` queries with `K` passages holds beside its prompts; `None` for what is not there.

    The first six are read by the towers ([`encode_inputs`]); the last seven are what comes out. All of them are
    arguments of the reader's `forward`. `evidence_token_ids` and `evidence_alignment` say which tokens of the language
    model a passage has, and which of its states each of them stands on ([`aligned_tokens`]).
    """

    pixel_values: torch.Tensor | None = None  # (B, 3, height, width), the image asked about
    question_input_ids: torch.Tensor | None = None  # (B, Lq), for the text encoder, as all ids here
    question_attention_mask: torch.Tensor | None = None
    evidence_input_ids: torch.Tensor | None = None  # (B, K, T)
    evidence_attention_mask: torch.Tensor | None = None
    evidence_pixel_values: torch.Tensor | None = None  # (B, K, 3, height, width), images of passages
    evidence_image_mask: torch.Tensor | None = None  # (B, K), passages that have an image
    evidence_scores: torch.Tensor | None = None  # (B, K), of the retriever
    evidence_mask: torch.Tensor | None = None  # (B, K), passages that count
    prior_scale: torch.Tensor | None = None  # (B,), 1 / temperature of what gave the scores; else the reader's own
    evidence_token_ids: torch.Tensor | None = None  # (B, K, L), -1 for none
    evidence_alignment: torch.Tensor | None = None  # (B, K, L), states counted from the last kept one, which is 0
    image_patches: torch.Tensor | None = None  # (B, P, C)
    question_states: torch.Tensor | None = None  # (B, Lq, C)
    question_mask: torch.Tensor | None = None
    evidence_states: torch.Tensor | None = None  # (B, K, S, C)
    evidence_token_mask: torch.Tensor | None = None
    evidence_keys_values: torch.Tensor | None = None  # (B, K, S, ...), for layers inside the language model
    evidence_patches: torch.Tensor | None = None  # (B, K, P, C), where images of passages stand in the prompt

    def given(self) -> dict[str, torch.Tensor]:
        """What is there, by name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    def rows(self, index: torch.Tensor) -> EncodedInputs:
        """The queries that `index` names."""
        return EncodedInputs(**{name: tensor[index] for name, tensor in self.given().items()})

    def per_passage(self) -> EncodedInputs:
        """Inputs of `B` queries as those of `B * K` prompts with one passage each, passage by passage."""
        num_passages = self.evidence_scores.shape[1]
        flat = {}
        for name, tensor in self.given().items():
            if name.startswith("evidence"):
                flat[name] = tensor.flatten(0, 1).unsqueeze(1)  # (B * K, 1, ...)
            else:
                flat[name] = tensor.repeat_interleave(num_passages, dim=0)
        return EncodedInputs(**flat)


NAMES = tuple(field.name for field in fields(EncodedInputs))
FOR_TOWERS = NAMES[:6]


def split_inputs(given: Mapping[str, Any]) -> tuple[EncodedInputs, dict[str, Any]]:
    """What of `given` belongs into [`EncodedInputs`], and the rest."""
    rest = {name: value for name, value in given.items() if name not in NAMES}
    return EncodedInputs(**{name: given[name] for name in NAMES if name in given}), rest


def encode_inputs(model: Any, inputs: EncodedInputs) -> EncodedInputs:
    """Everything that the towers of a reader compute, without what they read; what is encoded already is kept.

    Raises:
        `ValueError`: if a tensor that its fusion reads is missing.
    """
    fusion, inputs = model.fusion, without_hidden_numbers(inputs)
    if model.model is None and not (inputs.pixel_values is inputs.evidence_pixel_values is None):
        check_towers(model, images=True)
    encoded = replace(inputs, **dict.fromkeys(FOR_TOWERS))
    if encoded.image_patches is None and inputs.pixel_values is not None:
        encoded.image_patches = model.model.get_image_patches(inputs.pixel_values, _grid(model))
    if not fusion.reads_evidence:
        if encoded.evidence_patches is None and inputs.evidence_pixel_values is not None:
            encoded.evidence_patches = _passage_patches(model, inputs.evidence_pixel_values)
        return encoded
    if encoded.evidence_states is None and encoded.evidence_keys_values is None:
        if inputs.evidence_input_ids is None or not inputs.evidence_input_ids.shape[1]:
            return encoded
        if inputs.evidence_attention_mask is None:
            raise ValueError(
                "evidence_input_ids came without evidence_attention_mask; pass all outputs of RavlmProcessor"
            )
        encoded.evidence_states, encoded.evidence_token_mask = encode_evidence(model, inputs)
    elif encoded.evidence_states is not None:  # kept ones may be of another precision
        encoded.evidence_states = encoded.evidence_states.to(compute_dtype(model.model))
    if fusion.reads_question and encoded.question_states is None:
        if inputs.question_input_ids is None or inputs.question_attention_mask is None:
            raise ValueError(
                f"fusion={model.config.fusion!r} reads the evidence together with question_input_ids and "
                "question_attention_mask, and one of them is missing; pass all outputs of RavlmProcessor"
            )
        question = (inputs.question_input_ids, inputs.question_attention_mask)
        encoded.question_states, encoded.question_mask = model.model.get_text_states(*question), question[1].bool()
    if fusion.num_memory_tokens != 0:  # a passage that does not count is hidden with its place in the prompt
        return encoded
    if encoded.evidence_mask is not None:
        counts = encoded.evidence_mask.bool().unsqueeze(-1)
        encoded.evidence_token_mask = encoded.evidence_token_mask.bool() & counts
    if encoded.evidence_keys_values is None:
        # All layers' keys and values at once; the language model is given these at every step.
        tokens = passage_tokens(model, encoded)
        encoded.evidence_keys_values, encoded.evidence_token_mask = fusion(**tokens), tokens["evidence_token_mask"]
        encoded.evidence_states = encoded.evidence_token_ids = encoded.evidence_alignment = None
    return encoded


def check_towers(model: Any, images: bool = False) -> None:
    """Refuses what only the towers of a reader can do.

    Raises:
        `InvalidInputError`: if it has none.
    """
    if model.model is None:
        came = "images (pixel_values)" if images else "passages to encode"
        raise InvalidInputError(
            f"{came} came to a reader without towers, which reads words alone: let its own processor prepare the "
            "inputs, or assemble the reader with vision= and text= (`from_backbones`)"
        )


def without_hidden_numbers(inputs: EncodedInputs) -> EncodedInputs:
    """The inputs with zeros in passages that do not count and in images that are not there.

    What is hidden is masked again where it is read, but NaN times zero is NaN, there and in the backward pass.
    """
    changed, counts = {}, inputs.evidence_mask
    for name in ("evidence_pixel_values", "evidence_patches", "evidence_states", "evidence_keys_values"):
        values, keep = getattr(inputs, name), counts
        if values is None:
            continue
        if name in ("evidence_pixel_values", "evidence_patches") and inputs.evidence_image_mask is not None:
            keep = inputs.evidence_image_mask if counts is None else inputs.evidence_image_mask.bool() & counts.bool()
        if keep is not None:
            changed[name] = values.masked_fill(~keep.bool().view(*keep.shape, *[1] * (values.dim() - 2)), 0)
    return replace(inputs, **changed) if changed else inputs


def encode_evidence(model: Any, inputs: EncodedInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """States `(B, K, S, C)` of passages and their mask `(B, K, S)`; see `encode_evidence` of the reader."""
    mask = inputs.evidence_attention_mask
    states = model.model.get_text_states(inputs.evidence_input_ids.flatten(0, 1), mask.flatten(0, 1))
    states, mask = states.unflatten(0, mask.shape[:2]), mask.bool()
    if inputs.evidence_pixel_values is None:
        return states, mask
    patches = _passage_patches(model, inputs.evidence_pixel_values)
    images = model.evidence_image_projector(patches).to(states.dtype)
    with_image = inputs.evidence_image_mask
    with_image = mask.new_ones(mask.shape[:2]) if with_image is None else with_image.bool()
    with_image = with_image.unsqueeze(-1).expand(-1, -1, images.shape[2])
    states = torch.cat([images.masked_fill(~with_image.unsqueeze(-1), 0), states], dim=2)
    return states, torch.cat([with_image, mask], dim=2)


def passage_tokens(model: Any, inputs: EncodedInputs) -> dict[str, torch.Tensor]:
    """What a fusion reads of passages, token by token of the language model, under the names of its arguments.

    Returns:
        `evidence_states (B, K, L, C)` of the text encoder, `evidence_embeds (B, K, L, H)` of the language model, zeros
        where an image stands, and `evidence_token_mask (B, K, L)`.

    Raises:
        `ValueError`: if nothing says which tokens they are.
    """
    states, ids, mask = inputs.evidence_states, inputs.evidence_token_ids, inputs.evidence_token_mask.bool()
    if ids is None or inputs.evidence_alignment is None:
        raise ValueError(
            f"fusion={model.config.fusion!r} reads evidence_token_ids and evidence_alignment beside the states of "
            "passages, and one of them is missing; pass all outputs of RavlmProcessor"
        )
    last = (mask * torch.arange(1, mask.shape[-1] + 1, device=mask.device)).amax(-1, keepdim=True) - 1  # kept state
    place = (last - inputs.evidence_alignment).clamp(min=0)  # (B, K, L)
    is_image = ids == model.config.image_token_id
    embeds = model.get_input_embeddings()(ids.masked_fill(is_image, -1).clamp(min=0))
    return {
        "evidence_states": states.gather(2, place.unsqueeze(-1).expand(-1, -1, -1, states.shape[-1])),
        "evidence_embeds": embeds.masked_fill((is_image | (ids < 0)).unsqueeze(-1), 0).to(states),
        "evidence_token_mask": mask.gather(2, place) & (ids >= 0),
    }


def get_memory(model: Any, inputs: EncodedInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory tokens `(B, K, M, H)` that the fusion makes of encoded inputs, and the tokens `(B, K, L)` it has read."""
    patches, tokens = inputs.image_patches, passage_tokens(model, inputs)
    if patches is None:
        patches = inputs.evidence_states.new_zeros(len(inputs.evidence_states), 0, model.config.vision_dim)
    memory = model.fusion(
        image_patches=patches,
        question_states=inputs.question_states,
        question_mask=inputs.question_mask,
        **tokens,
    )
    return memory, tokens["evidence_token_mask"]


def _grid(model: Any) -> int:
    return math.isqrt(model.config.num_image_tokens)


def _passage_patches(model: Any, evidence_pixel_values: torch.Tensor) -> torch.Tensor:
    patches = model.model.get_image_patches(evidence_pixel_values.flatten(0, 1), _grid(model))
    return patches.unflatten(0, evidence_pixel_values.shape[:2])  # (B, K, P, C)


def check_evidence(inputs: EncodedInputs, num_prompts: int, latent: bool) -> None:
    """Compares the shapes of a batch with each other and with `num_prompts`, the rows of `input_ids`.

    Args:
        latent (`bool`): whether each passage has a prompt of its own.

    Raises:
        `ValueError`: if `B`, `K` or `L` disagree.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.given().items()}
    evidence = {name: shape for name, shape in shapes.items() if name.startswith("evidence")}
    if not evidence:
        return
    batches = {name: shape[:2] for name, shape in evidence.items()}
    if len(set(batches.values())) > 1:
        raise ValueError(f"evidence tensors disagree about (B, K): {evidence}; all of them start with the same (B, K)")
    for ids, mask in (
        ("evidence_input_ids", "evidence_attention_mask"),
        ("evidence_states", "evidence_token_mask"),
        ("evidence_token_ids", "evidence_alignment"),
    ):
        if ids in shapes and mask in shapes and shapes[ids][:3] != shapes[mask]:
            raise ValueError(f"{ids} {shapes[ids]} and {mask} {shapes[mask]} do not fit: expected one (B, K, L)")
    rows, passages = next(iter(batches.values()))
    wanted = rows * passages if latent and passages else rows
    if num_prompts != wanted:
        meaning = "B * K rows of input_ids, one prompt per passage" if latent else "one row of input_ids per query"
        raise ValueError(
            f"evidence comes for B={rows} queries with K={passages} passages, input_ids have {num_prompts} rows: "
            f"expected {wanted} ({meaning}); RavlmProcessor(..., passage_prompts=...) decides it, and "
            "config.marginalization must say the same"
        )
    questions = {name: shape[0] for name, shape in shapes.items() if name.startswith("question")}
    if any(size != rows for size in questions.values()):  # images are not asked: some rows may have none
        raise ValueError(f"inputs of the queries have {questions} rows, the evidence comes for {rows} queries")
