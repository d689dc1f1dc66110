"""The network: the dual encoder that finds passages and the reader that answers with them. One checkpoint holds both.

Any vision tower gives patch features, as a map `(B, C, h, w)` or as tokens `(B, T, C)`; any text encoder gives token
states. [`RavlmModel`] pools each, projects it to `D` and normalises it; a query or a passage that has picture and text
is the normalised weighted sum of the two, so that a search by picture, by words or by both is one inner product.
[`RavlmForConditionalGeneration`] adds a language model, puts image tokens (and, with a fusion, memory tokens of the
passages) in the places of the placeholders, and is from there on an ordinary causal language model: caches, beams,
sampling and adapters work as everywhere. It does not know how the passages were found.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .configuration_ravlm import RavlmConfig
from .fusion_ravlm import FUSIONS, GatedFusion, NullAttend
from .objectives_ravlm import info_nce
from .outputs_ravlm import RavlmCausalLMOutputWithPast, RavlmEmbeddingOutput
from .pooling_ravlm import masked_mean, patch_grid
from .publishing_ravlm import PublishMixin


MAX_LOGIT_SCALE = math.log(100)
NOT_OF_THE_NETWORK = ("_name_or_path", "architectures", "dtype", "transformers_version")  # of a config's entries


class RavlmPreTrainedModel(PublishMixin, PreTrainedModel):
    """Loading, saving and initialisation for both models."""

    config_class = RavlmConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RavlmModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init)
            init.copy_(module.modality_log_weight, torch.tensor([0.0, math.log(self.config.text_weight_init)]))
        elif isinstance(module, GatedFusion):
            init.normal_(module.memory_queries, std=self.config.initializer_range)
        elif isinstance(module, NullAttend):
            init.zeros_(module.null_key_value)


class RavlmModel(RavlmPreTrainedModel):
    """Dual encoder: images, texts and both together to unit vectors of width `D` in one space.

    Example:

    >>> import torch
    >>> from hf_ravlm import RavlmConfig, RavlmModel
    >>> tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    >>> config = RavlmConfig(
    ...     vision_config={"model_type": "vit", "image_size": 8, "patch_size": 4, **tiny},
    ...     text_config={"model_type": "bert", "vocab_size": 50, **tiny},
    ...     generator_config={"model_type": "llama", "vocab_size": 50, **tiny}, projection_dim=8,
    ... )
    >>> model = RavlmModel(config).eval()
    >>> model.get_query_features(pixel_values=torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 8])
    """

    _keys_to_ignore_on_load_unexpected = [r"^language_model\.", r"^fusion\.", r"^image_projector\."]

    def __init__(self, config: RavlmConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.text_encoder = AutoModel.from_config(config.text_config)
        self.image_projection = nn.Linear(config.vision_dim * config.pooling_grid**2, config.projection_dim)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.modality_log_weight = nn.Parameter(torch.zeros(2))  # of image and text, before exp
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_encoder.set_input_embeddings(value)

    def get_image_patches(self, pixel_values: torch.Tensor, grid: int) -> torch.Tensor:
        """Patch features on a raster: `(B, 3, height, width)` to `(B, grid * grid, C)`."""
        outputs = self.vision_tower(pixel_values.to(self.image_projection.weight.dtype))
        return patch_grid(outputs.last_hidden_state, grid)

    def get_text_states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token states of the text encoder: `(B, L)` to `(B, L, C)`."""
        return self.text_encoder(input_ids=input_ids, attention_mask=attention_mask.long()).last_hidden_state

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """The vision tower's output for images `(B, 3, height, width)`; `pooler_output` is unit vectors `(B, D)`."""
        outputs = self.vision_tower(pixel_values.to(self.image_projection.weight.dtype), **kwargs)
        patches = patch_grid(outputs.last_hidden_state, self.config.pooling_grid)  # (B, grid * grid, C)
        pooled = F.normalize(self.image_projection(patches.flatten(1)).float(), dim=-1)
        return _with_pooled(outputs, pooled)

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """The text encoder's output for texts `(B, L)`; `pooler_output` is unit vectors `(B, D)`."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        outputs = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask.long(), **kwargs)
        pooled = masked_mean(outputs.last_hidden_state, attention_mask)
        return _with_pooled(outputs, F.normalize(self.text_projection(pooled).float(), dim=-1))

    def get_query_features(
        self,
        pixel_values: torch.Tensor | None = None,
        image_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Unit vectors `(B, D)` of queries: images, texts, or both.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, height, width)`, *optional*): images.
            image_mask (`torch.BoolTensor` of shape `(B,)`, *optional*): rows that have an image; `None` means all.
            input_ids, attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): texts of the text tokenizer.
            text_mask (`torch.BoolTensor` of shape `(B,)`, *optional*): rows that have a text; `None` means all.

        Raises:
            `ValueError`: if neither images nor texts are given.
        """
        if pixel_values is None and input_ids is None:
            raise ValueError(
                "nothing to embed: expected pixel_values (images), input_ids (texts) or both, got neither"
            )
        images = texts = None
        if pixel_values is not None:
            images = self.get_image_features(pixel_values).pooler_output
        if input_ids is not None:
            texts = self.get_text_features(input_ids, attention_mask).pooler_output
        return self.combine(images, image_mask, texts, text_mask)

    def combine(
        self,
        image_embeds: torch.Tensor | None = None,
        image_mask: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The normalised weighted sum `(B, D)` of image and text vectors `(B, D)`, each where its mask keeps it.

        Where the two modalities are orthogonal, the inner product of two such vectors is the weighted mean of the
        images' cosine and the texts' cosine.
        """
        image_weight, text_weight = self.modality_log_weight.float().exp()
        total = 0.0
        if image_embeds is not None:
            total = total + image_weight * _keep_rows(image_embeds, image_mask)
        if text_embeds is not None:
            total = total + text_weight * _keep_rows(text_embeds, text_mask)
        return F.normalize(total, dim=-1)

    def get_passage_features(self, **inputs: torch.Tensor | None) -> torch.Tensor:
        """Unit vectors `(N, D)` of passages; the same arguments and the same space as `get_query_features`."""
        return self.get_query_features(**inputs)

    def retrieval_fingerprint(self) -> dict:
        """What, beside the weights, decides an embedding: the towers' settings and the pooling."""
        towers = {}
        for name in ("vision_config", "text_config"):
            settings = getattr(self.config, name).to_dict()
            towers[name] = {key: value for key, value in settings.items() if key not in NOT_OF_THE_NETWORK}
        return {"pooling_grid": self.config.pooling_grid, **towers}

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_mask: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        passage_input_ids: torch.LongTensor | None = None,
        passage_attention_mask: torch.Tensor | None = None,
        passage_pixel_values: torch.FloatTensor | None = None,
        passage_image_mask: torch.Tensor | None = None,
        passage_text_mask: torch.Tensor | None = None,
        query_labels: torch.LongTensor | None = None,
        passage_labels: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        **kwargs,
    ) -> RavlmEmbeddingOutput:
        r"""
        Scores every query of a batch against every passage.

        Args:
            input_ids, attention_mask, pixel_values, image_mask, text_mask:
                the queries, as in `get_query_features`.
            passage_input_ids, passage_attention_mask, passage_pixel_values, passage_image_mask, passage_text_mask:
                the passages; passage `i` is the positive of query `i`, further ones are hard negatives.
            query_labels (`(B,)`), passage_labels (`(N,)`), *optional*:
                passages with the label of a query are never its negatives.
            return_loss (`bool`, *optional*): whether to compute InfoNCE.
        """
        query_embeds = self.get_query_features(pixel_values, image_mask, input_ids, attention_mask, text_mask)
        scale = self.logit_scale.float().clamp(0, MAX_LOGIT_SCALE).exp()
        passage_embeds = scores = loss = None
        if passage_input_ids is not None or passage_pixel_values is not None:
            passage_embeds = self.get_passage_features(
                pixel_values=passage_pixel_values,
                image_mask=passage_image_mask,
                input_ids=passage_input_ids,
                attention_mask=passage_attention_mask,
                text_mask=passage_text_mask,
            )
            scores = query_embeds @ passage_embeds.mT  # (B, N)
            if return_loss:
                loss = info_nce(query_embeds, passage_embeds, scale, query_labels, passage_labels)
        return RavlmEmbeddingOutput(
            loss=loss, query_embeds=query_embeds, passage_embeds=passage_embeds, scores=scores, logit_scale=scale
        )


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
        return _with_pooled(outputs, self.image_projector(patches))

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

    def generate(self, inputs=None, **kwargs):
        """`GenerationMixin.generate`; passages that `evidence_mask` leaves out stay invisible at every step."""
        input_ids = kwargs.get("input_ids", inputs)
        if self.fusion.num_memory_tokens and kwargs.get("evidence_mask") is not None:
            kwargs["attention_mask"] = self.mask_evidence(
                input_ids, kwargs.get("attention_mask"), kwargs["evidence_mask"]
            )
        return super().generate(inputs, **kwargs)

    def mask_evidence(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None, evidence_mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """The attention mask `(B, L)` without the placeholders of passages that `evidence_mask (B, K)` leaves out."""
        if evidence_mask is None or (attention_mask is not None and attention_mask.dim() != 2):
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
            f"give {given} states; let RavlmProcessor write the prompt, and pass all of its outputs"
        )
    return inputs_embeds.masked_scatter(places.unsqueeze(-1), states.to(inputs_embeds.dtype))


def _with_pooled(outputs, pooled: torch.Tensor) -> BaseModelOutputWithPooling:
    """A tower's output with our pooling in place of its own."""
    return BaseModelOutputWithPooling(
        last_hidden_state=outputs.last_hidden_state,
        pooler_output=pooled,
        hidden_states=outputs.get("hidden_states"),
        attentions=outputs.get("attentions"),
    )


def _keep_rows(vectors: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return vectors if mask is None else vectors * mask.to(vectors.dtype).unsqueeze(-1)


__all__ = ["RavlmForConditionalGeneration", "RavlmModel", "RavlmPreTrainedModel"]
