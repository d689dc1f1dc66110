"""Hidden words for masked language modelling."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling

from ...errors import InvalidInputError


MASKED = ("masked_passage_input_ids", "mlm_labels")


def masking_tokenizer(processor: Any) -> Any:
    """The tokenizer of a processor's text encoder.

    Raises:
        InvalidInputError: If there is none, or it has no mask token.
    """
    tokenizer = getattr(processor, "text_tokenizer", None)
    if tokenizer is None or tokenizer.mask_token_id is None:
        raise InvalidInputError(
            "mlm_weight needs a mask token, but "
            + ("there is no processor" if tokenizer is None else "the text tokenizer has none")
            + ": give processing_class=processor, whose text_tokenizer has one "
            "(`add_special_tokens({'mask_token': '[MASK]'})`, then resize the text encoder's embeddings)"
        )
    return tokenizer


def hide_words(
    inputs: dict[str, Any], num_positives: int, processor: Any, probability: float, seed: int
) -> dict[str, torch.Tensor]:
    """The positives with words hidden as in BERT (arXiv 1810.04805), and labels that are -100 at all other words.

    Args:
        inputs: A batch; its own `MASKED` are taken where it brings them.
        num_positives: How many of its passages are positives.
        processor: Of the model.
        probability: Of hiding a token that is neither padding nor special.
        seed: Of the draws.

    Returns:
        `MASKED`, each `(num_positives, L)`; nothing where there is no text.

    Raises:
        InvalidInputError: The text tokenizer is missing or has no mask token.
    """
    if all(name in inputs for name in MASKED):
        return {name: inputs[name] for name in MASKED}
    if inputs.get("passage_input_ids") is None:
        return {}
    tokenizer, ids = masking_tokenizer(processor), inputs["passage_input_ids"][:num_positives]
    kept = torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))
    if inputs.get("passage_attention_mask") is not None:
        kept |= ~inputs["passage_attention_mask"][:num_positives].bool()
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability)
    collator.generator = torch.Generator().manual_seed(seed)
    masked, labels = collator.torch_mask_tokens(ids.cpu().clone(), special_tokens_mask=kept.cpu())
    return dict(zip(MASKED, (masked.to(ids.device), labels.to(ids.device)), strict=True))
