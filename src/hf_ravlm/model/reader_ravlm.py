"""The reader: a language model that sees the picture and the evidence, and answers.

Image tokens (and, with a fusion, memory tokens of the passages) take the places of the placeholders in the prompt;
from there on it is an ordinary causal language model: caches, beams, sampling and adapters work as everywhere. One
checkpoint holds it together with the dual encoder. It does not know how the passages were found.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .configuration_ravlm import RavlmConfig
from .fusion_ravlm import FUSIONS
from .modeling_ravlm import RavlmModel, RavlmPreTrainedModel, with_pooled
from .outputs_ravlm import RavlmCausalLMOutputWithPast
from .pooling_ravlm import patch_grid


class RavlmForConditionalGeneration(RavlmPreTrainedModel, GenerationMixin):
    """The reader: answers from image, question and evidence.

    `<image>` placeholders in `input_ids` are filled with the projected patches of the query image. With
    `fusion="in_context"` the passages are text of the prompt; with a fusion that makes memory tokens they fill the
    `<evidence>` placeholders, and a passage that `evidence_mask` leaves out is invisible: no evidence at all gives
    exactly the closed-book output. [`RavlmProcessor`] writes all of these inputs.
    """

    def __init__(self, config: RavlmConfig):
        super().__init__(config)
        self.model = RavlmModel(config)
        self.language_model = AutoModelForCausalLM.from_config(config.generator_config)
        self.image_projector = nn.Linear(config.vision_dim, config.get_text_config().hidden_size)
        self.fusion = FUSIONS[config.fusion](config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """The vision tower's output for images `(B, 3, h, w)`; `pooler_output` is image tokens, `(B, P, H)`."""
        outputs = self.model.vision_tower(pixel_values.to(self.image_projector.weight.dtype), **kwargs)
        patches = patch_grid(outputs.last_hidden_state, math.isqrt(self.config.num_image_tokens))
        return with_pooled(outputs, self.image_projector(patches))

    def get_evidence_features(
        self,
        evidence_input_ids: torch.LongTensor,
        evidence_attention_mask: torch.Tensor,
        question_input_ids: torch.LongTensor,
        question_attention_mask: torch.Tensor,
        pixel_values: torch.FloatTensor | None = None,
    ) -> torch.Tensor:
        """Memory tokens `(B, K, M, H)` of passages `(B, K, L)`, read with the question `(B, Lq)` and the image."""
        batch, passages, length = evidence_input_ids.shape
        flat = self.model.get_text_states(evidence_input_ids.flatten(0, 1), evidence_attention_mask.flatten(0, 1))
        question = self.model.get_text_states(question_input_ids, question_attention_mask)
        if pixel_values is None:
            patches = question.new_zeros(batch, 0, self.config.vision_dim)
        else:
            patches = self.model.get_image_patches(pixel_values, math.isqrt(self.config.num_image_tokens))
        return self.fusion(
            image_patches=patches,
            question_states=question,
            question_mask=question_attention_mask,
            evidence_states=flat.unflatten(0, (batch, passages)),
            evidence_token_mask=evidence_attention_mask,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        question_input_ids: torch.LongTensor | None = None,
        question_attention_mask: torch.Tensor | None = None,
        evidence_input_ids: torch.LongTensor | None = None,
        evidence_attention_mask: torch.Tensor | None = None,
        evidence_scores: torch.FloatTensor | None = None,
        evidence_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> RavlmCausalLMOutputWithPast:
        r"""
        Args:
            input_ids, attention_mask (`(B, L)`): the prompt with placeholders.
            pixel_values (`(B, 3, height, width)`, *optional*): one image for every row that has placeholders.
            question_input_ids, question_attention_mask (`(B, Lq)`): the question for the text encoder.
            evidence_input_ids, evidence_attention_mask (`(B, K, L)`): the passages for the text encoder.
            evidence_scores (`(B, K)`): retrieval scores; carried for likelihoods over passages, not read here.
            evidence_mask (`(B, K)`): which passages count; `None` means all.
            labels (`(B, L)`, *optional*): aligned with `input_ids`; -100 is ignored.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        image_states = memory = None
        if pixel_values is not None and input_ids is not None:
            image_states = self.get_image_features(pixel_values).pooler_output
            inputs_embeds = fill_placeholders(
                inputs_embeds, input_ids == self.config.image_token_id, image_states, "image"
            )
        if evidence_input_ids is not None and self.fusion.num_memory_tokens and evidence_input_ids.shape[1]:
            given = (evidence_attention_mask, question_input_ids, question_attention_mask)
            if input_ids is None or any(tensor is None for tensor in given):
                raise ValueError(
                    f"fusion={self.config.fusion!r} reads evidence_input_ids together with input_ids, "
                    "evidence_attention_mask, question_input_ids and question_attention_mask, and one of them is "
                    "missing; pass all outputs of RavlmProcessor"
                )
            attention_mask = self.mask_evidence(input_ids, attention_mask, evidence_mask)
            memory = self.get_evidence_features(
                evidence_input_ids, evidence_attention_mask, question_input_ids, question_attention_mask, pixel_values
            )
            inputs_embeds = fill_placeholders(
                inputs_embeds, input_ids == self.config.evidence_token_id, memory, "evidence"
            )
        if (
            position_ids is None
            and past_key_values is None
            and attention_mask is not None
            and attention_mask.dim() == 2
        ):
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        loss = None
        if labels is not None:
            vocab_size = self.config.get_text_config().vocab_size
            loss = self.loss_function(logits=outputs.logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return RavlmCausalLMOutputWithPast(
            loss=loss,
            logits=outputs.logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_states,
            evidence_hidden_states=memory,
        )

    def generate(self, inputs=None, *args, **kwargs):
        """`GenerationMixin.generate`; passages that `evidence_mask` leaves out stay invisible at every step."""
        input_ids = kwargs.get("input_ids", inputs)
        if self.fusion.num_memory_tokens and input_ids is not None and kwargs.get("evidence_mask") is not None:
            kwargs["attention_mask"] = self.mask_evidence(
                input_ids, kwargs.get("attention_mask"), kwargs["evidence_mask"]
            )
        return super().generate(inputs, *args, **kwargs)

    def mask_evidence(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None, evidence_mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """The attention mask `(B, L)` without the placeholders of passages that `evidence_mask (B, K)` leaves out."""
        if (
            evidence_mask is None
            or not evidence_mask.shape[1]
            or (attention_mask is not None and attention_mask.dim() != 2)
        ):
            return attention_mask  # a 4D mask was made by `generate`, from the 2D one that it was given
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        places = input_ids == self.config.evidence_token_id  # (B, L), M of them per passage, in order
        passage = (places.long().cumsum(-1) - 1).clamp(min=0) // self.fusion.num_memory_tokens  # (B, L)
        keep = evidence_mask.bool().gather(1, passage.clamp(max=evidence_mask.shape[1] - 1))
        return attention_mask * (keep | ~places).to(attention_mask.dtype)

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, **kwargs):
        """Evidence is read at the prefill alone; afterwards it lives in the cache."""
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in EVIDENCE_INPUTS:
                inputs.pop(name, None)
        return inputs


EVIDENCE_INPUTS = (
    "question_input_ids",
    "question_attention_mask",
    "evidence_input_ids",
    "evidence_attention_mask",
    "evidence_scores",
    "evidence_mask",
)


def fill_placeholders(
    inputs_embeds: torch.Tensor, places: torch.Tensor, states: torch.Tensor, name: str
) -> torch.Tensor:
    """Puts `states` (any leading shape, width `H`), in order, where `places (B, L)` is true in `inputs_embeds`.

    Raises:
        `ValueError`: if the numbers differ.
    """
    wanted, given = int(places.sum()), states[..., 0].numel()
    if wanted != given:
        raise ValueError(
            f"{name} placeholders and {name} states do not match: input_ids hold {wanted} <{name}> tokens, the inputs "
            f"give {given} states; let RavlmProcessor write the prompt, pass all of its outputs, and see that "
            f"config.{name}_token_id is the id of <{name}> in its tokenizer"
        )
    return inputs_embeds.masked_scatter(places.unsqueeze(-1), states.to(inputs_embeds.dtype))


__all__ = ["RavlmForConditionalGeneration"]
