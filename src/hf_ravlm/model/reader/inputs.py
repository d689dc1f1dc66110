"""From inputs to what the language model reads: towers and fusion run here, each once, and placeholders are filled."""

from __future__ import annotations

import math

import torch

from .placing import STATES, fill_memory, fill_placeholders, find_places, passage_columns


class InputEncoding:
    """The part of [`RavlmForConditionalGeneration`] before its language model."""

    def encode_evidence(
        self,
        evidence_input_ids: torch.LongTensor,
        evidence_attention_mask: torch.Tensor,
        evidence_pixel_values: torch.FloatTensor | None = None,
        evidence_image_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States of passages, which depend on nothing else: encode a knowledge base once and keep them.

        Args:
            evidence_input_ids, evidence_attention_mask (`(B, K, L)`): passages for the text encoder.
            evidence_pixel_values (`(B, K, 3, height, width)`, *optional*), evidence_image_mask (`(B, K)`):
                their pictures; `P` states of the picture stand before those of the text.

        Returns:
            `evidence_states` `(B, K, S, C)` and `evidence_token_mask` `(B, K, S)`, as `forward` takes them.
        """
        shape = evidence_input_ids.shape[:2]
        states = self.model.get_text_states(evidence_input_ids.flatten(0, 1), evidence_attention_mask.flatten(0, 1))
        states, mask = states.unflatten(0, shape), evidence_attention_mask.bool()
        if evidence_pixel_values is not None:
            patches = self._passage_patches(evidence_pixel_values)
            pictures = self.evidence_image_projector(patches).to(states.dtype)
            if evidence_image_mask is None:
                evidence_image_mask = mask.new_ones(shape)
            pictured = evidence_image_mask.bool().unsqueeze(-1).expand(*shape, pictures.shape[2])
            states = torch.cat([pictures.masked_fill(~pictured.unsqueeze(-1), 0), states], dim=2)
            mask = torch.cat([pictured, mask], dim=2)
        return states, mask

    def encode_inputs(
        self,
        pixel_values: torch.FloatTensor | None = None,
        question_input_ids: torch.LongTensor | None = None,
        question_attention_mask: torch.Tensor | None = None,
        evidence_input_ids: torch.LongTensor | None = None,
        evidence_attention_mask: torch.Tensor | None = None,
        evidence_pixel_values: torch.FloatTensor | None = None,
        evidence_image_mask: torch.Tensor | None = None,
        evidence_mask: torch.Tensor | None = None,
        **states: torch.Tensor | None,
    ) -> dict[str, torch.Tensor | None]:
        """Everything that towers compute, by the names under which `forward` takes it; what is given is kept."""
        encoded = {name: states.get(name) for name in STATES}
        if encoded["image_patches"] is None and pixel_values is not None:
            grid = math.isqrt(self.config.num_image_tokens)
            encoded["image_patches"] = self.model.get_image_patches(pixel_values, grid)
        encoded["evidence_image_mask"] = evidence_image_mask
        if not self.fusion.reads_evidence:
            if encoded["evidence_patches"] is None and evidence_pixel_values is not None:
                encoded["evidence_patches"] = self._passage_patches(evidence_pixel_values)
            return encoded
        if encoded["evidence_states"] is None and encoded["evidence_keys_values"] is None:
            if evidence_input_ids is None or not evidence_input_ids.shape[1]:
                return encoded
            if evidence_attention_mask is None:
                raise ValueError(
                    "evidence_input_ids came without evidence_attention_mask; pass all outputs of RavlmProcessor"
                )
            encoded["evidence_states"], encoded["evidence_token_mask"] = self.encode_evidence(
                evidence_input_ids, evidence_attention_mask, evidence_pixel_values, evidence_image_mask
            )
        elif encoded["evidence_states"] is not None:  # kept ones may be of another precision
            encoded["evidence_states"] = encoded["evidence_states"].to(self.image_projector.weight.dtype)
        if self.fusion.reads_question and encoded["question_states"] is None:
            if question_input_ids is None or question_attention_mask is None:
                raise ValueError(
                    f"fusion={self.config.fusion!r} reads the evidence together with question_input_ids and "
                    "question_attention_mask, and one of them is missing; pass all outputs of RavlmProcessor"
                )
            encoded["question_states"] = self.model.get_text_states(question_input_ids, question_attention_mask)
            encoded["question_mask"] = question_attention_mask.bool()
        if self.fusion.num_memory_tokens != 0:  # hidden with its place in the prompt
            return encoded
        if evidence_mask is not None:
            encoded["evidence_token_mask"] = encoded["evidence_token_mask"].bool() & evidence_mask.bool().unsqueeze(-1)
        if encoded["evidence_keys_values"] is None:
            # All layers' keys and values at once; the language model is given these at every step.
            evidence = (encoded["evidence_states"], encoded["evidence_token_mask"])
            encoded["evidence_keys_values"] = self.fusion(None, None, None, *evidence)
            encoded["evidence_states"] = None
        return encoded

    def _passage_patches(self, evidence_pixel_values: torch.Tensor) -> torch.Tensor:
        grid = math.isqrt(self.config.num_image_tokens)
        patches = self.model.get_image_patches(evidence_pixel_values.flatten(0, 1), grid)
        return patches.unflatten(0, evidence_pixel_values.shape[:2])  # (B, K, P, C)

    def embed_prompt(
        self,
        states: dict[str, torch.Tensor | None],
        input_ids: torch.LongTensor,
        token_passages: torch.LongTensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Embeddings `(B, L, H)` of a prompt with its placeholders filled; also image tokens and memory tokens."""
        inputs_embeds = self.get_input_embeddings()(input_ids)
        image_states = memory = None
        image_places = find_places(input_ids, self.config.image_token_id, token_passages)
        of_passages = torch.zeros_like(image_places)
        if states["evidence_patches"] is not None and token_passages is not None:
            of_passages = image_places & (passage_columns(token_passages, input_ids.shape[1]) >= 0)
            pictures = self.image_projector(states["evidence_patches"]).flip(1)  # the best passage stands last
            pictured = states["evidence_image_mask"]
            pictures = pictures.flatten(0, 1) if pictured is None else pictures[pictured.bool().flip(1)]
            inputs_embeds = fill_placeholders(inputs_embeds, of_passages, pictures, "image")
        if states["image_patches"] is not None:
            image_states = self.image_projector(states["image_patches"])
            inputs_embeds = fill_placeholders(inputs_embeds, image_places & ~of_passages, image_states, "image")
        if states["evidence_states"] is not None and self.fusion.num_memory_tokens != 0:
            memory = self.get_memory(states)
            places = find_places(input_ids, self.config.evidence_token_id, token_passages)
            kept = None if self.fusion.num_memory_tokens else states["evidence_token_mask"].bool()
            inputs_embeds = fill_memory(inputs_embeds, places, token_passages, memory, kept)
        return inputs_embeds, image_states, memory

    def get_memory(self, states: dict[str, torch.Tensor | None]) -> torch.Tensor:
        """Memory tokens `(B, K, M, H)` that the fusion makes of encoded inputs."""
        patches = states["image_patches"]
        if patches is None:
            evidence = states["evidence_states"]
            patches = evidence.new_zeros(len(evidence), 0, self.config.vision_dim)
        return self.fusion(
            image_patches=patches,
            question_states=states["question_states"],
            question_mask=states["question_mask"],
            evidence_states=states["evidence_states"],
            evidence_token_mask=states["evidence_token_mask"],
        )

    def fusion_kwargs(self, states: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
        """What layers of the fusion inside the language model read."""
        if states["evidence_keys_values"] is None:
            return {}
        memory = self.fusion.reading(states["evidence_keys_values"], states["evidence_token_mask"])
        return {"evidence_memory": memory}
