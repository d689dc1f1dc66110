"""What a memory keeps of a passage: which token stood where.

A text encoder tells what a passage is about and forgets its spelling; a name or a number must be copied. So every
fusion also gets the language model's own embedding of every token of the passage, which it can already read: memory
begins as such embeddings, and what the text encoder knows is added to them by a projection that starts small.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..configuration_ravlm import RavlmConfig


START_SCALE = math.log(16.0)  # of cosines: an attention that is sharp from the start, and can still turn
START_GOING_ON = 3.0  # what the sigmoid of a gate that goes on is taken of
POINTING_SPEED = 16.0  # of 1, 4 and 16 the one with which memories that point learn in a few hundred steps


class PassageInput(nn.Module):
    """Tokens of passages at the fusion's width: the text encoder's state and the language model's embedding of each.

    `x_t = W LayerNorm(state_t) + U LayerNorm(embedding_t)`.
    """

    def __init__(self, config: RavlmConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.state_norm, self.embed_norm = nn.LayerNorm(width), nn.LayerNorm(config.generator_dim)
        self.state, self.embed = nn.Linear(width, width), nn.Linear(config.generator_dim, width, bias=False)

    def forward(self, states: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        """`(B, K, L, width)` of states `(B, K, L, width)` and embeddings `(B, K, L, H)`."""
        return self.state(self.state_norm(states)) + self.embed(self.embed_norm(embeds))


class AddedToWords(nn.Linear):
    """What is added to the language model's embeddings, times [`word_scale`]; it starts at a hundredth of others.

    A module of its own, since transformers gives initial weights to modules that hold some, and to no others.
    """


def word_scale(embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How large the numbers of a passage's embeddings `(B, K, L, H)` are, `(B, K, 1, 1)`: their root mean square.

    It is 0.25 in one language model and 0.015 in another, while an optimizer like Adam moves weights at the same pace
    in both: what is added to embeddings is multiplied with it. Memories that point, which have more to learn, take
    `POINTING_SPEED` times as much; `concat` with that drowned the words of SmolLM2 in a few steps. No gradient reaches
    it; tokens that `mask (B, K, L)` leaves out do not count, nor do those without an embedding, of images.

    >>> embeds = torch.tensor([[[[3.0, 4.0], [0.0, 0.0], [9.0, 9.0]]]])
    >>> round(word_scale(embeds, torch.tensor([[[True, True, False]]])).item() ** 2, 4)
    12.5
    """
    squares = kept_embeds(embeds.detach(), mask).float().square().mean(dim=-1)  # (B, K, L)
    return (squares.sum(dim=-1) / (squares > 0).sum(dim=-1).clamp(min=1)).sqrt().to(embeds)[..., None, None]


class Pointing(nn.Module):
    """Memory tokens that copy: each query chooses a token of its passage, or goes on behind the one before.

    `w_1 = a_1` and `w_m = g_m shift(w_{m-1}) + (1 - g_m) a_m`, where `a_m` is a sharp attention over the tokens and a
    null, `shift` moves every weight to the next token, and the gate `g_m` in (0, 1) is computed from the query; the
    memory is `sum_t w_mt embedding_t`. A name of several tokens takes one choice, and then the way on; the gates start
    near 1, so that a new memory is one stretch of the passage and learns where it is to begin.

    The shift of Neural Turing Machines (arXiv 1410.5401), over the passage in the place of a memory.
    """

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.go_on = nn.Linear(width, 1)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def weights(self, queries: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`w (B, K, M, L)` of `queries (B, K, M, width)` and `tokens (B, K, L, width)`; sums are at most 1."""
        query, key = (F.normalize(states, dim=-1, eps=1e-6) for states in (self.query(queries), self.key(tokens)))
        scores = (query @ key.mT * self.log_scale.exp()).masked_fill(~mask.unsqueeze(-2), -math.inf)  # (B, K, M, L)
        chosen = F.pad(scores, (1, 0)).softmax(dim=-1)[..., 1:]  # the null has score 0
        go_on = self.go_on(queries).sigmoid()
        weights = [chosen[..., 0, :]]
        for m in range(1, chosen.shape[-2]):
            moved = F.pad(weights[-1], (1, 0))[..., :-1]
            weights.append(moved.lerp(chosen[..., m, :], 1 - go_on[..., m, :]))
        return torch.stack(weights, dim=-2)

    def forward(
        self, queries: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, embeds: torch.Tensor
    ) -> torch.Tensor:
        """`(B, K, M, H)`: what the queries point at among `embeds (B, K, L, H)`, zeros where nothing is kept."""
        return self.weights(queries, tokens, mask) @ embeds


def kept_embeds(embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Embeddings `(B, K, L, H)` with zeros where `mask (B, K, L)` leaves out, for those that look beyond a token."""
    return embeds.masked_fill(~mask.bool().unsqueeze(-1), 0)


def previous(embeds: torch.Tensor) -> torch.Tensor:
    """At every token of `(B, K, L, H)` the embedding of the one before; zeros at the first.

    >>> previous(torch.tensor([[[[1.0], [2.0]]]])).flatten().tolist()
    [0.0, 1.0]
    """
    return F.pad(embeds, (0, 0, 1, 0))[..., :-1, :]
