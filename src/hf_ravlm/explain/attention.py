"""Attention over passages: how much of what is read while an answer is written comes from which passage.

The fusions `attention`, `gated` and `cross_attention` attend to passages and to a null key, which is their way to read
nothing; with `in_context`, `concat` and `product` it is the attention of the language model. Attention says where a
model looked; `posterior` and `leave_one_out` say what an answer rests on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InvalidInputError
from ..model.fusions.cross_attention import CrossReading
from ..model.reader.inputs import encode_inputs, get_memory, split_inputs
from .gradcam import evaluation_mode, on_device


@dataclass
class PassageAttention:
    """Shares of attention, from 0 to 1, means over heads, layers and the places that read.

    Args:
        passages (`torch.FloatTensor` of shape `(B, K)`): what each passage gets; 0 for one that is not there.
        elsewhere (`torch.FloatTensor` of shape `(B, K)` or `(B, 1)`):
            what no passage gets: that of the null, which `attention` and `gated` have once per passage
            (`passages + elsewhere = 1`) and `cross_attention` has once (`passages.sum(1) + elsewhere = 1`), or that
            of the rest of the prompt (likewise).
        tokens (`torch.FloatTensor` of shape `(B, K, S)`, *optional*):
            what each token of a passage gets, in the order of the language model's: its mark, the places of its
            image, its words; `None` where the language model reads.
        read_by (`str`): `"fusion"` or `"language model"`.
    """

    passages: torch.Tensor
    elsewhere: torch.Tensor
    tokens: torch.Tensor | None
    read_by: str


def passage_attention(
    model: Any,
    processor: Any,
    images: Sequence[Any] | None,
    questions: Sequence[str],
    answers: Sequence[str],
    evidence: Sequence[Sequence[Any]],
    prompt: Mapping[str, Any] | None = None,
) -> PassageAttention:
    """Attention over the passages of each question, as the reader's fusion has it.

    Args:
        model, processor: a [`RavlmForConditionalGeneration`] and its processor.
        images, questions, answers, evidence: of one length; evidence as the processor takes it. An answer matters
            where its own tokens read: with `cross_attention`, and where the language model reads.
        prompt (`dict`, *optional*): settings of the prompt, as the answer was read.

    Raises:
        `InvalidInputError`: if there is no passage; for an image-text-to-text reader, and where each passage is read
            in a prompt of its own and nothing competes: there `posterior` says it.
    """
    if not any(len(row) for row in evidence):
        raise InvalidInputError("there is no passage to look at; give evidence for at least one question")
    fusion = model.config.fusion
    own = fusion in ("attention", "gated")  # each passage with the queries and the null key of its own
    if model.reads_images or (model.config.marginalization != "none" and not own):
        what = "an image-text-to-text model" if model.reads_images else "marginalization"
        raise InvalidInputError(
            f"with {what} the reader has no attention that passages share and that could be told apart; "
            "look at posterior and leave_one_out instead"
        )
    asked = {"images": None if images is None else list(images), "text": list(questions), "answers": list(answers)}
    inputs = on_device(
        processor(**asked, evidence=evidence, padding_side="left", answer_on_top=True, prompt=prompt), model
    )
    labels, keep = inputs.pop("labels"), inputs["evidence_mask"].bool()
    read = _read_by_queries if own else _read_by_layers if fusion == "cross_attention" else _read_by_language_model
    with evaluation_mode(model), torch.no_grad():
        return read(model, inputs, labels, keep)


def _read_by_queries(model: Any, inputs: Any, labels: torch.Tensor, keep: torch.Tensor) -> PassageAttention:
    """`attention` and `gated`: the queries that become memory tokens point at tokens of each passage, or at none."""
    with _recorded([model.fusion.pointing]) as calls:
        batch = split_inputs({**inputs, "evidence_mask": keep})[0]
        get_memory(model, encode_inputs(model, batch))
    ((pointing, (queries, passages, mask, _)),) = calls
    tokens = pointing.weights(queries, passages, mask & keep.unsqueeze(-1)).mean(dim=2)  # (B, K, L)
    return PassageAttention(tokens.sum(dim=-1), 1 - tokens.sum(dim=-1), tokens, "fusion")


def _read_by_layers(model: Any, inputs: Any, labels: torch.Tensor, keep: torch.Tensor) -> PassageAttention:
    """`cross_attention`: the states that write the answer read all passages and one null key, layer by layer."""
    with _recorded(list(model.fusion.layers.values())) as calls:
        model(**inputs, use_cache=False)
    writing = _writing(labels)
    found = [_mean_over(_cross_weights(module, *args), writing) for module, args in calls]
    mean = torch.stack(found).mean(dim=0)  # (B, 1 + K * S)
    tokens = mean[:, 1:].unflatten(-1, (keep.shape[1], -1))
    return PassageAttention(tokens.sum(dim=-1), mean[:, :1], tokens, "fusion")


def _cross_weights(
    module: CrossReading, hidden_states: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, keep: torch.Tensor
) -> torch.Tensor:
    """Weights `(B, heads, T, 1 + S)` of a [`CrossReading`], the null key first."""
    query, key = module.queries_and_keys(hidden_states.to(module.norm.weight.dtype), keys)
    hidden = ~F.pad(keep, (1, 0), value=True)[:, None, None, :]
    return (query.float() @ key.float().mT).masked_fill(hidden, float("-inf")).softmax(dim=-1)


def _read_by_language_model(model: Any, inputs: Any, labels: torch.Tensor, keep: torch.Tensor) -> PassageAttention:
    """Passages that stand in the prompt, as words or as memory tokens."""
    implementation = model.language_model.config._attn_implementation
    model.language_model.set_attn_implementation("eager")  # which returns its weights
    try:
        attentions = model(**inputs, use_cache=False, output_attentions=True).attentions
    finally:
        model.language_model.set_attn_implementation(implementation)
    writing = _writing(labels)
    mean = torch.stack([_mean_over(layer.float(), writing) for layer in attentions]).mean(dim=0)  # (B, L)
    owners = inputs["token_passages"]  # (B, L)
    at = (owners.unsqueeze(1) == torch.arange(keep.shape[1], device=owners.device)[:, None]).float()  # (B, K, L)
    shares = torch.einsum("bkl,bl->bk", at, mean) * keep
    return PassageAttention(shares, 1 - shares.sum(dim=1, keepdim=True), None, "language model")


def _writing(labels: torch.Tensor) -> torch.Tensor:
    """Which positions `(B, L)` write the answer: each stands one before the token that it predicts."""
    return F.pad(labels[:, 1:] != -100, (0, 1))


def _mean_over(weights: torch.Tensor, writing: torch.Tensor) -> torch.Tensor:
    """Mean of weights `(B, heads, T, S)` over heads and the positions `(B, T)` that write: `(B, S)`."""
    share = writing.float() / writing.sum(dim=1, keepdim=True)
    return torch.einsum("bts,bt->bs", weights.mean(dim=1).nan_to_num(), share)


@contextlib.contextmanager
def _recorded(modules: list[nn.Module]) -> Iterator[list[tuple[Any, tuple]]]:
    """Which of these modules were called, in their order, and with what."""
    calls: list[tuple[Any, tuple]] = []
    with contextlib.ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(lambda called, args: calls.append((called, args))))
        yield calls
