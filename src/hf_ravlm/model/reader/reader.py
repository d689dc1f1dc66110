"""The reader: a language model that answers a question about an image from the passages it is given.

Image, question and passages are encoded once; the fusion turns them into what the language model sees; the language
model stays what it was, so caches, beam search, adapters and quantization work as they do without us.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from ..backbones import patch_grid, reads_images
from ..configuration_ravlm import RavlmConfig
from ..fusions.cross_attention import attach_cross_attention
from ..fusions.registry import FUSIONS
from ..modeling_ravlm import HEAD_KEYS, RavlmModel, RavlmPreTrainedModel, with_pooled
from ..outputs import RavlmCausalLMOutputWithPast
from .attribution import PassageAttribution
from .generation import ReaderGeneration
from .inputs import InputEncoding
from .latent_passages import PassageLikelihoods
from .multimodal import build_reader, read_multimodal
from .placing import ENCODED_INPUTS, STATES, check_evidence, counts_columns, flush_right, hide_passages, positions_from
from .shared_prefix import MAX_PADDING, has_plain_layers, read_rows


class RavlmForConditionalGeneration(
    InputEncoding, ReaderGeneration, PassageLikelihoods, PassageAttribution, RavlmPreTrainedModel, GenerationMixin
):
    """The reader: answers from image, question and evidence.

    `<image>` placeholders in `input_ids` are filled with the projected patches of images. With `fusion="in_context"`
    the passages are text of the prompt; with a fusion that makes memory tokens they fill the `<evidence>`
    placeholders; with `fusion="cross_attention"` layers inside the language model read them. A passage that
    `evidence_mask` leaves out is invisible: no evidence at all gives the closed-book output. [`RavlmProcessor`] writes
    all of these inputs. With `config.marginalization` each passage has a prompt of its own and the answer's likelihood
    is that over latent passages, see [`PassageLikelihoods`].
    """

    _can_compile_fullgraph = True
    _keys_to_ignore_on_load_unexpected = HEAD_KEYS

    def __init__(self, config: RavlmConfig):
        super().__init__(config)
        self.model = RavlmModel(config)
        self.language_model = build_reader(config)
        self.reads_images = reads_images(config.generator_config)
        self.counts_columns = counts_columns(config.generator_config)
        if not self.reads_images:  # it sees pictures through our tower
            self.image_projector = nn.Linear(config.vision_dim, config.generator_dim)
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
        if self.reads_images:
            return read_multimodal(
                self.language_model,
                input_ids=input_ids,
                pixel_values=pixel_values,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
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
        order = None
        if self.counts_columns and input_ids is not None and past_key_values is None and attention_mask is not None:
            order = flush_right(attention_mask)
            inputs_embeds = inputs_embeds.gather(1, order.unsqueeze(-1).expand_as(inputs_embeds))
            attention_mask, position_ids = attention_mask.gather(1, order), position_ids.gather(1, order)
            kwargs["logits_to_keep"], keep = 0, kwargs.get("logits_to_keep", 0)
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
        logits = outputs.logits
        if order is not None:  # back to the columns that the labels stand in
            logits = logits.gather(1, order.argsort(dim=1).unsqueeze(-1).expand_as(logits))
            logits = logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]
        return RavlmCausalLMOutputWithPast(
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_states,
            evidence_hidden_states=memory,
        )

    def read_states(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_passages: torch.LongTensor | None = None,
        evidence_mask: torch.Tensor | None = None,
        evidence_scores: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """The reader without its head: `last_hidden_state` `(B, L, H)`, which the head turns into logits."""
        inputs = {name: kwargs.pop(name, None) for name in (*ENCODED_INPUTS, *STATES)}
        states = self.encode_inputs(**inputs, evidence_mask=evidence_mask)
        inputs_embeds = self.embed_prompt(states, input_ids, token_passages)[0]
        attention_mask = hide_passages(attention_mask, token_passages, evidence_mask)
        if position_ids is None and attention_mask is not None:
            position_ids = positions_from(attention_mask)
        return self.get_decoder()(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **self.fusion_kwargs(states),
            **kwargs,
        )

    @property
    def base_model(self) -> ReaderBody:
        """The dual encoder that lies in the reader; called, it is the reader without its head."""
        return ReaderBody(self)

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


class ReaderBody:
    """What trainers that bring a head of their own (trl) call instead of the reader; else the dual encoder."""

    def __init__(self, reader: RavlmForConditionalGeneration):
        self.reader = reader

    def __call__(self, *args, **kwargs) -> BaseModelOutputWithPast:
        return self.reader.read_states(*args, **kwargs)

    def __getattr__(self, name: str):
        if name == "reader":  # not there yet, as in a copy under way
            raise AttributeError(name)
        return getattr(self.reader.model, name)


__all__ = ["RavlmForConditionalGeneration"]
