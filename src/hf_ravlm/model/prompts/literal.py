"""Text from outside as token ids that are text and nothing else, with any tokenizer.

`split_special_tokens` alone does not suffice: it leaves added tokens that are not marked special (`<tool_call>`), and
a unigram vocabulary matches `</s>` as one piece. Here such words are cut after their first character and both halves
are tokenised apart; whatever control id is left after that is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ...text import clean_text, without_controls
from ...tokenization import tokenize
from .layout import SPECIAL_TOKENS


def add_marks(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, changed in place: the marks of our prompts that it lacks are added as special tokens."""
    missing = [token for token in SPECIAL_TOKENS.values() if token not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
    return tokenizer


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Every token that text must not produce: the special ones, and added ones that are longer than a character."""
    added = tokenizer.added_tokens_decoder
    words = {token.content: id for id, token in added.items() if len(token.content.strip()) > 1 or token.special}
    return words | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def literal_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], lead: str = "") -> list[list[int]]:
    """Token ids of texts, cleaned, each as literal text: no special tokens added, none produced.

    Args:
        lead (`str`, *optional*): our own blanks before every text.

    >>> literal_ids(processor.tokenizer, ["</s> <image> a kite"])  # doctest: +SKIP
    [[529, 29914, 29879, 29958, ...]]
    """
    return [[token.id for token in row] for row in literal_tokens(tokenizer, texts, lead)]


class LiteralToken(NamedTuple):
    """A token, and where in its cleaned text it starts, in characters; `None` if that is not asked for or known."""

    id: int
    start: int | None = None


def literal_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], lead: str = "", with_starts: bool = False
) -> list[list[LiteralToken]]:
    """As `literal_ids`, with the places of tokens in their text where wanted and known (of fast tokenizers)."""
    control = control_tokens(tokenizer)
    long = sorted((re.escape(word[1:]) for word in control if len(word) > 1), key=len, reverse=True)
    starts = "".join(sorted({re.escape(word[0]) for word in control if len(word) > 1}))
    # Cut before what stands behind the first character of a control word.
    cut = re.compile(f"(?<=[{starts}])(?={'|'.join(long)})") if long else None
    cleaned = [lead + clean_text(without_controls(text)) for text in texts]
    pieces = [cut.split(text) if cut else [text] for text in cleaned]
    flat = [piece for row in pieces for piece in row]
    if not flat:
        return []
    known = with_starts and tokenizer.is_fast
    options = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": known}
    encoded = tokenize(tokenizer, flat, **options)
    offsets = encoded["offset_mapping"] if known else [[(None, None)] * len(ids) for ids in encoded["input_ids"]]
    rows = iter(zip(encoded["input_ids"], offsets, strict=True))
    forbidden = set(control.values())

    def tokens_of(row: list[str]) -> Iterator[LiteralToken]:
        begins = accumulate(map(len, row), initial=0)  # of each piece in its text
        for begin, piece, (ids, spans) in zip(begins, row, rows, strict=False):
            for id, span in zip(ids, spans, strict=True):
                if id not in forbidden:
                    yield LiteralToken(id, begin + word_start(piece, *span) if known else None)

    return [list(tokens_of(row)) for row in pieces]


def word_start(text: str, start: int, end: int) -> int:
    """Where a token from `start` to `end` starts, without the blank that it may bring along.

    >>> word_start("a kite", 1, 6)
    2
    """
    token = text[start:end]
    return start + len(token) - len(token.lstrip()) if token.strip() else start


def framed_literal_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of texts as `literal_ids`, within the special tokens that the tokenizer puts around every text.

    Args:
        max_length (`int`): the longest row, special tokens included; what is longer loses its end. No row is empty: a
            text of which the tokenizer knows nothing is its token for what it does not know, or padding.
    """
    head, tail = text_frame(tokenizer)
    room = max(max_length - len(head) - len(tail), 0)
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.pad_token_id or 0
    return [[*head, *ids[:room], *tail] or [unknown] for ids in literal_ids(tokenizer, texts)]


def text_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and behind every text."""
    (probe,) = literal_ids(tokenizer, ["a"])
    framed = tokenize(tokenizer, ["a"])["input_ids"][0]
    start = next((n for n in range(len(framed)) if probe and framed[n : n + len(probe)] == probe), 0)
    return (framed[:start], framed[start + len(probe) :]) if probe else (framed, [])
