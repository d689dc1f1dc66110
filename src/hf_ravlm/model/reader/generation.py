"""How the reader generates: everything is encoded before the first step, and lives in the cache afterwards."""

from __future__ import annotations

import torch

from .multimodal import generate_multimodal
from .placing import ENCODED_INPUTS, STATES, check_evidence, cut_out_hidden, hide_passages


class ReaderGeneration:
    """`generate` of [`RavlmForConditionalGeneration`], in front of that of `GenerationMixin`."""

    def generate(self, inputs=None, *args, **kwargs):
        """`GenerationMixin.generate`, over all passages in one prompt or over latent passages.

        Towers run once, before the first step; passages that `evidence_mask` leaves out stay invisible. With
        `config.marginalization` see `generate_over_passages` for what is generated and the option `decoding`.
        """
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        if self.reads_images:
            return generate_multimodal(self.language_model, self.generation_config, inputs, *args, **kwargs)
        if self.passages_are_latent(kwargs.get("evidence_scores")):
            return self.generate_over_passages(inputs, *args, **kwargs)
        if self.config.marginalization != "none":
            kwargs.pop("decoding", None)  # closed-book: there is nothing to choose
        if inputs is None:
            return super().generate(None, *args, **kwargs)
        kwargs, shown = self.prepare_reading(inputs, **kwargs), inputs
        if self.counts_columns and kwargs.get("attention_mask") is not None:
            names = ("attention_mask", "token_passages")
            prompt = {"input_ids": inputs, **{name: kwargs.get(name) for name in names}}
            prompt = cut_out_hidden(prompt, self.get_pad_id())
            inputs = prompt.pop("input_ids")
            kwargs |= {name: tensor for name, tensor in prompt.items() if tensor is not None}
        outputs = super().generate(inputs, *args, **kwargs)
        if inputs is not shown:  # the caller's prompt, with what was hidden, before what was generated
            sequences = getattr(outputs, "sequences", outputs)
            sequences[:, : shown.shape[1]] = shown.repeat_interleave(len(sequences) // len(shown), dim=0)
        return outputs

    def get_pad_id(self) -> int:
        """The token that stands for nothing."""
        for token in (self.generation_config.pad_token_id, self.generation_config.eos_token_id):
            if token is not None:
                return token[0] if isinstance(token, list) else int(token)
        return 0

    def prepare_reading(self, input_ids: torch.LongTensor, **kwargs) -> dict:
        """Arguments of `generate` with every input encoded and every hidden passage masked."""
        kwargs.pop("evidence_scores", None)
        evidence_mask = kwargs.pop("evidence_mask", None)
        with torch.no_grad():
            inputs = {name: kwargs.pop(name, None) for name in (*ENCODED_INPUTS, *STATES) if name in kwargs}
            named = {**inputs, "evidence_mask": evidence_mask}
            check_evidence(len(input_ids), False, {k: v for k, v in named.items() if k != "pixel_values"})
            states = self.encode_inputs(**inputs, evidence_mask=evidence_mask)
        mask = hide_passages(kwargs.get("attention_mask"), kwargs.get("token_passages"), evidence_mask)
        if mask is not None:
            kwargs["attention_mask"] = mask
        if self.counts_columns and evidence_mask is not None and states["evidence_image_mask"] is not None:
            states["evidence_image_mask"] = states["evidence_image_mask"].bool() & evidence_mask.bool()
        return {**kwargs, **{name: value for name, value in states.items() if value is not None}}

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, is_first_iteration=False, **kwargs):
        """States are read at the prefill alone, and then live in the cache; only layers inside the model go on."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if (not is_first_iteration or self._continues(inputs)) and kwargs.get("use_cache", True):
            kept = ("evidence_keys_values", "evidence_token_mask") if self.fusion.num_memory_tokens == 0 else ()
            for name in (*ENCODED_INPUTS, *STATES, "token_passages"):
                if name not in kept:
                    inputs.pop(name, None)
        return inputs

    def _continues(self, inputs: dict) -> bool:
        """Whether the cache of an earlier call holds all places that states fill."""
        cache, input_ids = inputs.get("past_key_values"), inputs.get("input_ids")
        if cache is None or input_ids is None or not cache.get_seq_length():
            return False
        marks = torch.tensor([self.config.image_token_id, self.config.evidence_token_id], device=input_ids.device)
        return not torch.isin(input_ids, marks).any()
