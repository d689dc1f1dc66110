"""The fusions by name: how evidence reaches the language model.

A fusion turns states of image, question and passages (keywords of its `forward`, of which it takes what it reads) into
memory tokens, which fill the `<evidence>` placeholders of the prompt. Of a passage it gets both the text encoder's
states and the language model's embeddings of the same tokens (`tokens`).

| fusion | placeholders per passage | reads |
|---|---|---|
| `in_context` | 0 | nothing: the passages are text |
| `concat` | one for each token of the passage | the passage |
| `product` | 1 | image and passage |
| `attention` | `config.num_memory_tokens` | image, question and passage |
| `gated` | `config.num_memory_tokens` | image, question and passage, each also the others |
| `cross_attention` | 0 | the passage, from inside the language model |
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init

from ..configuration_ravlm import RavlmConfig
from .attention import AttentionFusion
from .cross_attention import CrossAttentionFusion, CrossReading
from .gated import GatedFusion, passage_mean
from .null_attention import NullAttend, feed_forward
from .tokens import START_GOING_ON, START_SCALE, AddedToWords, PassageInput, Pointing, word_scale


class InContextFusion(nn.Module):
    """Passages are text in the prompt; there is nothing to compute and nothing to learn."""

    num_memory_tokens = 0
    reads_evidence = False
    reads_question = False

    def __init__(self, config: RavlmConfig):
        super().__init__()


class ConcatFusion(nn.Module):
    """Every token of a passage becomes one memory token: `embedding + scale * MLP(LayerNorm(state))`.

    The MLP starts small beside the `scale` of the embeddings, so that a new memory is the words of the passage, and
    learns what to add to them.
    """

    num_memory_tokens = None
    reads_evidence = True
    reads_question = False

    def __init__(self, config: RavlmConfig):
        super().__init__()
        width, hidden_dim = config.text_config.hidden_size, config.generator_dim
        self.projector = feed_forward(width, hidden_dim, hidden_dim)
        self.projector[-1] = AddedToWords(hidden_dim, hidden_dim)

    def forward(
        self,
        evidence_states: torch.Tensor,
        evidence_embeds: torch.Tensor,
        evidence_token_mask: torch.Tensor,
        **_: torch.Tensor | None,
    ) -> torch.Tensor:
        """Memory tokens `(B, K, L, H)`, of which those that `evidence_token_mask (B, K, L)` keeps count."""
        return evidence_embeds + word_scale(evidence_embeds, evidence_token_mask) * self.projector(evidence_states)


class ProductFusion(nn.Module):
    """One token per passage: the mean of the image times the mean of the passage, channel by channel.

    `memory = mean(embeddings) + scale * W_o LayerNorm((W_i mean(image) + b) * mean(passage))`. Without an image its
    mean is zero and the learned `b`, which starts at one, stands for it: the token is then about the passage alone. A
    mean knows which tokens the passage has and not in what order: what it is about, and no spelling.
    """

    num_memory_tokens = 1
    reads_evidence = True
    reads_question = False

    def __init__(self, config: RavlmConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.image_input = nn.Linear(config.vision_dim, width, bias=False)
        self.null_image = nn.Parameter(torch.ones(width))
        self.evidence_input = PassageInput(config)
        self.norm = nn.LayerNorm(width)
        self.output = AddedToWords(width, config.generator_dim)

    def forward(
        self,
        image_patches: torch.Tensor,
        evidence_states: torch.Tensor,
        evidence_embeds: torch.Tensor,
        evidence_token_mask: torch.Tensor,
        **_: torch.Tensor | None,
    ) -> torch.Tensor:
        """Memory tokens `(B, K, 1, H)` of every passage; the arguments are those of [`GatedFusion`]."""
        image = self.image_input(image_patches.sum(dim=1) / max(image_patches.shape[1], 1)) + self.null_image
        passages = passage_mean(self.evidence_input(evidence_states, evidence_embeds), evidence_token_mask)
        product = self.output(self.norm(image.unsqueeze(1) * passages)).unsqueeze(2)  # (B, K, 1, H)
        words = passage_mean(evidence_embeds, evidence_token_mask).unsqueeze(2)
        return words + word_scale(evidence_embeds, evidence_token_mask) * product


FUSIONS: dict[str, type[nn.Module]] = {
    "in_context": InContextFusion,
    "concat": ConcatFusion,
    "product": ProductFusion,
    "attention": AttentionFusion,
    "gated": GatedFusion,
    "cross_attention": CrossAttentionFusion,
}


def init_fusion_weights(module: nn.Module, std: float) -> None:
    """Initialises the parameters that a part of a fusion itself holds, queries by `N(0, std^2)`; loaded ones stay.

    What is added to the language model's embeddings starts small, so that a new memory is made of words.
    """
    if isinstance(module, (AttentionFusion, GatedFusion)):
        init.normal_(module.memory_queries, std=std)
    elif isinstance(module, AddedToWords):
        init.normal_(module.weight, std=std / 100)
        init.zeros_(module.bias)
    elif isinstance(module, ProductFusion):
        init.ones_(module.null_image)
    elif isinstance(module, NullAttend):
        init.zeros_(module.null_key_value)
    elif isinstance(module, Pointing):
        init.constant_(module.log_scale, START_SCALE)
        init.constant_(module.go_on.bias, START_GOING_ON)
    elif isinstance(module, CrossReading):
        for parameter in (module.null_key, module.read_gate, module.feed_forward_gate):
            init.zeros_(parameter)
        init.constant_(module.log_scale, START_SCALE)
        init.eye_(module.output.weight)
