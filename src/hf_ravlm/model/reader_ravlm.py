"""The reader: a language model that answers a question about an image from the passages it is given.

Image, question and passages are encoded once; the fusion turns them into what the language model sees; the language
model stays what it was, so caches, beam search, adapters and quantization work as they do without us.
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

from .attribution_ravlm import PassageAttribution
from .branches_ravlm import MAX_PADDING, has_plain_layers, read_rows
from .configuration_ravlm import RavlmConfig
from .cross_attention_ravlm import attach_cross_attention
from .fusion_ravlm import FUSIONS
from .marginal_ravlm import PassageLikelihoods
from .modeling_ravlm import RavlmModel, RavlmPreTrainedModel, with_pooled
from .outputs_ravlm import RavlmCausalLMOutputWithPast
from .pooling_ravlm import patch_grid
from .reading_ravlm import (
    ENCODED_INPUTS,
    STATES,
    check_evidence,
    fill_memory,
    fill_placeholders,
    find_places,
    hide_passages,
    passage_columns,
    positions_from,
)


class RavlmForConditionalGeneration(PassageLikelihoods, PassageAttribution, RavlmPreTrainedModel, GenerationMixin):
    """The reader: answers from image, question and evidence.

    `<image>` placeholders in `input_ids` are filled with the projected patches of images. With `fusion="in_context"`
    the passages are text of the prompt; with a fusion that makes memory tokens they fill the `<evidence>`
    placeholders; with `fusion="cross_attention"` layers inside the language model read them. A passage that
    `evidence_mask` leaves out is invisible: no evidence at all gives the closed-book output. [`RavlmProcessor`] writes
    all of these inputs. With `config.marginalization` each passage has a prompt of its own and the answer's likelihood
    is that over latent passages, see [`PassageLikelihoods`].
    """

    def __init__(self, config: RavlmConfig):
        super().__init__(config)
        self.model = RavlmModel(config)
        self.language_model = AutoModelForCausalLM.from_config(config.generator_config)
        self.image_projector = nn.Linear(config.vision_dim, config.get_text_config().hidden_size)
        self.fusion = FUSIONS[config.fusion](config)
        if config.fusion == "cross_attention":
            attach_cross_attention(self.language_model)
        if self.fusion.reads_evidence:  # pictures of passages join the states of their texts
            self.evidence_image_projector = nn.Linear(config.vision_dim, config.text_config.hidden_size)
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
        if self.fusion.num_memory_tokens != 0 and encoded["question_states"] is None:
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

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        token_passages: torch.LongTensor | None = None,
        question_input_ids: torch.LongTensor | None = None,
        question_attention_mask: torch.Tensor | None = None,
        evidence_input_ids: torch.LongTensor | None = None,
        evidence_attention_mask: torch.Tensor | None = None,
        evidence_pixel_values: torch.FloatTensor | None = None,
        evidence_image_mask: torch.Tensor | None = None,
        evidence_scores: torch.FloatTensor | None = None,
        evidence_mask: torch.Tensor | None = None,
        image_patches: torch.FloatTensor | None = None,
        question_states: torch.FloatTensor | None = None,
        question_mask: torch.Tensor | None = None,
        evidence_states: torch.FloatTensor | None = None,
        evidence_token_mask: torch.Tensor | None = None,
        evidence_keys_values: torch.FloatTensor | None = None,
        evidence_patches: torch.FloatTensor | None = None,
        branch_input_ids: torch.LongTensor | None = None,
        branch_attention_mask: torch.Tensor | None = None,
        branch_token_passages: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> RavlmCausalLMOutputWithPast:
        r"""
        Args:
            input_ids, attention_mask (`(B, L)`): the prompt with placeholders; with `config.marginalization` and
                evidence `(B * K, L)`, one prompt per passage.
            pixel_values (`(B, 3, height, width)`, *optional*): one image for every row that has placeholders.
            token_passages (`(B, L)`, *optional*): the passage of every token of the prompt, -1 for none.
            question_input_ids, question_attention_mask (`(B, Lq)`): the question for the text encoder.
            evidence_input_ids, evidence_attention_mask (`(B, K, T)`): the passages for the text encoder.
            evidence_pixel_values (`(B, K, 3, height, width)`), evidence_image_mask (`(B, K)`): their pictures.
            evidence_scores (`(B, K)`): retrieval scores, read where passages are latent.
            evidence_mask (`(B, K)`): which passages count; `None` means all.
            image_patches (`(B, P, C)`), question_states, question_mask, evidence_states (`(B, K, S, C)`),
                evidence_token_mask (`(B, K, S)`), evidence_keys_values, evidence_patches (`(B, K, P, C)`):
                what the towers make of the inputs, instead of these (`encode_inputs`, `encode_evidence`).
            branch_input_ids, branch_attention_mask, branch_token_passages (`(B, K, L)`):
                set by `generate` for RAG-token.
            labels (`(B, L)`, *optional*): aligned with `input_ids`; -100 is ignored.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        given = {
            "pixel_values": pixel_values,
            "question_input_ids": question_input_ids,
            "question_attention_mask": question_attention_mask,
            "evidence_input_ids": evidence_input_ids,
            "evidence_attention_mask": evidence_attention_mask,
            "evidence_pixel_values": evidence_pixel_values,
            "evidence_image_mask": evidence_image_mask,
            "image_patches": image_patches,
            "question_states": question_states,
            "question_mask": question_mask,
            "evidence_states": evidence_states,
            "evidence_token_mask": evidence_token_mask,
            "evidence_keys_values": evidence_keys_values,
            "evidence_patches": evidence_patches,
        }
        latent = self.passages_are_latent(evidence_scores, branch_input_ids)
        if input_ids is not None:
            named = {**given, "evidence_scores": evidence_scores, "evidence_mask": evidence_mask}
            del named["pixel_values"], named["image_patches"]  # rows without a picture may share a batch
            check_evidence(len(input_ids), latent and branch_input_ids is None, named)
        states = self.encode_inputs(**given, evidence_mask=evidence_mask)
        reading = {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "token_passages": token_passages,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
            "evidence_mask": evidence_mask,
            **kwargs,
        }
        if branch_input_ids is not None:
            branches = (branch_input_ids, branch_attention_mask, branch_token_passages)
            return self.read_branches(branches, states, evidence_scores, **reading)
        if latent:
            return self.read_passages(states, evidence_scores, labels, **reading)
        outputs = self.read(states, **reading)
        if labels is not None:
            vocab_size = self.config.get_text_config().vocab_size
            outputs.loss = self.loss_function(logits=outputs.logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return outputs

    def read(
        self,
        states: dict[str, torch.Tensor | None],
        input_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_passages: torch.LongTensor | None = None,
        evidence_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> RavlmCausalLMOutputWithPast:
        """The language model over prompts that see all of their passages; `states` as from `encode_inputs`."""
        image_states = memory = None
        if inputs_embeds is None:
            inputs_embeds, image_states, memory = self.embed_prompt(states, input_ids, token_passages)
            attention_mask = hide_passages(attention_mask, token_passages, evidence_mask)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = positions_from(attention_mask)[:, -inputs_embeds.shape[1] :]
        if self._pads_much(attention_mask, past_key_values, kwargs):
            given = (inputs_embeds, attention_mask, 0, 1, kwargs["logits_to_keep"], past_key_values)
            return RavlmCausalLMOutputWithPast(
                logits=read_rows(self.language_model, *given), past_key_values=past_key_values
            )
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **self.fusion_kwargs(states),
            **{name: value for name, value in kwargs.items() if name != "num_items_in_batch"},
        )
        return RavlmCausalLMOutputWithPast(
            logits=outputs.logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_states,
            evidence_hidden_states=memory,
        )

    def _pads_much(self, attention_mask: torch.Tensor | None, cache: Cache | None, kwargs: dict) -> bool:
        """Whether `generate` begins with prompts of such different lengths that they are better read in groups."""
        return (
            not torch.compiler.is_compiling()
            and not torch.is_grad_enabled()
            and attention_mask is not None
            and attention_mask.dim() == 2
            and isinstance(keep := kwargs.get("logits_to_keep"), int)
            and keep == 1
            and cache is not None
            and has_plain_layers(cache)
            and not cache.get_seq_length()
            and not (self.fusion.reads_evidence and self.fusion.num_memory_tokens == 0)
            and not (kwargs.get("output_hidden_states") or kwargs.get("output_attentions"))
            and bool(attention_mask.float().mean() < 1 - MAX_PADDING)
        )

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
            question = states["question_states"]
            patches = question.new_zeros(len(question), 0, self.config.vision_dim)
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

    def generate(self, inputs=None, *args, **kwargs):
        """`GenerationMixin.generate`, over all passages in one prompt or over latent passages.

        Towers run once, before the first step; passages that `evidence_mask` leaves out stay invisible. With
        `config.marginalization` see `generate_over_passages` for what is generated and the option `decoding`.
        """
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        if self.passages_are_latent(kwargs.get("evidence_scores")):
            return self.generate_over_passages(inputs, *args, **kwargs)
        if inputs is not None:
            kwargs = self.prepare_reading(inputs, **kwargs)
        return super().generate(inputs, *args, **kwargs)

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
        return {**kwargs, **{name: value for name, value in states.items() if value is not None}}

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, **kwargs):
        """States are read at the prefill alone, and then live in the cache; only layers inside the model go on."""
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            kept = ("evidence_keys_values", "evidence_token_mask") if self.fusion.num_memory_tokens == 0 else ()
            for name in (*ENCODED_INPUTS, *STATES, "token_passages"):
                if name not in kept:
                    inputs.pop(name, None)
        return inputs


__all__ = ["RavlmForConditionalGeneration"]
