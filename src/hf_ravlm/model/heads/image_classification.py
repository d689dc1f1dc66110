"""A classifier on the dual encoder: what its own head says of an image, joined with the labels of its neighbours."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import can_return_tuple

from ...errors import InvalidInputError
from ..configuration_ravlm import RavlmConfig
from ..loading import initialize_new
from ..modeling_ravlm import HEAD_KEYS, READER_KEYS, RavlmModel, RavlmPreTrainedModel
from .neighbors import NeighborJoin, init_neighbor_join


if TYPE_CHECKING:
    from ..processing_ravlm import RavlmProcessor

CLASS_PROMPT = "a photo of a {}."
NUM_NEIGHBORS = 16
_TEXTS_AT_ONCE = 256


@dataclass
class RavlmImageClassifierOutput(ImageClassifierOutput):
    """What [`RavlmForImageClassification`] returns: an `ImageClassifierOutput`, and what it was made of.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): present when `labels` are given.
        logits (`torch.FloatTensor` of shape `(B, C)`): scores of the classes before the softmax.
        hidden_states, attentions (`tuple`, *optional*): of the vision tower, when asked for.
        class_logits (`torch.FloatTensor` of shape `(B, C)`): what the head alone says.
        image_embeds (`torch.FloatTensor` of shape `(B, D)`): unit vectors of the images, to search neighbours with.
    """

    class_logits: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None


class ClassHead(nn.Module):
    """Cosines of vectors with one row of `W` per class, times a learned scale."""

    def __init__(self, num_labels: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_labels, dim))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, embeds: torch.Tensor, new_class_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """Scores `(B, C)` of vectors `(B, D)`; `(B, C + N)` with rows `(N, D)` for new classes."""
        weight = self.weight.float()
        if new_class_embeds is not None:
            weight = torch.cat([F.normalize(weight, dim=-1), new_class_embeds.to(weight)])
        return self.log_scale.float().exp() * embeds.float() @ F.normalize(weight, dim=-1).mT


class RavlmForImageClassification(RavlmPreTrainedModel):
    """Says of which class an image is: `logits = scale · f·W + α · Σ_k n_k^-γ · exp(-β (1 - s_k)) · onehot(label_k)`.

    `f` is the unit vector of the image and `W` one unit vector per class: of the class's name (zero-shot), the mean of
    its images, or learned. The sum goes over the `K` labelled images nearest to this one in an index, which others
    find (`pipeline("image-classification")`); see `hf_ravlm.model.heads.neighbors`. A class that came to the index
    after the head was made gets its row of `W` in the call (`new_class_embeds`).

    Example:

    >>> import torch
    >>> from hf_ravlm import RavlmConfig, RavlmForImageClassification
    >>> tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    >>> config = RavlmConfig(
    ...     vision_config={"model_type": "vit", "image_size": 8, "patch_size": 4, **tiny},
    ...     text_config={"model_type": "bert", "vocab_size": 50, **tiny},
    ...     projection_dim=8, id2label={0: "robin", 1: "wren", 2: "swan"},
    ... )
    >>> model = RavlmForImageClassification(config).eval()
    >>> neighbors = {"neighbor_scores": torch.tensor([[0.9, 0.7]]), "neighbor_labels": torch.tensor([[1, 1]])}
    >>> outputs = model(pixel_values=torch.zeros(1, 3, 8, 8), **neighbors)
    >>> ((outputs.logits - outputs.class_logits) > 0).tolist()
    [[False, True, False]]
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    _keys_to_ignore_on_load_unexpected = [*READER_KEYS, *HEAD_KEYS]

    def __init__(self, config: RavlmConfig):
        super().__init__(config)
        self.model = RavlmModel(config)
        self.class_head = ClassHead(config.num_labels, config.projection_dim)
        self.neighbors = NeighborJoin()
        self.post_init()

    @classmethod
    def from_dual_encoder(
        cls,
        model: RavlmModel,
        labels: Sequence[str],
        processor: RavlmProcessor | None = None,
        class_embeds: torch.Tensor | None = None,
        class_prompt: str = CLASS_PROMPT,
        num_neighbors: int = NUM_NEIGHBORS,
    ) -> RavlmForImageClassification:
        """Puts a classifier on a dual encoder, which stays the same object.

        Args:
            model ([`RavlmModel`]): of `from_encoder("google/siglip2-base-patch16-224")`, or the `model` of a reader.
            labels (`list[str]`): the names of the classes.
            processor ([`RavlmProcessor`], *optional*): with it, `W` is made of the names (zero-shot).
            class_embeds (`torch.Tensor` of shape `(C, D)`, *optional*):
                `W` itself, such as the means of the classes' images (`retriever.labels().means`). With neither, `W` is
                random, for training.
            class_prompt (`str`, *optional*): the words around a name.
            num_neighbors (`int`, *optional*): `K`, kept as `config.num_passages`.

        Raises:
            `InvalidInputError`: if there is no label, one occurs twice, or `class_embeds` do not fit.

        Example:

        >>> dual, processor = from_encoder("openai/clip-vit-base-patch32")  # doctest: +SKIP
        >>> RavlmForImageClassification.from_dual_encoder(dual, ["robin", "wren"], processor)  # doctest: +SKIP
        """
        names = check_labels(labels)
        if not isinstance(model, RavlmModel):
            raise InvalidInputError(
                f"a {type(model).__name__} came: expected a RavlmModel, of `from_encoder(name)` or a reader's `.model`"
            )
        if class_embeds is not None and tuple(class_embeds.shape) != (len(names), model.config.projection_dim):
            raise InvalidInputError(
                f"class_embeds of shape {tuple(class_embeds.shape)} came with {len(names)} labels: expected "
                f"({len(names)}, {model.config.projection_dim}), one row per label"
            )
        config = copy.deepcopy(model.config)
        config.id2label, config.label2id = dict(enumerate(names)), {name: id for id, name in enumerate(names)}
        config.num_passages, config.architectures, config.name_or_path = num_neighbors, [cls.__name__], ""
        config.class_prompt = class_prompt if processor is not None and class_embeds is None else None
        if config.class_prompt is not None and "{}" not in class_prompt:
            raise InvalidInputError(f"class_prompt={class_prompt!r}: expected '{{}}' in the place of a class's name")
        with torch.device("meta"):  # so that the towers are not made a second time
            head = cls(config)
        head.model = model
        initialize_new(head, [model], model.device, model.dtype)
        if config.class_prompt is not None:
            class_embeds = head.embeds_of_names(names, processor)
        with torch.no_grad():
            head.class_head.log_scale.copy_(model.get_logit_scale().log())
            if class_embeds is not None:
                head.class_head.weight.copy_(class_embeds)
        return head.train(model.training)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_neighbor_join(module)
        if isinstance(module, ClassHead):
            init.normal_(module.weight, std=self.config.initializer_range)
            init.constant_(module.log_scale, self.config.logit_scale_init)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    @torch.no_grad()
    def embeds_of_names(self, names: Sequence[str], processor: RavlmProcessor) -> torch.Tensor:
        """Unit vectors `(C, D)` of the classes' names, each within `config.class_prompt`."""
        texts = [self.config.class_prompt.replace("{}", name) for name in names]
        found = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            inputs = processor.for_retrieval(texts=texts[start : start + _TEXTS_AT_ONCE])
            ids, mask = (inputs[name].to(self.device) for name in ("input_ids", "attention_mask"))
            found.append(self.model.get_text_features(ids, mask).pooler_output)
        return torch.cat(found)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        neighbor_scores: torch.FloatTensor | None = None,
        neighbor_labels: torch.LongTensor | None = None,
        neighbor_counts: torch.Tensor | None = None,
        new_class_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> RavlmImageClassifierOutput:
        r"""
        Scores of the classes, with neighbours where they are given.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, height, width)`, *optional*): the images.
            image_embeds (`torch.FloatTensor` of shape `(B, D)`, *optional*): unit vectors in the place of images.
            neighbor_scores (`torch.FloatTensor` of shape `(B, K)`, *optional*): cosines of the entries found.
            neighbor_labels (`torch.LongTensor` of shape `(B, K)`, *optional*): their classes; -100 for no entry.
            neighbor_counts (`torch.Tensor` of shape `(B, K)`, *optional*): how many entries each such class has.
            new_class_embeds (`torch.FloatTensor` of shape `(N, D)`, *optional*):
                rows of `W` for classes that the head has not; they are the classes `C` to `C + N - 1`.
            labels (`torch.Tensor`, *optional*): `(B,)` the right classes, or what `config.problem_type` says.
        """
        images = None
        if image_embeds is None:
            if pixel_values is None:
                raise ValueError("nothing to classify: expected pixel_values (images) or image_embeds, got neither")
            kept = ("output_hidden_states", "output_attentions")
            recorded = {name: kwargs.pop(name) for name in kept if kwargs.get(name) is not None}
            images = self.model.get_image_features(pixel_values, return_dict=True, **recorded)
            image_embeds = images.pooler_output
        logits = class_logits = self.class_head(image_embeds, new_class_embeds)  # (B, C)
        if (neighbor_scores is None) != (neighbor_labels is None):
            raise ValueError("neighbours came in half: expected neighbor_scores and neighbor_labels, or neither")
        if neighbor_scores is not None:
            logits = self.neighbors(class_logits, neighbor_scores, neighbor_labels, neighbor_counts)
        loss = None
        if labels is not None:
            items = {name: kwargs[name] for name in ("num_items_in_batch",) if name in kwargs}
            loss = self.loss_function(labels, logits[:, : self.config.num_labels], self.config, **items)
        return RavlmImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=None if images is None else images.hidden_states,
            attentions=None if images is None else images.attentions,
            class_logits=class_logits,
            image_embeds=image_embeds,
        )


def check_labels(labels: Sequence[str]) -> list[str]:
    """The names of classes.

    Raises:
        `InvalidInputError`: if there is none, one is no text, or one occurs twice.

    >>> check_labels(["wren", "wren"])
    Traceback (most recent call last):
    hf_ravlm.errors.InvalidInputError: the label 'wren' occurs twice: expected the names of the classes, each once
    """
    names = [labels] if isinstance(labels, str) else list(labels)
    if not names:
        raise InvalidInputError("no labels came: expected the names of the classes")
    if wrong := [name for name in names if not isinstance(name, str) or not name.strip()]:
        raise InvalidInputError(f"the label {wrong[0]!r} is no name: expected texts, each the name of a class")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"the label {twice!r} occurs twice: expected the names of the classes, each once")
    return names


__all__ = ["RavlmForImageClassification", "RavlmImageClassifierOutput"]
