"""The reader: a language model that answers a question about an image from the passages it is given.

Image, question and passages are encoded once; the fusion turns them into what the language model sees, which stays
what it was: its caches, beam search, adapters of peft, and weights quantized by bitsandbytes or torchao are its own.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from ..backbones import AUTO_READERS, check_fusion, reader_kind
from ..configuration_ravlm import RavlmConfig
from ..fusions.cross_attention import attach_cross_attention
from ..fusions.registry import FUSIONS
from ..loading import compute_dtype
from ..modeling_ravlm import HEAD_KEYS, RavlmModel, RavlmPreTrainedModel, with_pooled
from ..outputs import RavlmAttribution, RavlmCausalLMOutputWithPast
from ..parts.quantized import unpack_for_training
from .attribution import attribute
from .generation import generate
from .inputs import NAMES, EncodedInputs, check_evidence, check_towers, encode_evidence, encode_inputs, split_inputs
from .latent_passages import passages_are_latent, read_branches, read_passages
from .multimodal import read_multimodal, read_multimodal_states
from .placing import PromptTensors, moves_hidden
from .probe import check_state
from .reading import read, read_states
from .scoring import keeping_activations


class RavlmForConditionalGeneration(RavlmPreTrainedModel, GenerationMixin):
    """The reader: answers from image, question and evidence.

    `<image>` placeholders in `input_ids` are filled with the projected patches of images. With `fusion="in_context"`
    the passages are text of the prompt; with a fusion that makes memory tokens they fill the `<evidence>`
    placeholders; with `fusion="cross_attention"` layers inside the language model read them. A passage that
    `evidence_mask` leaves out is invisible: no evidence at all gives the closed-book output. [`RavlmProcessor`] writes
    all of these inputs. With `config.marginalization` each passage has a prompt of its own and the answer's likelihood
    is that over latent passages. [`from_backbones`] makes a reader out of pretrained models. One without
    towers (`model` is `None`) reads words alone, or sees images by itself.

    Raises:
        `ValueError`: if the generator cannot take the evidence in the way that `config.fusion` gives it.
    """

    _can_compile_fullgraph = True
    _keys_to_ignore_on_load_unexpected = HEAD_KEYS

    def __init__(self, config: RavlmConfig):
        super().__init__(config)
        kind = reader_kind(config.generator_config)
        self.reads_images = kind == "image_text"
        check_fusion(config.generator_config, config.fusion, config.marginalization)
        self.model = RavlmModel(config) if config.has_towers else None
        self.language_model = AUTO_READERS[kind].from_config(config.generator_config)
        check_state(self.language_model, config.marginalization)
        self._is_stateful = self.language_model._is_stateful  # then assisted decoding, which steps back, is refused
        self.counts_columns = moves_hidden(self.language_model)
        if config.has_towers and not self.reads_images:  # it sees images through our tower
            self.image_projector = nn.Linear(config.vision_dim, config.generator_dim)
        self.fusion = FUSIONS[config.fusion](config)
        self.attach_fusion()
        if self.fusion.reads_evidence:  # images of passages join the states of their texts
            self.evidence_image_projector = nn.Linear(config.vision_dim, config.text_config.hidden_size)
        self.post_init()

    def attach_fusion(self) -> None:
        """Puts the layers that read evidence into the language model that is there now, if the fusion has such."""
        if self.config.fusion == "cross_attention":
            attach_cross_attention(self.language_model)

    def train(self, mode: bool = True) -> RavlmForConditionalGeneration:
        if mode and getattr(self, "is_quantized", False):
            unpack_for_training(self.language_model)
        return super().train(mode)

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

    @property
    def base_model(self) -> ReaderBody:
        """The dual encoder that lies in the reader; called, it is the reader without its head."""
        return ReaderBody(self)

    def get_logit_scale(self) -> torch.Tensor:
        """`1 / temperature` of the scores of passages; the config's start value where nothing learns it."""
        if self.model is not None:
            return self.model.get_logit_scale()
        return torch.tensor(math.exp(self.config.logit_scale_init), device=self.device)

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """The vision tower's output for images `(B, 3, h, w)`; `pooler_output` is image tokens, `(B, P, H)`.

        An image-text-to-text generator does it its own way, and takes what its processor returns.
        """
        if self.reads_images:
            return self.language_model.get_image_features(pixel_values, **kwargs)
        check_towers(self, images=True)
        outputs = self.model.vision_tower(pixel_values.to(compute_dtype(self.model)), **kwargs)
        grid = math.isqrt(self.config.num_image_tokens)
        patches = self.model.patches_of(outputs.last_hidden_state, pixel_values, grid)
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
                their images; `P` states of the image stand before those of the text.

        Returns:
            `evidence_states` `(B, K, S, C)` and `evidence_token_mask` `(B, K, S)`, as `forward` takes them, beside
            `evidence_token_ids` and `evidence_alignment`.
        """
        check_towers(self)
        inputs = EncodedInputs(
            evidence_input_ids=evidence_input_ids,
            evidence_attention_mask=evidence_attention_mask,
            evidence_pixel_values=evidence_pixel_values,
            evidence_image_mask=evidence_image_mask,
        )
        return encode_evidence(self, inputs)

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
        prior_scale: torch.FloatTensor | None = None,
        evidence_token_ids: torch.LongTensor | None = None,
        evidence_alignment: torch.LongTensor | None = None,
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
            question_input_ids, question_attention_mask, evidence_input_ids, evidence_attention_mask,
                evidence_pixel_values, evidence_image_mask, evidence_scores, evidence_mask, prior_scale,
                evidence_token_ids, evidence_alignment, image_patches, question_states, question_mask,
                evidence_states, evidence_token_mask, evidence_keys_values, evidence_patches:
                as in [`EncodedInputs`]; `evidence_mask=None` means that all passages count.
            branch_input_ids, branch_attention_mask, branch_token_passages (`(B, K, L)`):
                set by `generate` for RAG-token.
            labels (`(B, L)`, *optional*): aligned with `input_ids`; -100 is ignored.

        Raises:
            `ValueError`: if inputs are missing or do not fit together.
        """
        reading = {"position_ids": position_ids, "inputs_embeds": inputs_embeds, "past_key_values": past_key_values}
        reading |= {"use_cache": use_cache, "logits_to_keep": logits_to_keep, **kwargs}
        if self.reads_images:
            asked = {"input_ids": input_ids, "pixel_values": pixel_values, "attention_mask": attention_mask}
            asked |= {"token_passages": token_passages, "evidence_mask": evidence_mask}
            asked |= {"evidence_image_mask": evidence_image_mask, "labels": labels}
            return read_multimodal(self, **asked, **reading)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        batch = EncodedInputs(
            pixel_values=pixel_values,
            question_input_ids=question_input_ids,
            question_attention_mask=question_attention_mask,
            evidence_input_ids=evidence_input_ids,
            evidence_attention_mask=evidence_attention_mask,
            evidence_pixel_values=evidence_pixel_values,
            evidence_image_mask=evidence_image_mask,
            evidence_scores=evidence_scores,
            evidence_mask=evidence_mask,
            prior_scale=prior_scale,
            evidence_token_ids=evidence_token_ids,
            evidence_alignment=evidence_alignment,
            image_patches=image_patches,
            question_states=question_states,
            question_mask=question_mask,
            evidence_states=evidence_states,
            evidence_token_mask=evidence_token_mask,
            evidence_keys_values=evidence_keys_values,
            evidence_patches=evidence_patches,
        )
        prompt = PromptTensors(input_ids, attention_mask, token_passages)
        latent = branch_input_ids is None and passages_are_latent(self.config, evidence_scores)
        check_evidence(batch, len(input_ids if inputs_embeds is None else inputs_embeds), latent)
        batch = encode_inputs(self, batch)
        if branch_input_ids is not None:
            branches = (branch_input_ids, branch_attention_mask, branch_token_passages)
            prompt = PromptTensors(*(tensor.flatten(0, 1) for tensor in branches))
            return read_branches(self, batch, prompt, input_ids, past_key_values, logits_to_keep, use_cache)
        if latent:
            return read_passages(self, batch, prompt, labels, **reading)
        reading.pop("num_items_in_batch", None)
        outputs = read(self, batch, prompt, **reading)
        if labels is not None:
            vocab_size = self.config.get_text_config().vocab_size
            outputs.loss = self.loss_function(logits=outputs.logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return outputs

    def generate(self, inputs=None, *args, **kwargs):
        """`GenerationMixin.generate`, over all passages in one prompt or over latent passages.

        Towers run once, before the first step; passages that `evidence_mask` leaves out stay invisible. With
        `config.marginalization` see `generate_over_passages` for what is generated and the option `decoding`.
        """
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        with keeping_activations(self):
            return generate(self, input_ids, *args, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, is_first_iteration=False, **kwargs):
        """States are read at the prefill alone, and then live in the cache; only layers inside the model go on."""
        prepared = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        cache, ids = prepared.get("past_key_values"), prepared.get("input_ids")
        prefill = is_first_iteration
        if prefill and ids is not None and cache is not None and cache.get_seq_length():
            # An earlier call's cache may hold all places that states fill.
            marks = torch.tensor([self.config.image_token_id, self.config.evidence_token_id], device=ids.device)
            prefill = bool(torch.isin(ids, marks).any())
        if not prefill and kwargs.get("use_cache", True):
            kept = {"evidence_scores", "evidence_mask", "prior_scale"}
            if self.fusion.num_memory_tokens == 0:
                kept |= {"evidence_keys_values", "evidence_token_mask"}
            for name in {"token_passages", *NAMES} - kept:
                prepared.pop(name, None)
        return prepared

    def attribute(
        self,
        input_ids: torch.LongTensor,
        labels: torch.LongTensor,
        evidence_scores: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        token_passages: torch.LongTensor | None = None,
        with_leave_one_out: bool = True,
        prior_scale: float | None = None,
        **inputs: torch.Tensor | None,
    ) -> RavlmAttribution:
        """Which passage an answer rests on: one in `input_ids` and `labels`.

        Args: as of `forward`, which `processor(images, text, evidence, answers=...)` returns, and:
            with_leave_one_out (`bool`): whether to find out what is lost without each passage, too. It costs as much
                as reading all passages `K` times; without it there is no `log_likelihood` either, but for readers
                over latent passages, where both cost nothing.
            prior_scale (`float`, *optional*): `1 / temperature` of what gave `evidence_scores`; by default that of
                the reader's own towers, and 1 for a reader without towers.

        Returns:
            [`RavlmAttribution`], in which a passage that `evidence_mask` leaves out has posterior and loss 0.

        Raises:
            `ValueError`: for an image-text-to-text reader, which `attribute_prompts` is for.
        """
        batch = EncodedInputs(evidence_scores=evidence_scores, **inputs)
        prompt = PromptTensors(input_ids, attention_mask, token_passages)
        return attribute(self, batch, prompt, labels, with_leave_one_out, prior_scale)


class ReaderBody:
    """What trainers that bring a head of their own (trl) call instead of the reader; else its dual encoder."""

    def __init__(self, reader: RavlmForConditionalGeneration):
        self.reader = reader

    def __call__(self, input_ids, attention_mask=None, token_passages=None, **kwargs) -> BaseModelOutputWithPast:
        if self.reader.reads_images:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_passages": token_passages}
            return read_multimodal_states(self.reader, **given, **kwargs)
        batch, rest = split_inputs(kwargs)
        prompt = PromptTensors(input_ids, attention_mask, token_passages)
        return read_states(self.reader, encode_inputs(self.reader, batch), prompt, **rest)

    def __getattr__(self, name: str):
        if name == "reader":  # not there yet, as in a copy under way
            raise AttributeError(name)
        return getattr(self.reader.language_model if self.reader.model is None else self.reader.model, name)


__all__ = ["RavlmForConditionalGeneration"]
