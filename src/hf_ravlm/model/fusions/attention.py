"""Attention fusion: learned queries read image and question, then each passage, into `M` memory tokens.

The cheapest fusion whose memory depends on the question: passages are projected once and never rewritten.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration_ravlm import RavlmConfig
from .null_attention import NullAttend, feed_forward
from .tokens import POINTING_SPEED, AddedToWords, PassageInput, Pointing, kept_embeds, word_scale


class AttentionFusion(nn.Module):
    """Learned queries attend from image and question over each passage.

    `q <- q + attend(q, [image; question])` once per question, then in each layer `q_k <- q_k + attend(q_k, passage_k)`
    and `q_k <- q_k + MLP(q_k)` for every passage `k`, and at last the queries point at its tokens ([`Pointing`]).
    Every attention has a learned null key and value, so that no image, no question and no evidence are legal.
    """

    reads_evidence = True
    reads_question = True

    def __init__(self, config: RavlmConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.num_memory_tokens = config.num_memory_tokens
        self.image_input = nn.Linear(config.vision_dim, width)
        self.question_input = nn.Linear(width, width)
        self.context_norm = nn.LayerNorm(width)
        self.evidence_input = PassageInput(config)
        self.memory_queries = nn.Parameter(torch.zeros(config.num_memory_tokens, width))
        self.read_context = NullAttend(width, config.fusion_heads)
        self.layers = nn.ModuleList(PassageReading(width, config.fusion_heads) for _ in range(config.fusion_layers))
        self.norm = nn.LayerNorm(width)
        self.pointing = Pointing(width)
        self.output = AddedToWords(width, config.generator_dim)

    def forward(
        self,
        image_patches: torch.Tensor,
        question_states: torch.Tensor,
        question_mask: torch.Tensor,
        evidence_states: torch.Tensor,
        evidence_embeds: torch.Tensor,
        evidence_token_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Memory tokens `(B, K, M, H)` of every passage; the arguments are those of [`GatedFusion`]."""
        patches, question = self.image_input(image_patches), self.question_input(question_states)
        context = self.context_norm(torch.cat([patches, question], dim=1)).unsqueeze(1)  # (B, 1, P + Lq, width)
        all_patches = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        context_mask = torch.cat([all_patches, question_mask.bool()], dim=1).unsqueeze(1)
        evidence = self.evidence_input(evidence_states, evidence_embeds)
        queries = self.memory_queries.expand(len(context), 1, -1, -1)
        queries = queries + self.read_context(queries, context, context_mask)  # (B, 1, M, width)
        for layer in self.layers:
            queries = layer(queries, evidence, evidence_token_mask)  # (B, K, M, width)
        queries, embeds = self.norm(queries), kept_embeds(evidence_embeds, evidence_token_mask)
        added = POINTING_SPEED * word_scale(embeds, evidence_token_mask) * self.output(queries)
        return self.pointing(queries, evidence, evidence_token_mask.bool(), embeds) + added


class PassageReading(GradientCheckpointingLayer):
    """The queries of each passage read it; then an MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.query_norm = nn.LayerNorm(width)
        self.attend = NullAttend(width, heads)
        self.feed_forward = feed_forward(width, 4 * width, width)

    def forward(self, queries: torch.Tensor, evidence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`queries (B, K or 1, M, width)` read `evidence (B, K, L, width)`."""
        queries = queries + self.attend(self.query_norm(queries), evidence, mask)  # (B, K, M, width)
        return queries + self.feed_forward(queries)
