"""Whether a language model reads as a reader must: asked once, when a reader is put together, with a few tokens.

What an architecture does with hidden tokens cannot be seen in its configuration: recurrent layers carry them on, some
models measure distance in columns, encoders look ahead. Each law below costs one or two passes over six tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ...errors import InvalidInputError, RavlmError
from ..parts.quantized import keep_unpacked
from .placing import moves_hidden, positions_from


LENGTH = 6
HIDDEN = slice(2, 4)  # columns of the tokens that are hidden
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}  # of the length of the logits
COARSE = 0.2  # for half precision, where an expert may change by rounding, and for quantized weights


def check_state(language_model: PreTrainedModel, marginalization: str) -> None:
    """Refuses latent passages for layers with a state, which does not go back to where the prompts of passages part.

    Raises:
        `InvalidInputError`: with what to choose instead.
    """
    kinds = getattr(language_model.config.get_text_config(), "layer_types", None) or ()
    carries = language_model._is_stateful or any(kind in ("conv", "linear_attention") for kind in kinds)
    if carries and marginalization != "none":
        raise InvalidInputError(
            f"marginalization={marginalization!r} with a {language_model.config.model_type!r} generator, whose layers "
            "carry a state: choose marginalization='none', or a decoder of attention layers alone (llama, qwen3, ...)"
        )


def probe_language_model(language_model: PreTrainedModel) -> None:
    """Refuses a causal language model that breaks a law that its answers rest on; no weight is changed.

    Hidden tokens must be as absent, wherever they stand (or on the left, where the reader moves them); earlier tokens
    must not see later ones; and a step on top of a cache must be that of one whole pass. On the meta device nothing
    is asked.

    Raises:
        `InvalidInputError`: with the law that is broken, and what to choose instead.
    """
    weight = language_model.get_input_embeddings().weight
    if weight.is_meta:
        return
    training, on_left = language_model.training, moves_hidden(language_model)
    try:
        keep_unpacked(language_model.eval())
        for law, breaks in LAWS.items():
            if fault := _ask(breaks, language_model, on_left):
                quantized = getattr(language_model, "is_quantized", False)
                raise InvalidInputError(
                    f"the generator is a {language_model.config.model_type!r} model, which cannot be a reader: {law} "
                    f"({fault}); {'load it without quantization, ' if quantized else ''}choose a decoder (llama, "
                    "qwen3, gemma3_text, smollm3, opt, gpt2, ...), or load an encoder as one (is_decoder=True)"
                )
    finally:
        language_model.train(training)


def probe_multimodal(model: Any, processor: Any) -> None:
    """Refuses an image-text-to-text reader that does not read what its processor writes; no weight is changed.

    A question about a small image must be answered, and as beside a longer one about a larger image in the same batch.
    Passages that are hidden are no part of the prompt.

    Args:
        model ([`RavlmForConditionalGeneration`]), processor ([`RavlmProcessor`]): of an image-text-to-text generator.

    Raises:
        `InvalidInputError`: with what does not hold.
    """
    generator = model.language_model
    if generator.get_input_embeddings().weight.is_meta:
        return
    image, training = Image.new("RGB", (64, 48), "grey"), generator.training
    try:
        keep_unpacked(generator.eval())
        fault = _fault(lambda: _depends_on_its_batch(model, processor, image))
    finally:
        generator.train(training)
    if fault is not None:
        raise InvalidInputError(
            f"the generator is a {generator.config.model_type!r} model with a "
            f"{type(processor.generator_processor).__name__}, which cannot be a reader: {fault}; choose another "
            "image-text-to-text model (qwen3_vl, smolvlm, gemma3, llava_onevision, internvl, ...)"
        )


def _depends_on_its_batch(model: Any, processor: Any, image: Image.Image) -> str | None:
    """Whether an answer depends on what stands beside it in a batch, where the others are longer and larger.

    The row that is looked at comes last: what is packed or padded in front of it would move it.
    """
    questions, images = ["What is this? " * 4, "What is this?"], [image.resize((128, 32)), image]
    greedy = {"do_sample": False, "num_beams": 1, "max_new_tokens": 2, "min_new_tokens": 2}
    logits = []
    for rows in (slice(1, 2), slice(2)):
        inputs = processor(images=images[rows], text=questions[rows], prompt={"max_length": 1 << 20}).to(model.device)
        told = model.generate(**inputs, **greedy, return_dict_in_generate=True, output_logits=True)
        logits.append([step[-1] for step in told.logits])
    found = _difference(model.language_model, logits[0][0], logits[1][0])
    if found is None and logits[0][0].argmax() == logits[1][0].argmax():
        found = _difference(model.language_model, logits[0][1], logits[1][1])
    if found:
        return f"its answer depends on what stands beside it in a batch ({found})"
    scored, length = model(**inputs).logits, inputs["input_ids"].shape[1]
    if scored.shape[1] != length:
        return f"its logits have other places than its prompt ({scored.shape[1]}, and {length})"
    found = _difference(model.language_model, logits[1][0], scored[-1, -1])
    return f"it scores otherwise than it writes ({found})" if found else None


def _fault(ask: Callable[[], str | None]) -> str | None:
    try:
        with torch.no_grad():
            return ask()
    except RavlmError:
        raise
    except Exception as error:  # whatever an architecture raises for inputs that all others take
        reason = next(iter(str(error).strip().splitlines()), "")[:160]
        return f"it fails on a plain image with {type(error).__name__}{f': {reason}' if reason else ''}"


def _ask(breaks: Callable, language_model: PreTrainedModel, on_left: bool) -> str | None:
    try:
        with torch.no_grad():
            return breaks(language_model, on_left)
    except Exception as error:  # whatever an architecture raises for inputs that all others take
        return f"it fails with {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"


def reads_nothing(language_model: PreTrainedModel, on_left: bool) -> str | None:
    """Nothing, or an error: kernels of quantized weights do not take all sizes on all processors."""
    ids = _tokens(language_model)
    _read(language_model, ids, torch.ones_like(ids))
    return None


def sees_later_tokens(language_model: PreTrainedModel, on_left: bool) -> str | None:
    """Whether the last token changes what is said before it."""
    ids = _tokens(language_model)
    mask = torch.ones_like(ids)
    changed = ids.clone()
    changed[:, -1] = ids[:, 0]
    logits, others = (_read(language_model, given, mask).logits[:, :-1] for given in (ids, changed))
    return _difference(language_model, logits, others)


def shows_hidden_tokens(language_model: PreTrainedModel, on_left: bool) -> str | None:
    """Whether hidden tokens change what is said behind them: what they are, and that they are there."""
    ids = _tokens(language_model)
    mask = torch.ones_like(ids)
    mask[:, HIDDEN] = 0
    absent = ids[mask.bool()].unsqueeze(0)
    if on_left:
        order = mask.argsort(dim=1, stable=True)
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    others = ids.where(mask.bool(), ids.roll(1, dims=1))
    kept = [_read(language_model, given, mask).logits[mask.bool()] for given in (ids, others)]
    alone = _read(language_model, absent, torch.ones_like(absent)).logits[0]
    return _difference(language_model, *kept) or _difference(language_model, kept[0], alone)


def forgets_with_a_cache(language_model: PreTrainedModel, on_left: bool) -> str | None:
    """Whether a step on top of a cache differs from the same step in a whole pass."""
    ids = _tokens(language_model)
    mask = torch.ones_like(ids)
    if on_left:
        mask[:, :1] = 0
    whole = _read(language_model, ids, mask).logits[:, -1]
    cache = DynamicCache(config=language_model.config.get_text_config(decoder=True))
    _read(language_model, ids[:, :-1], mask[:, :-1], past_key_values=cache, use_cache=True)
    step = _read(language_model, ids[:, -1:], mask, past_key_values=cache, use_cache=True).logits[:, -1]
    return _difference(language_model, whole, step)


LAWS: dict[str, Callable] = {
    "it reads no plain tokens here": reads_nothing,
    "its tokens see those behind them": sees_later_tokens,
    "passages that are hidden still change its answer": shows_hidden_tokens,
    "it does not go on from a cache of keys and values": forgets_with_a_cache,
}


def _tokens(language_model: PreTrainedModel) -> torch.Tensor:
    """Some ids `(1, LENGTH)`, no two alike where the vocabulary allows."""
    embeddings = language_model.get_input_embeddings()
    number = embeddings.weight.shape[0]
    return (
        ((torch.arange(LENGTH) * (number // LENGTH or 1) + number // 3) % number)
        .unsqueeze(0)
        .to(embeddings.weight.device)
    )


def _read(language_model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
    return language_model(
        inputs_embeds=language_model.get_input_embeddings()(ids),
        attention_mask=mask,
        position_ids=positions_from(mask)[:, -ids.shape[1] :],
        **{"use_cache": False, **options},
    )


def _difference(language_model: PreTrainedModel, logits: torch.Tensor, others: torch.Tensor) -> str | None:
    """How far two answers of the model are apart, in words, if they are."""
    if not (torch.isfinite(logits).all() and torch.isfinite(others).all()):
        return "its logits are no numbers"
    found = (logits - others).float().norm().item() / max(logits.float().norm().item(), 1e-9)
    weights = [parameter.data for parameter in language_model.parameters()]
    plain = all(type(weight) is torch.Tensor and weight.is_floating_point() for weight in weights)
    allowed = max(TOLERANCE.get(weight.dtype, COARSE) for weight in weights) if plain else COARSE
    return f"its logits change by {found:.2g} of their size" if found > allowed else None
