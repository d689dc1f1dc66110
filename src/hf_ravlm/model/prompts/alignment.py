"""Which state of the text encoder each token of the language model stands on: the one that covers its first character.

The two read a passage in vocabularies of their own, so that neither ids nor numbers of tokens agree; characters do.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from .literal import LiteralToken, literal_tokens, text_frame


def aligned_tokens(
    tokenizer: Any, text_tokenizer: Any, texts: Sequence[str], max_text_length: int, max_length: int, lower: bool
) -> list[tuple[list[int], list[int]]]:
    """Per text the language model's tokens, and the place of each among the text encoder's, its frame included.

    Args:
        tokenizer, text_tokenizer: of the language model and of the text encoder.
        max_text_length (`int`): tokens of the text encoder, as for `framed_literal_ids`; behind them nothing is read.
        max_length (`int`): tokens of the language model.
        lower (`bool`): whether the text encoder reads lower case.
    """
    head, tail = text_frame(text_tokenizer)
    room = max(max_text_length - len(head) - len(tail), 0)
    read = literal_tokens(text_tokenizer, [t.lower() for t in texts] if lower else texts, with_starts=True)
    words = literal_tokens(tokenizer, texts, with_starts=True)
    found = []
    for seen, spoken in zip(read, words, strict=True):
        places = covering(seen, spoken)
        kept = [(token.id, len(head) + place) for token, place in zip(spoken, places, strict=True) if place < room]
        found.append(([id for id, _ in kept[:max_length]], [place for _, place in kept[:max_length]]))
    return found


def covering(seen: Sequence[LiteralToken], spoken: Sequence[LiteralToken]) -> list[int]:
    """The place among tokens `seen` of the one that covers the start of each token `spoken`.

    Where a tokenizer does not tell the places of its tokens, they are taken to be spread evenly.

    >>> token = LiteralToken
    >>> covering([token(1, 0), token(2, 4)], [token(7, 0), token(7, 2), token(8, 4), token(9, 6)])
    [0, 0, 1, 1]
    >>> covering([token(1), token(2)], [token(7), token(7), token(8), token(9)])
    [0, 0, 1, 1]
    """
    starts = [token.start for token in seen if token.start is not None]
    if len(starts) < len(seen) or any(token.start is None for token in spoken):
        return [number * len(seen) // len(spoken) for number in range(len(spoken))]
    return [max(bisect_right(starts, token.start or 0) - 1, 0) for token in spoken]
