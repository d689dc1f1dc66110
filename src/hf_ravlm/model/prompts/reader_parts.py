"""Which parts a processor may be made of, and what is done to its tokenizer."""

from __future__ import annotations

from typing import Any, get_args

from ...errors import InvalidInputError
from .chat import template_of
from .literal import add_marks
from .settings import Layout


def own_template(chat_template: str | None, tokenizer: Any, layout: str) -> str | None:
    """The chat template of a reader of words: it is kept by the processor, as one is saved beside a tokenizer."""
    if layout == "plain" or chat_template:
        return chat_template
    template = template_of(tokenizer)
    if not template:
        raise InvalidInputError(
            "layout='chat': the tokenizer has no chat template; give chat_template=, choose layout='plain', or take "
            "an instruction-tuned model"
        )
    return template


def _check_layout(layout: str, image_processor: Any, generator_processor: Any) -> None:
    if layout not in get_args(Layout):
        raise InvalidInputError(f"layout={layout!r}: choose one of {', '.join(map(repr, get_args(Layout)))}")
    if generator_processor is not None and layout != "chat":
        raise InvalidInputError(
            f"layout={layout!r} with an image-text-to-text generator, whose prompts its own processor writes: leave "
            "layout out, or give layout='chat'"
        )
    if generator_processor is None and layout != "marks" and image_processor is not None:
        raise InvalidInputError(
            f"layout={layout!r} has no places for what a vision tower sees: leave the towers out (the encoder then "
            "stands beside the reader), or give layout='marks'"
        )


def prepare_tokenizer(tokenizer: Any, layout: str, generator_processor: Any) -> None:
    if generator_processor is not None:
        generator_processor.tokenizer = tokenizer  # one, which is loaded and changed once
    elif layout == "marks":
        add_marks(tokenizer)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InvalidInputError(
                "the tokenizer has neither a pad_token nor an eos_token: name the one that ends an answer, "
                'tokenizer.eos_token = "..."; if it had one, its tokenizer_config.json was edited'
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"  # where pipelines that are not ours pad batches of rows that we made


def check_parts(
    image_processor: Any,
    text_tokenizer: Any,
    generator_processor: Any,
    fusion: str,
    passage_images: bool,
    layout: str,
) -> None:
    _check_layout(layout, image_processor, generator_processor)
    if (image_processor is None) != (text_tokenizer is None):
        missing = "image_processor" if image_processor is None else "text_tokenizer"
        raise InvalidInputError(
            f"{missing}=None: the two towers of a dual encoder have both, an image processor and a text tokenizer; "
            "give both, or neither for a reader without towers"
        )
    if image_processor is None and fusion != "in_context":
        raise InvalidInputError(
            f"fusion={fusion!r} needs the towers of a dual encoder: give image_processor and text_tokenizer, or "
            "choose fusion='in_context'"
        )
    if passage_images and image_processor is generator_processor is None:
        raise InvalidInputError(
            "passage_images=True: this reader sees no images; choose an image-text-to-text generator, or give a "
            "vision tower"
        )
