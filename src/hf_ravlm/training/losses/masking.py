"""Hides words of a text, for a model that guesses them."""

from __future__ import annotations

import torch


def mask_tokens(
    input_ids: torch.Tensor,
    maskable: torch.Tensor,
    mask_token_id: int,
    vocab_size: int,
    probability: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hides a share of the tokens: 80 % behind the mask token, 10 % behind a random one, 10 % stay and are asked too.

    Devlin et al. 2019, BERT (arXiv 1810.04805).

    Args:
        input_ids (`torch.LongTensor` of shape `(n, L)`).
        maskable (`torch.BoolTensor` of shape `(n, L)`): neither padding nor special tokens.
        mask_token_id, vocab_size (`int`): of the tokenizer.
        probability (`float`, *optional*, defaults to 0.15): for each maskable token.
        generator (`torch.Generator`, *optional*): on the CPU.

    Returns:
        The ids with gaps, and labels: the hidden ids, -100 elsewhere. Both `(n, L)`.

    Example:

    >>> ids, maskable = torch.tensor([[5, 6, 7]]), torch.tensor([[False, True, True]])
    >>> _, labels = mask_tokens(ids, maskable, mask_token_id=4, vocab_size=10, probability=1.0)
    >>> labels.tolist()
    [[-100, 6, 7]]
    """

    def drawn(share: float) -> torch.Tensor:
        return (torch.rand(input_ids.shape, generator=generator) < share).to(input_ids.device)

    hidden = drawn(probability) & maskable.bool()
    behind_mask, behind_other = drawn(0.8), drawn(0.5)
    others = torch.randint(vocab_size, input_ids.shape, generator=generator).to(input_ids.device)
    masked = torch.where(behind_mask, torch.full_like(input_ids, mask_token_id), input_ids)
    masked = torch.where(~behind_mask & behind_other, others.to(input_ids.dtype), masked)
    return torch.where(hidden, masked, input_ids), input_ids.masked_fill(~hidden, -100)
