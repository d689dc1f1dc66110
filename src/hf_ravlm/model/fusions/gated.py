"""Gated fusion: image, question and passage read each other through learned gates, then memory is read out."""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..backbones import masked_mean
from ..configuration_ravlm import RavlmConfig
from .null_attention import NullAttend
from .tokens import POINTING_SPEED, AddedToWords, PassageInput, Pointing, kept_embeds, word_scale


class GatedFusion(nn.Module):
    """Multi-stream gated attention over image, question and evidence.

    In each layer every stream reads every other: `X_i <- X_i + sum_j g_ij * softmax(Q_i K_j^T / sqrt(d)) V_j`, where
    the gate `g_ij` in (0, 1), one number per channel, is computed from the means of both streams. Learned queries
    then read `M` memory tokens out of each passage's stream, and point at its tokens ([`Pointing`]). A learned null
    key and value stands beside every stream, so that an empty one (no question, a masked passage) is legal and gives
    finite numbers.
    """

    reads_evidence = True
    reads_question = True

    def __init__(self, config: RavlmConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.num_memory_tokens = config.num_memory_tokens
        self.image_input = nn.Linear(config.vision_dim, width)
        self.question_input = nn.Linear(width, width)
        self.evidence_input = PassageInput(config)
        last = config.fusion_layers - 1  # what the last layer would write to image and question, nobody reads
        self.layers = nn.ModuleList(
            GatedExchange(width, config.fusion_heads, targets=(2,) if layer == last else (0, 1, 2))
            for layer in range(config.fusion_layers)
        )
        self.memory_queries = nn.Parameter(torch.zeros(config.num_memory_tokens, width))
        self.readout = NullAttend(width, config.fusion_heads)
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
        """Memory tokens of every passage.

        Args:
            image_patches (`torch.Tensor` of shape `(B, P, C)`): with `P = 0` where there is no image.
            question_states (`torch.Tensor` of shape `(B, Lq, width)`), question_mask (`(B, Lq)`).
            evidence_states (`torch.Tensor` of shape `(B, K, L, width)`), evidence_embeds (`(B, K, L, H)`), the
                language model's own of the same tokens, evidence_token_mask (`(B, K, L)`).

        Returns:
            `torch.Tensor` of shape `(B, K, M, H)`.
        """
        streams = (
            self.image_input(image_patches).unsqueeze(1),  # (B, 1, P, width): shared until it has read a passage
            self.question_input(question_states).unsqueeze(1),  # (B, 1, Lq, width)
            self.evidence_input(evidence_states, evidence_embeds),  # (B, K, L, width)
        )
        all_patches = torch.ones(streams[0].shape[:3], dtype=torch.bool, device=image_patches.device)
        masks = [all_patches, question_mask.bool().unsqueeze(1), evidence_token_mask.bool()]
        for layer in self.layers:
            streams = layer(*streams, masks=masks)
        queries = self.memory_queries.expand(len(evidence_states), 1, -1, -1)
        queries = self.norm(queries + self.readout(queries, streams[2], masks[2]))  # (B, K, M, width)
        embeds = kept_embeds(evidence_embeds, masks[2])
        added = POINTING_SPEED * word_scale(embeds, masks[2]) * self.output(queries)
        return self.pointing(queries, streams[2], masks[2], embeds) + added


class GatedExchange(GradientCheckpointingLayer):
    """One layer in which the streams named in `targets` (0 image, 1 question, 2 evidence) read all three."""

    def __init__(self, width: int, heads: int, targets: tuple[int, ...]):
        super().__init__()
        self.targets = targets
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attend = nn.ModuleList(NullAttend(width, heads) for _ in range(3 * len(targets)))
        self.gates = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(3 * len(targets)))

    def forward(
        self, image: torch.Tensor, question: torch.Tensor, evidence: torch.Tensor, masks: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Streams `(B, K or 1, length, width)` and their masks `(B, K or 1, length)`; 1 where passages share one."""
        updated = [image, question, evidence]
        normed = [norm(stream) for norm, stream in zip(self.norms, updated, strict=True)]
        means = [passage_mean(stream, mask) for stream, mask in zip(normed, masks, strict=True)]
        for place, i in enumerate(self.targets):
            for j in range(3):
                attend, gate = self.attend[3 * place + j], self.gates[3 * place + j]
                pair = torch.cat(torch.broadcast_tensors(means[i], means[j]), dim=-1)  # (B, K or 1, 2 * width)
                opened = torch.sigmoid(gate(pair)).unsqueeze(2)  # g_ij
                updated[i] = updated[i] + opened * attend(normed[i], normed[j], masks[j])
        return tuple(updated)


def passage_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`masked_mean` of states `(B, K, L, width)` over `L`, to `(B, K, width)`."""
    mask = mask.expand(states.shape[:3])  # a shared mask serves a stream that has become a passage's own
    return masked_mean(states.flatten(0, 1), mask.flatten(0, 1)).unflatten(0, states.shape[:2])
