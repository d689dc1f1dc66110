"""What the model returns, and the letters that every shape comment uses.

`B` batch, `K` passages per query, `L` text length, `P` image tokens, `M` memory tokens per passage, `D` width of the
shared embedding space, `H` width of the language model, `V` vocabulary. Masks are `bool` and mean *keep*.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput


@dataclass
class RavlmEmbeddingOutput(ModelOutput):
    """What the dual encoder [`RavlmModel`] returns.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            InfoNCE of queries against passages; present when `return_loss=True`.
        query_embeds (`torch.FloatTensor` of shape `(B, D)`, *optional*): unit length.
        passage_embeds (`torch.FloatTensor` of shape `(N, D)`, *optional*): unit length.
        scores (`torch.FloatTensor` of shape `(B, N)`, *optional*): cosine of every query with every passage.
        logit_scale (`torch.FloatTensor`, *optional*):
            `1 / temperature`. Part of the output so that distributed training sees the parameter in `forward`.
        hidden_states, attentions (`tuple`, *optional*): of the text encoder over the queries, when asked for.
    """

    loss: torch.FloatTensor | None = None
    query_embeds: torch.FloatTensor | None = None
    passage_embeds: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    logit_scale: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class RavlmCausalLMOutputWithPast(ModelOutput):
    """What the reader [`RavlmForConditionalGeneration`] returns.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): mean negative log-likelihood of the labelled tokens.
        logits (`torch.FloatTensor` of shape `(B, L, V)`): next-token scores before the softmax.
        past_key_values (`Cache`, *optional*): the language model's keys and values.
        hidden_states, attentions (`tuple`, *optional*): of the language model.
        image_hidden_states (`torch.FloatTensor` of shape `(B, P, H)`, *optional*): the image tokens it saw.
        evidence_hidden_states (`torch.FloatTensor` of shape `(B, K, M, H)`, *optional*):
            the memory tokens that a fusion made of the passages.
        passage_log_likelihood (`torch.FloatTensor` of shape `(B, K)`, *optional*):
            `log p(y | x, z_k)` of the labelled answer under each latent passage.
        posterior (`torch.FloatTensor` of shape `(B, K)`, *optional*): `p(z_k | x, y)`, without gradient.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: torch.FloatTensor | None = None
    evidence_hidden_states: torch.FloatTensor | None = None
    passage_log_likelihood: torch.FloatTensor | None = None
    posterior: torch.FloatTensor | None = None


@dataclass
class RavlmGenerateOutput(ModelOutput):
    """What RAG-sequence generates.

    Args:
        sequences (`torch.LongTensor` of shape `(B * R, L + T)`): prompt and answer, best first for each query.
        sequences_scores (`torch.FloatTensor` of shape `(B * R,)`):
            `log p(y | x)`, or with `decoding="fast"` `log p(z | x) p(y | x, z)` of the passage that proposed it.
    """

    sequences: torch.LongTensor | None = None
    sequences_scores: torch.FloatTensor | None = None


@dataclass
class RavlmAttribution(ModelOutput):
    """What an answer rests on.

    Args:
        posterior (`torch.FloatTensor` of shape `(B, K)`): `p(z_k | x, y)`; rows sum to 1 where there is a passage.
        leave_one_out (`torch.FloatTensor` of shape `(B, K)`, *optional*):
            `log p(y | x, Z) - log p(y | x, Z without z_k)`, in nats; above 0 where the passage helped.
        log_likelihood (`torch.FloatTensor` of shape `(B,)`, *optional*): `log p(y | x, Z)`.
        passage_log_likelihood (`torch.FloatTensor` of shape `(B, K)`): `log p(y | x, z_k)` under each passage alone.
    """

    posterior: torch.FloatTensor | None = None
    leave_one_out: torch.FloatTensor | None = None
    log_likelihood: torch.FloatTensor | None = None
    passage_log_likelihood: torch.FloatTensor | None = None
