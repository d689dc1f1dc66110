"""Heads on the dual encoder: does this passage belong to this query, and which word is hidden in it.

Both read the states of the two towers together ([`JointEncoder`]). Which rows are compared as pairs is an input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from ..configuration_ravlm import RavlmConfig
from ..loading import initialize_new
from ..modeling_ravlm import READER_KEYS, RavlmModel, RavlmPreTrainedModel, check_rows, info_nce, without_absent_images
from ..outputs import RavlmEmbeddingOutput
from .joint_encoder import JointEncoder, SideStates, init_joint_weights


SIDE = ("pixel_values", "image_mask", "input_ids", "attention_mask", "text_mask")  # what a query or a passage is


@dataclass
class RavlmMatchingOutput(RavlmEmbeddingOutput):
    """What [`RavlmForImageTextRetrieval`] and [`RavlmForPreTraining`] return: that of the dual encoder, and more.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            the sum of InfoNCE, of the matching loss where `match_labels` are given, and of the masked words where
            `mlm_labels` are given; present when `return_loss=True`.
        match_logits (`torch.FloatTensor` of shape `(n,)`, *optional*): log-odds that a pair belongs together.
        mlm_logits (`torch.FloatTensor` of shape `(m, V)`, *optional*): scores at the `m` masked places, row by row.
    """

    match_logits: torch.FloatTensor | None = None
    mlm_logits: torch.FloatTensor | None = None


class RavlmForImageTextRetrieval(RavlmPreTrainedModel):
    """The dual encoder with a second look: a joint encoder says how surely a query and a passage belong together.

    The towers find candidates, `match_logits` orders them anew. Each may have image, text or both.

    Example:

    >>> import torch
    >>> from hf_ravlm import RavlmConfig
    >>> from hf_ravlm.model.heads.matching import RavlmForImageTextRetrieval
    >>> tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    >>> config = RavlmConfig(
    ...     vision_config={"model_type": "vit", "image_size": 8, "patch_size": 4, **tiny},
    ...     text_config={"model_type": "bert", "vocab_size": 50, **tiny},
    ...     generator_config={"model_type": "llama", "vocab_size": 50, **tiny}, projection_dim=8,
    ... )
    >>> model = RavlmForImageTextRetrieval(config).eval()
    >>> texts = torch.ones(2, 5, dtype=torch.long)
    >>> outputs = model(pixel_values=torch.zeros(2, 3, 8, 8), passage_input_ids=texts)
    >>> outputs.scores.shape, outputs.match_logits.shape
    (torch.Size([2, 2]), torch.Size([2]))
    """

    _keys_to_ignore_on_load_unexpected = [*READER_KEYS, r"^mlm_"]

    def __init__(self, config: RavlmConfig):
        super().__init__(config)
        self.model = RavlmModel(config)
        self.joint_encoder = JointEncoder(config)
        self.match_head = nn.Linear(config.text_config.hidden_size, 1)
        self.post_init()

    @classmethod
    def from_dual_encoder(cls, model: RavlmModel) -> RavlmForImageTextRetrieval:
        """Puts new heads on a dual encoder, which stays the same object: training the one trains the other.

        Args:
            model ([`RavlmModel`]): for instance the `model` of a reader.

        Example:

        >>> head = RavlmForPreTraining.from_dual_encoder(reader.model)  # doctest: +SKIP
        """
        with torch.device("meta"):  # so that the towers are not made a second time
            head = cls(model.config)
        head.model = model
        initialize_new(head, [model], model.device, model.dtype)
        return head.train(model.training)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_joint_weights(module, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def read_side(
        self,
        pixel_values: torch.Tensor | None = None,
        image_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
    ) -> SideStates:
        """Embeddings and states of queries or passages; arguments and errors of `RavlmModel.get_query_features`."""
        given = input_ids if pixel_values is None else pixel_values
        if given is None:
            raise ValueError("nothing to read: expected pixel_values (images), input_ids (texts) or both, got neither")
        check_rows(pixel_values, image_mask, input_ids, text_mask)
        images = texts = None
        weight = self.joint_encoder.image_input.weight
        states = weight.new_zeros(len(given), 0, self.config.text_config.hidden_size)
        patches = weight.new_zeros(len(given), 0, self.config.vision_dim)
        mask = torch.ones(len(given), 0, dtype=torch.bool, device=given.device)
        patch_mask = mask
        if pixel_values is not None:
            pixel_values = without_absent_images(pixel_values, image_mask)
            outputs = self.model.get_image_features(pixel_values, return_dict=True)
            images, patches = outputs.pooler_output, as_tokens(outputs.last_hidden_state)
            patch_mask = kept_rows(patches, image_mask)
        if input_ids is not None:
            attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            outputs = self.model.get_text_features(input_ids, attention_mask, return_dict=True)
            mask = attention_mask.bool() & kept_rows(input_ids, text_mask)
            texts, states = outputs.pooler_output, outputs.last_hidden_state.masked_fill(~mask.unsqueeze(-1), 0)
        embeds = self.model.combine(images, image_mask, texts, text_mask)
        return SideStates(embeds, states, mask, patches, patch_mask)

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
        match_queries: torch.LongTensor | None = None,
        match_passages: torch.LongTensor | None = None,
        match_labels: torch.Tensor | None = None,
        match_inputs: dict[str, torch.Tensor] | None = None,
        masked_passage_input_ids: torch.LongTensor | None = None,
        mlm_labels: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        **kwargs,
    ) -> RavlmMatchingOutput:
        r"""
        Compares every query with every passage by the towers, and pairs of them by the joint encoder.

        Args:
            input_ids, ..., passage_labels: as in `RavlmModel.forward`.
            match_queries, match_passages (`torch.LongTensor` of shape `(n,)`, *optional*):
                rows of the pairs that are read together; by default query `i` with passage `i`.
            match_labels (`torch.Tensor` of shape `(n,)`, *optional*): 1 where the two belong together, else 0.
            match_inputs (`dict`, *optional*):
                further queries and passages, under the same names, which are compared in pairs only; their rows count
                on from `B` and `N`.
            masked_passage_input_ids, mlm_labels (`torch.LongTensor` of shape `(n, L)`, *optional*):
                the first `n` passages with words hidden, and the ids of these words, -100 elsewhere; only for
                [`RavlmForPreTraining`].
            return_loss (`bool`, *optional*): whether to compute the loss.
        """
        queries = self.read_side(pixel_values, image_mask, input_ids, attention_mask, text_mask)
        passages = self.read_side(
            passage_pixel_values, passage_image_mask, passage_input_ids, passage_attention_mask, passage_text_mask
        )
        parts = {
            "query_embeds": queries.embeds,
            "passage_embeds": passages.embeds,
            "scores": queries.embeds @ passages.embeds.mT,  # (B, N)
            "logit_scale": self.model.get_logit_scale(),
        }
        losses = []
        if return_loss:
            embeds = (queries.embeds, passages.embeds, parts["logit_scale"])
            losses.append(info_nce(*embeds, query_labels, passage_labels))
        more_queries, more_passages = split_sides(match_inputs or {})
        all_queries = queries.joined(self.read_side(**more_queries)) if more_queries else queries
        all_passages = passages.joined(self.read_side(**more_passages)) if more_passages else passages
        if match_queries is None or match_passages is None:
            match_queries = match_passages = torch.arange(min(parts["scores"].shape), device=parts["scores"].device)
        if len(match_queries):
            joint = self.joint_encoder(all_queries.rows(match_queries), all_passages.rows(match_passages))
            parts["match_logits"] = self.match_head(joint[:, 0]).squeeze(-1).float()
            if match_labels is not None:
                losses.append(F.binary_cross_entropy_with_logits(parts["match_logits"], match_labels.float()))
        if mlm_labels is not None:
            parts["mlm_logits"] = self.guess_words(queries, passages, mlm_labels, masked_passage_input_ids)
            words = mlm_labels[mlm_labels != -100]
            if len(words):
                losses.append(F.cross_entropy(parts["mlm_logits"], words))
        return RavlmMatchingOutput(loss=sum(losses) if return_loss else None, **parts)

    def guess_words(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Raises `ValueError`: only [`RavlmForPreTraining`] has a head for it."""
        raise ValueError(
            f"{type(self).__name__} got mlm_labels, but has no head that guesses words; use RavlmForPreTraining"
        )


class RavlmForPreTraining(RavlmForImageTextRetrieval):
    """The dual encoder with all heads that align it: contrast, matching, and words hidden in the passage.

    A hidden word is guessed from the rest of the passage and from the query, usually an image.
    """

    _keys_to_ignore_on_load_unexpected = READER_KEYS

    def __init__(self, config: RavlmConfig):
        super().__init__(config)
        width = config.text_config.hidden_size
        embeddings = self.get_input_embeddings()
        self.mlm_transform = nn.Sequential(
            nn.Linear(width, embeddings.embedding_dim), nn.GELU(), nn.LayerNorm(embeddings.embedding_dim)
        )
        self.mlm_bias = nn.Parameter(torch.zeros(embeddings.num_embeddings))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.mlm_bias)

    def guess_words(
        self, queries: SideStates, passages: SideStates, mlm_labels: torch.Tensor, masked_ids: torch.Tensor
    ) -> torch.Tensor:
        """Scores `(m, V)` of the hidden words: the text is read anew with its gaps, then together with the query."""
        rows = torch.arange(len(masked_ids), device=mlm_labels.device)
        whole = passages.rows(rows)
        states = self.model.get_text_states(masked_ids, whole.mask)
        joint = self.joint_encoder(queries.rows(rows), whole._replace(states=states))
        hidden = self.mlm_transform(joint[:, 1:][mlm_labels != -100])  # (m, E)
        return F.linear(hidden, self.get_input_embeddings().weight, self.mlm_bias).float()


def split_sides(inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the queries and those of the passages, without their prefix; what is `None` is left out.

    >>> split_sides({"input_ids": 1, "passage_input_ids": 2, "pixel_values": None})
    ({'input_ids': 1}, {'input_ids': 2})
    """
    queries = {name: inputs[name] for name in SIDE if inputs.get(name) is not None}
    passages = {name: inputs[f"passage_{name}"] for name in SIDE if inputs.get(f"passage_{name}") is not None}
    return queries, passages


def as_tokens(features: torch.Tensor) -> torch.Tensor:
    """Features of a vision tower, a map `(n, C, h, w)` or tokens, as tokens `(n, P, C)`."""
    return features if features.dim() == 3 else features.flatten(2).mT


def kept_rows(tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """`mask (n,)` of rows as a mask of their tokens `(n, T)`; all, if it is `None`."""
    kept = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return kept if mask is None else kept & mask.bool().unsqueeze(-1)


__all__ = ["RavlmForImageTextRetrieval", "RavlmForPreTraining", "RavlmMatchingOutput"]
