"""What the language model reads: placeholders filled with states, passages hidden. Plain functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class PromptTensors:
    """Prompts of a batch."""

    input_ids: torch.Tensor | None  # (N, L), with placeholders
    attention_mask: torch.Tensor | None = None  # (N, L), `None` for all ones
    token_passages: torch.Tensor | None = None  # (N, L), the passage of every token, -1 for none

    def given(self) -> dict[str, torch.Tensor]:
        """What is there, by name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    def gather(self, order: torch.Tensor) -> PromptTensors:
        """The same prompts with their columns in the `order (N, L)`."""
        return PromptTensors(**{"input_ids": None, **{n: t.gather(1, order) for n, t in self.given().items()}})


def fill_placeholders(
    inputs_embeds: torch.Tensor, places: torch.Tensor, states: torch.Tensor, name: str
) -> torch.Tensor:
    """Puts `states` (any leading shape, width `H`), in order, where `places (B, L)` is true in `inputs_embeds`.

    Raises:
        `ValueError`: if the numbers differ.
    """
    given = states[..., 0].numel()
    if not torch.compiler.is_compiling() and int(places.sum()) != given:
        raise ValueError(
            f"{name} placeholders and {name} states do not match: input_ids hold {int(places.sum())} <{name}> tokens, "
            f"the inputs give {given} states; let RavlmProcessor write the prompt, pass all of its outputs, and see "
            f"that config.{name}_token_id is the id of <{name}> in its tokenizer"
        )
    return inputs_embeds.masked_scatter(places.unsqueeze(-1), states.to(inputs_embeds.dtype))


def fill_memory(
    inputs_embeds: torch.Tensor,
    places: torch.Tensor,
    token_passages: torch.Tensor | None,
    memory: torch.Tensor,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    """Puts memory tokens `(B, K, M, H)` where `places (B, L)` is true; a passage without a place is left out.

    Args:
        token_passages (`(B, L)`): whose places they are; `None` if every passage has `M` of them, in order.
        kept (`(B, K, M)`): which memory tokens have a place, where not all of a passage have.

    Raises:
        `ValueError`: if places and memory tokens differ in number.
    """
    if token_passages is None:
        return fill_placeholders(inputs_embeds, places, memory if kept is None else memory[kept], "evidence")
    columns = passage_columns(token_passages, places.shape[1])
    passages = torch.arange(memory.shape[1], device=columns.device)
    there = ((columns.unsqueeze(1) == passages[:, None]) & places.unsqueeze(1)).sum(dim=-1)  # (B, K)
    expected = torch.full_like(there, memory.shape[2]) if kept is None else kept.sum(dim=-1)
    if not torch.compiler.is_compiling() and bool((there != expected * (there > 0)).any()):
        raise ValueError(
            f"evidence placeholders and states do not match: input_ids hold {there.tolist()} <evidence> tokens "
            f"per passage, the inputs give {expected.tolist()} states; let RavlmProcessor write the prompt, with the "
            "fusion and num_memory_tokens of the model's config, and pass all of its outputs"
        )
    if kept is not None:
        return fill_placeholders(inputs_embeds, places, memory[kept & (there > 0).unsqueeze(-1)], "evidence")
    number = (places.long().cumsum(dim=1) - 1).clamp(min=0) % memory.shape[2]  # of a place within its passage
    source = (columns.clamp(min=0) * memory.shape[2] + number).unsqueeze(-1).expand(-1, -1, memory.shape[-1])
    chosen = memory.flatten(1, 2).gather(1, source.clamp(max=memory.shape[1] * memory.shape[2] - 1))  # (B, L, H)
    return torch.where(places.unsqueeze(-1), chosen.to(inputs_embeds.dtype), inputs_embeds)


def find_places(input_ids: torch.Tensor, token_id: int, token_passages: torch.Tensor | None) -> torch.Tensor:
    """Where `token_id` stands in the prompt `(B, L)`; what was generated behind it is no place to fill."""
    places = input_ids == token_id
    if token_passages is not None and token_passages.shape[1] < input_ids.shape[1]:
        places = places.clone()
        places[:, token_passages.shape[1] :] = False
    return places


def passage_columns(token_passages: torch.Tensor, length: int) -> torch.Tensor:
    """`token_passages (B, L)` as wide as the sequence: tokens behind the prompt belong to no passage."""
    return torch.nn.functional.pad(token_passages, (0, length - token_passages.shape[1]), value=-1)


def hide_passages(
    attention_mask: torch.Tensor | None, token_passages: torch.Tensor | None, evidence_mask: torch.Tensor | None
) -> torch.Tensor | None:
    """The attention mask `(B, L)` without the tokens of passages that `evidence_mask (B, K)` leaves out.

    Raises:
        `ValueError`: if a passage is left out and nothing says which tokens are its own.

    >>> hide_passages(torch.ones(1, 4).long(), torch.tensor([[-1, 1, 0, -1]]), torch.tensor([[True, False]])).tolist()
    [[1, 0, 1, 1]]
    """
    if evidence_mask is None or not evidence_mask.shape[1]:
        return attention_mask
    if token_passages is None:
        if not torch.compiler.is_compiling() and not evidence_mask.all():
            raise ValueError(
                "evidence_mask leaves passages out, but token_passages is missing, which says where they stand in the "
                "prompt; pass all outputs of RavlmProcessor"
            )
        return attention_mask
    if attention_mask is not None and not torch.is_tensor(attention_mask):
        raise ValueError(
            f"attention_mask is a {type(attention_mask).__name__}, in which no passage can be left out; give one of "
            "shape (B, L) or (B, 1, L, L)"
        )
    length = token_passages.shape[1] if attention_mask is None else attention_mask.shape[-1]
    keep = kept_columns(token_passages, evidence_mask, length)
    if attention_mask is None:
        return keep.long()
    return (
        attention_mask * keep.to(attention_mask.dtype)
        if attention_mask.dim() == 2
        else hide_in_4d(attention_mask, keep)
    )


def kept_columns(token_passages: torch.Tensor, evidence_mask: torch.Tensor, length: int) -> torch.Tensor:
    """Columns, bool `(B, length)`, that belong to no passage or to one that `evidence_mask (B, K)` keeps."""
    columns = passage_columns(token_passages, length)
    return evidence_mask.bool().gather(1, columns.clamp(min=0)) | (columns < 0)


def hide_in_4d(attention_mask: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """A mask `(B, 1, L, S)`, of bools or of numbers that are added, in which only the columns `keep (B, S)` are seen.

    A hidden token still sees what it saw, as one that sees nothing would be NaN.

    >>> causal = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    >>> hide_in_4d(causal, torch.tensor([[True, False, True]]))[0, 0].int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    seen = keep[:, None, None, :]
    if attention_mask.shape[-2] == keep.shape[1]:
        seen = seen | ~keep[:, None, :, None]
    if attention_mask.dtype == torch.bool:
        return attention_mask & seen
    return attention_mask.masked_fill(~seen, torch.finfo(attention_mask.dtype).min)


def positions_from(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids `(B, L)` that count the kept tokens of every row."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def counts_columns(config: Any) -> bool:
    """Whether a language model of this config measures distance in columns, so that hidden ones would move the rest.

    Sliding windows, ALiBi and layers with a state do; absolute and rotary positions count the tokens that are kept.
    """
    config = config.get_text_config()
    layers = getattr(config, "layer_types", None)
    if layers:
        return any(kind != "full_attention" for kind in layers)
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return bool(windowed) or config.model_type in ("gpt_neo", "mpt")


def moves_hidden(language_model: Any) -> bool:
    """Whether hidden tokens must stand on the left, as padding does: it counts columns, or its layers have a state."""
    return language_model._is_stateful or counts_columns(language_model.config)


def flush_right(attention_mask: torch.Tensor) -> torch.Tensor:
    """An order of the columns of every row, `(B, L)`, in which all that is kept stands on the right.

    >>> flush_right(torch.tensor([[1, 0, 1, 0]])).tolist()
    [[1, 3, 0, 2]]
    """
    return attention_mask.long().argsort(dim=1, stable=True)


def is_flush_right(attention_mask: torch.Tensor) -> bool:
    """Whether all that is kept stands on the right already."""
    return not bool((attention_mask[:, 1:] < attention_mask[:, :-1]).any())


def back_in_columns(states: torch.Tensor, order: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """States whose `axes` follow `order (B, L)`, in the order that the columns had before.

    >>> back_in_columns(torch.tensor([[10, 30, 0, 20]]), torch.tensor([[1, 3, 0, 2]]), axes=(1,)).tolist()
    [[0, 10, 20, 30]]
    """
    for axis in axes:
        places = order.argsort(dim=1).to(states.device)
        shape = [len(states) if place == 0 else -1 if place == axis else 1 for place in range(states.dim())]
        states = states.gather(axis, places.view(shape).expand_as(states))
    return states


def cut_out_hidden(prompt: PromptTensors, order: torch.Tensor, pad_token_id: int) -> PromptTensors:
    """Prompts in `order` (of `flush_right`), whose hidden tokens have become padding that belongs to no passage."""
    moved = prompt.gather(order)
    gone = moved.attention_mask == 0
    if moved.input_ids is not None:
        moved.input_ids = moved.input_ids.masked_fill(gone, pad_token_id)
    if moved.token_passages is not None:
        moved.token_passages = moved.token_passages.masked_fill(gone, -1)
    return moved
