"""The dual encoder that finds passages, and what both models share: loading, saving, initialisation.

Any vision tower gives patch features, as a map `(B, C, h, w)` or as tokens `(B, T, C)`; any text encoder gives token
states. [`RavlmModel`] pools each, projects it to `D` and normalises it; a query or a passage that has image and text
is the normalised weighted sum of the two, so that a search by image, by words or by both is one inner product.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import SAFE_WEIGHTS_NAME, can_return_tuple

from ..errors import InvalidInputError, UnsafeInputError
from ..saving.bounds import check_settings_file
from ..saving.folders import PublishMixin, load_checked
from ..saving.safe_paths import at_home
from .backbones import LOADERS, masked_mean, patch_grid, patch_raster
from .configuration_ravlm import RavlmConfig
from .fusions.registry import init_fusion_weights
from .loading import compute_dtype, remember_origin
from .outputs import RavlmEmbeddingOutput
from .parts.assembling import load_by_reference, read_references
from .parts.looking_once import keep_look, look
from .parts.quantized import sparing_our_parts
from .parts.references import saved_references, split_weights, write_adapters
from .parts.whole_encoder import FULLY_PADDED, HALVES, half_of, pooled, scale_of


MAX_LOGIT_SCALE = math.log(100)
# Weights that other classes of one checkpoint have: each class takes its own and is silent about the rest.
READER_KEYS = [r"^language_model\.", r"^fusion\.", r"^(evidence_)?image_projector\."]
HEAD_KEYS = [r"^joint_encoder\.", r"^match_head\.", r"^mlm_", r"^class_", r"^neighbors\.", r"^answer_head\."]
NOT_OF_THE_NETWORK = ("_name_or_path", "architectures", "dtype", "transformers_version")  # of a config's entries


class RavlmPreTrainedModel(PublishMixin, PreTrainedModel):
    """Loading, saving and initialisation for all models."""

    config_class = RavlmConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = {"CrossReading", "GatedExchange", "PassageReading"}  # beside those of the backbones
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As in transformers; the model also notes its `origin`, for what lies beside it in a repository.

        Raises:
            `UnsafeInputError`: if a file is not as it was saved, see `hf_ravlm.saving.checksums`; `verify=False` loads
                it all the same.
        """
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = sparing_our_parts(kwargs["quantization_config"])
        source, load_plainly = at_home(pretrained_model_name_or_path), super().from_pretrained

        def load(was_finished: bool):
            given = dict(kwargs)
            if given.get("config") is None:
                check_settings_file(source, given.get("subfolder"))
            if was_finished and given.get("config") is not None:  # read before the save was finished
                given["config"] = cls.config_class.from_pretrained(source)
            found = read_references(cls.config_class, source, given)
            if found is None:
                return load_plainly(source, *model_args, **given)
            return load_by_reference(cls, source, *found, LOADERS)

        try:
            loaded = load_checked(source, ("model", "config"), kwargs, load)
        except SafetensorError as error:  # which does not say whose weights they are
            raise UnsafeInputError(
                f"{pretrained_model_name_or_path}: a file of weights (*.safetensors) is damaged and was not loaded "
                f"({error}). Download it again (`force_download=True`), or take it from a copy."
            ) from error
        remember_origin(loaded, kwargs)
        return loaded

    def write_to(self, folder, base, **kwargs):
        """As in `PublishMixin`; by reference, the names of pretrained parts instead of their weights.

        Names in the file are then those in the model: nobody else reads it.
        """
        aside: dict[str, Any] = {"references": self.config.references}
        quantizer = getattr(self, "hf_quantizer", None)
        self.config.references = None
        if quantizer is not None:  # what made the quantized weights out of loaded ones has no way back
            kwargs.setdefault("save_original_format", False)
        try:
            if base == "reference":
                references, own = split_weights(self, kwargs.pop("state_dict", None))
                self.config.references = saved_references(references) or None
                write_adapters(self, folder, references)
                kwargs |= {"state_dict": own, **({"save_original_format": False} if references else {})}
                if quantizer is not None and "generator" in references:  # what is written here is not quantized
                    aside["quantization_config"] = self.config.__dict__.pop("quantization_config", None)
                    self.hf_quantizer = None
                if not own:  # and older weights of this name must not stay
                    save_file({}, os.path.join(folder, SAFE_WEIGHTS_NAME), metadata={"format": "pt"})
            return super().write_to(folder, base, **kwargs)
        finally:
            self.config.__dict__.update(aside)
            if quantizer is not None:
                self.hf_quantizer = quantizer

    def post_init(self) -> None:
        """As in transformers; of the layers that must not be split only those stay that are here, as FSDP asks."""
        super().post_init()
        here = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = set(self._no_split_modules or ()) & here

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RavlmModel):
            if "logit_scale" in module._parameters:
                init.constant_(module.logit_scale, self.config.logit_scale_init)
            init.copy_(module.modality_log_weight, torch.tensor([0.0, math.log(self.config.text_weight_init)]))
        else:
            init_fusion_weights(module, std=self.config.initializer_range)


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

    _keys_to_ignore_on_load_unexpected = [*READER_KEYS, *HEAD_KEYS]

    def __init__(self, config: RavlmConfig):
        if not config.has_towers:
            raise InvalidInputError(
                "this model is a reader without towers, so there is no dual encoder in it: load the encoder that "
                "stands beside it (`hf_ravlm.load_encoder(name)`), and pass it where an encoder is asked for"
            )
        super().__init__(config)
        if config.encoder_config is not None:
            self.encoder = AutoModel.from_config(config.encoder_config)
        else:
            self.vision_tower = AutoModel.from_config(config.vision_config)
            self.text_encoder = AutoModel.from_config(config.text_config)
            self.image_projection = nn.Linear(config.vision_dim * config.pooling_grid**2, config.projection_dim)
            self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.modality_log_weight = nn.Parameter(torch.zeros(2))  # of image and text, before exp
        if config.encoder_config is None or scale_of(self.encoder) is None:
            self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init))
        self.post_init()

    def __getattr__(self, name: str):
        if name in HALVES and "encoder" in self.__dict__.get("_modules", {}):
            return half_of(self.encoder, name)
        return super().__getattr__(name)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_encoder.set_input_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """Resizes the text encoder's vocabulary; it is counted in `config.text_config`, not in the generator's."""
        return self.text_encoder.resize_token_embeddings(*args, **kwargs)

    def get_logit_scale(self) -> torch.Tensor:
        """`1 / temperature`, a learned number from 1 to 100; of an encoder kept whole its own."""
        own = scale_of(self.encoder) if self.config.encoder_config is not None else None
        if own is not None:
            return own
        return self.logit_scale.float().clamp(0, MAX_LOGIT_SCALE).exp()

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keeps the scale that is learned within 1 and 100, in which CLIP, too, was trained; SigLIP was not."""
        whole = self.config.encoder_config
        scale = getattr(self if whole is None else self.encoder, "logit_scale", None)
        if isinstance(scale, nn.Parameter) and (whole is None or whole.model_type not in FULLY_PADDED):
            scale.clamp_(0, MAX_LOGIT_SCALE)

    def get_image_patches(self, pixel_values: torch.Tensor, grid: int) -> torch.Tensor:
        """Patch features on a raster: `(B, 3, height, width)` to `(B, grid * grid, C)`."""
        outputs = look(self.vision_tower, pixel_values.to(compute_dtype(self)))
        return self.patches_of(outputs.last_hidden_state, pixel_values, grid)

    def patches_of(self, states: torch.Tensor, pixel_values: torch.Tensor, grid: int) -> torch.Tensor:
        """Patch features `(B, grid * grid, C)` in what the vision tower put out for images."""
        raster = patch_raster(states.shape[1], pixel_values.shape[-2:], self.config.vision_config)
        return patch_grid(states, grid, raster)

    def get_text_states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token states of the text encoder: `(B, L)` to `(B, L, C)`; zeros where the mask leaves out."""
        states = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask.long()).last_hidden_state
        # A row without a token (a passage that stands for none) may come out as NaN, which no later mask would stop.
        return states.masked_fill(~attention_mask.bool().unsqueeze(-1), 0)

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """The vision tower's output for images `(B, 3, height, width)`; `pooler_output` is unit vectors `(B, D)`."""
        pixel_values = pixel_values.to(compute_dtype(self))
        if self.config.encoder_config is not None:
            outputs = self.encoder.get_image_features(pixel_values, **kwargs)
            keep_look(self, pixel_values, outputs.last_hidden_state)
            return with_pooled(outputs, F.normalize(pooled(outputs).float(), dim=-1))
        outputs = look(self.vision_tower, pixel_values, **kwargs)
        patches = self.patches_of(outputs.last_hidden_state, pixel_values, self.config.pooling_grid)
        vectors = F.normalize(self.image_projection(patches.flatten(1)).float(), dim=-1)
        return with_pooled(outputs, vectors)

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """The text encoder's output for texts `(B, L)`; `pooler_output` is unit vectors `(B, D)`."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask.long()}
        if self.config.encoder_config is not None:
            outputs = self.encoder.get_text_features(**inputs, **kwargs)
            return with_pooled(outputs, F.normalize(pooled(outputs).float(), dim=-1))
        outputs = self.text_encoder(**inputs, **kwargs)
        mean = masked_mean(outputs.last_hidden_state, attention_mask)
        return with_pooled(outputs, F.normalize(self.text_projection(mean).float(), dim=-1))

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
        return self._embed(pixel_values, image_mask, input_ids, attention_mask, text_mask)[0]

    def _embed(
        self, pixel_values, image_mask, input_ids, attention_mask, text_mask, **recorded: bool
    ) -> tuple[torch.Tensor, BaseModelOutputWithPooling | None]:
        """What `get_query_features` returns, and what the text encoder returned, with the states that are wanted."""
        if pixel_values is None and input_ids is None:
            raise ValueError(
                "nothing to embed: expected pixel_values (images), input_ids (texts) or both, got neither"
            )
        check_rows(pixel_values, image_mask, input_ids, text_mask)
        images = None
        if pixel_values is not None:
            images = self.get_image_features(without_absent_images(pixel_values, image_mask)).pooler_output
        texts = None if input_ids is None else self.get_text_features(input_ids, attention_mask, **recorded)
        return self.combine(images, image_mask, None if texts is None else texts.pooler_output, text_mask), texts

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
        whole = self.config.encoder_config is not None
        found = {} if whole else {"pooling_grid": self.config.pooling_grid}
        for name in ("encoder_config",) if whole else ("vision_config", "text_config"):
            settings = getattr(self.config, name).to_dict()
            found[name] = {key: value for key, value in settings.items() if key not in NOT_OF_THE_NETWORK}
        return found

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
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> RavlmEmbeddingOutput:
        r"""
        Scores every query of a batch against every passage.

        Args:
            input_ids, attention_mask, pixel_values, image_mask, text_mask:
                the queries, as in `get_query_features`.
            passage_input_ids, passage_attention_mask, passage_pixel_values, passage_image_mask, passage_text_mask:
                the passages; passage `i` is the positive of query `i`, further ones are hard negatives.
            query_labels (`(B,)` or `(B, R)`), passage_labels (`(N,)` or `(N, R)`), *optional*:
                passages with a label of a query are never its negatives.
            return_loss (`bool`, *optional*): whether to compute InfoNCE.
            output_hidden_states, output_attentions (`bool`, *optional*):
                whether to return those of the text encoder over the queries; `get_image_features` has the images'.
        """
        wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        recorded = {name: value for name, value in wanted.items() if value is not None}
        query_embeds, texts = self._embed(pixel_values, image_mask, input_ids, attention_mask, text_mask, **recorded)
        scale = self.get_logit_scale()
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
            loss=loss,
            query_embeds=query_embeds,
            passage_embeds=passage_embeds,
            scores=scores,
            logit_scale=scale,
            hidden_states=None if texts is None else texts.hidden_states,
            attentions=None if texts is None else texts.attentions,
        )


def info_nce(
    query_embeds: torch.Tensor,
    passage_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    query_labels: torch.Tensor | None = None,
    passage_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """InfoNCE of queries against passages, with passages of the query's own label masked out.

    In plain terms: query `i` shall prefer passage `i` to all others. `L = mean_i [-s_ii + logsumexp_j s_ij]` with
    `s = logit_scale * cosine`; columns `j != i` that carry the query's label are no negatives and are left out.

    Inputs: `query_embeds (B, D)` and `passage_embeds (N, D)` of unit length, `N >= B`, passage `i` positive for query
    `i`, the rest hard negatives; `logit_scale` is `1 / temperature`; labels as in `belong_together`.

    Recommendations: give labels whenever a batch can hold one thing twice; unmasked, such rows have the floor `log 2`.

    Relations: `logit_scale=20` is `temperature=0.05`, the `scale=20` of sentence-transformers.

    References: van den Oord et al. 2018 (arXiv 1807.03748); Radford et al. 2021 (arXiv 2103.00020).

    Example:

    >>> same = torch.eye(2)
    >>> round(info_nce(same, same, 1.0).item(), 4)  # log(1 + exp(-1))
    0.3133
    """
    scores = query_embeds.float() @ passage_embeds.float().mT * logit_scale  # (B, N)
    positives = torch.arange(len(query_embeds), device=scores.device)
    if query_labels is not None and passage_labels is not None:
        same = belong_together(query_labels, passage_labels)
        same[positives, positives] = False
        scores = scores.masked_fill(same, float("-inf"))
    return F.cross_entropy(scores, positives)


def belong_together(query_labels: torch.Tensor, passage_labels: torch.Tensor) -> torch.Tensor:
    """Which passages have a label of a query, bool `(B, N)`.

    Args:
        query_labels (`(B,)` or `(B, R)`), passage_labels (`(N,)` or `(N, R)`):
            whole numbers; of `R` relations (the same entity, the same words) one that is equal is enough.

    >>> queries, passages = torch.tensor([[1, 7], [2, 8]]), torch.tensor([[1, 8], [3, 9]])
    >>> belong_together(queries, passages).tolist()
    [[True, False], [True, False]]
    """
    same = query_labels[:, None] == passage_labels[None, :]
    return same if same.dim() == 2 else same.any(dim=-1)


def with_pooled(outputs, vectors: torch.Tensor) -> BaseModelOutputWithPooling:
    """A tower's output with our pooling in place of its own."""
    return BaseModelOutputWithPooling(
        last_hidden_state=outputs.last_hidden_state,
        pooler_output=vectors,
        hidden_states=outputs.get("hidden_states"),
        attentions=outputs.get("attentions"),
    )


def without_absent_images(pixel_values: torch.Tensor, image_mask: torch.Tensor | None) -> torch.Tensor:
    """Images with zeros in rows that have none: what stands there may be NaN, also in the backward pass."""
    return pixel_values if image_mask is None else pixel_values.masked_fill(~image_mask.bool()[:, None, None, None], 0)


def check_rows(
    pixel_values: torch.Tensor | None,
    image_mask: torch.Tensor | None,
    input_ids: torch.Tensor | None,
    text_mask: torch.Tensor | None,
) -> None:
    """Refuses rows whose masks leave neither image nor text, which no direction could stand for.

    Raises:
        `ValueError`: with their numbers.
    """
    given = [
        (values, mask) for values, mask in ((pixel_values, image_mask), (input_ids, text_mask)) if values is not None
    ]
    if any(mask is None for _, mask in given) or torch.compiler.is_compiling():  # all rows have one of the two
        return
    kept = [mask.bool() for _, mask in given]
    empty = ~torch.stack(kept).any(dim=0)
    if empty.any():
        rows = empty.nonzero().flatten().tolist()
        raise ValueError(
            f"nothing to embed in {len(rows)} of {len(empty)} rows ({rows[:5]}): expected an image, a text or both in "
            "each; leave such rows out"
        )


def _keep_rows(vectors: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return vectors if mask is None else vectors.masked_fill(~mask.bool().unsqueeze(-1), 0)


__all__ = ["RavlmModel", "RavlmPreTrainedModel"]
