"""How evidence reaches the language model: one registry, one interface.

A fusion turns image, question and passage states into `M` memory tokens per passage, which take the places of the
`<evidence>` placeholders in the prompt. `in_context` makes none (`M = 0`): there the passages are text of the prompt,
which the processor writes. The fusion knows neither the language model nor where the passages came from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_ravlm import RavlmConfig
from .pooling_ravlm import masked_mean


class InContextFusion(nn.Module):
    """Passages are text in the prompt; there is nothing to compute and nothing to learn."""

    def __init__(self, config: RavlmConfig):
        super().__init__()
        self.num_memory_tokens = 0


class GatedFusion(nn.Module):
    """Multi-stream gated attention over image, question and evidence.

    In each layer every stream reads every other: `X_i <- X_i + sum_j g_ij * softmax(Q_i K_j^T / sqrt(d)) V_j`, where
    the gate `g_ij` in (0, 1), one number per channel, is computed from the means of both streams. Learned queries
    then read `M` memory tokens out of each passage's stream. A learned null key and value stands beside every stream,
    so that an empty one (no question, a masked passage) is legal and gives finite numbers.
    """

    def __init__(self, config: RavlmConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.num_memory_tokens = config.num_memory_tokens
        self.image_input = nn.Linear(config.vision_dim, width)
        self.question_input = nn.Linear(width, width)
        self.evidence_input = nn.Linear(width, width)
        last = config.fusion_layers - 1  # what the last layer would write to image and question, nobody reads
        self.layers = nn.ModuleList(
            GatedExchange(width, config.fusion_heads, targets=(2,) if layer == last else (0, 1, 2))
            for layer in range(config.fusion_layers)
        )
        self.memory_queries = nn.Parameter(torch.zeros(config.num_memory_tokens, width))
        self.readout = NullAttend(width, config.fusion_heads)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, config.get_text_config().hidden_size)

    def forward(
        self,
        image_patches: torch.Tensor,
        question_states: torch.Tensor,
        question_mask: torch.Tensor,
        evidence_states: torch.Tensor,
        evidence_token_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Memory tokens of every passage.

        Args:
            image_patches (`torch.Tensor` of shape `(B, P, C)`): with `P = 0` where there is no image.
            question_states (`torch.Tensor` of shape `(B, Lq, width)`), question_mask (`(B, Lq)`).
            evidence_states (`torch.Tensor` of shape `(B, K, L, width)`), evidence_token_mask (`(B, K, L)`).

        Returns:
            `torch.Tensor` of shape `(B, K, M, H)`.
        """
        batch, passages = evidence_states.shape[:2]
        image = self.image_input(image_patches).repeat_interleave(passages, dim=0)  # (B * K, P, width)
        question = self.question_input(question_states).repeat_interleave(passages, dim=0)  # (B * K, Lq, width)
        evidence = self.evidence_input(evidence_states).flatten(0, 1)  # (B * K, L, width)
        masks = [
            torch.ones(image.shape[:2], dtype=torch.bool, device=image.device),
            question_mask.bool().repeat_interleave(passages, dim=0),
            evidence_token_mask.bool().flatten(0, 1),
        ]
        streams = [image, question, evidence]
        for layer in self.layers:
            streams = layer(streams, masks)
        queries = self.memory_queries.expand(batch * passages, -1, -1)
        memory = queries + self.readout(queries, streams[2], masks[2])  # (B * K, M, width)
        return self.output(self.norm(memory)).unflatten(0, (batch, passages))


class GatedExchange(nn.Module):
    """One layer in which the streams named in `targets` (0 image, 1 question, 2 evidence) read all three."""

    def __init__(self, width: int, heads: int, targets: tuple[int, ...]):
        super().__init__()
        self.targets = targets
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attend = nn.ModuleList(NullAttend(width, heads) for _ in range(3 * len(targets)))
        self.gates = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(3 * len(targets)))

    def forward(self, streams: list[torch.Tensor], masks: list[torch.Tensor]) -> list[torch.Tensor]:
        normed = [norm(stream) for norm, stream in zip(self.norms, streams, strict=True)]
        means = [masked_mean(stream, mask) for stream, mask in zip(normed, masks, strict=True)]  # (N, width) each
        updated = list(streams)
        for place, i in enumerate(self.targets):
            for j in range(3):
                attend, gate = self.attend[3 * place + j], self.gates[3 * place + j]
                opened = torch.sigmoid(gate(torch.cat([means[i], means[j]], dim=-1)))  # g_ij, (N, width)
                updated[i] = updated[i] + opened.unsqueeze(1) * attend(normed[i], normed[j], masks[j])
        return updated


class NullAttend(nn.Module):
    """Multi-head attention with a learned null key and value, so that an empty source is legal."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.null_key_value = nn.Parameter(torch.zeros(2 * width))
        self.output = nn.Linear(width, width)

    def forward(self, target: torch.Tensor, source: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`target (N, T, width)` reads `source (N, S, width)` where `mask (N, S)` keeps it."""
        null = self.null_key_value.expand(len(source), 1, -1)
        key, value = torch.cat([null, self.key_value(source)], dim=1).chunk(2, dim=-1)  # (N, 1 + S, width)
        keep = F.pad(mask, (1, 0), value=True)  # the null is always there
        split = lambda states: states.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        read = F.scaled_dot_product_attention(
            split(self.query(target)), split(key), split(value), attn_mask=keep[:, None, None, :]
        )  # (N, heads, T, width / heads)
        return self.output(read.transpose(1, 2).flatten(2))


FUSIONS: dict[str, type[nn.Module]] = {"in_context": InContextFusion, "gated": GatedFusion}
