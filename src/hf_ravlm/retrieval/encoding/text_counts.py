"""What an encoder could not read of its texts: those that it cut, and those whose words its vocabulary lacks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...tokenization import tokenize


logger = logging.getLogger(__name__)


@dataclass
class TextCounts:
    """How many texts an encoder has read so far.

    Attributes:
        texts: All of them.
        cut: Those that were longer than `limit` and lost their end.
        unknown: Those of which more than half of the tokens stand for no known piece of text.
        limit: The most tokens of a text; `None` where the encoder does not tell.
    """

    texts: int = 0
    cut: int = 0
    unknown: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def add(self, texts: int, cut: int, unknown: int) -> None:
        """Counts some more."""
        with self._lock:
            self.texts += texts
            self.cut += cut
            self.unknown += unknown

    def since(self, earlier: TextCounts) -> TextCounts:
        """What came after an earlier copy.

        >>> TextCounts(10, 3, 0, 77).since(TextCounts(4, 1, 0, 77))
        TextCounts(texts=6, cut=2, unknown=0, limit=77)
        """
        change = {name: getattr(self, name) - getattr(earlier, name) for name in ("texts", "cut", "unknown")}
        return TextCounts(**change, limit=self.limit)

    def note(self, tokenizer: Any, tokenized: Any, texts: Sequence[str]) -> None:
        """Counts what a tokenizer that was told to cut at `limit` returned for texts."""
        encodings = getattr(tokenized, "encodings", None)
        if encodings:
            cut = sum(bool(encoding.overflowing) for encoding in encodings)
        else:  # a tokenizer in Python does not say what it cut
            full = [row for row, ids in enumerate(tokenized["input_ids"]) if len(ids) == self.limit]
            whole = tokenize(tokenizer, [texts[row] for row in full], verbose=False)["input_ids"] if full else []
            cut = sum(len(ids) > (self.limit or 0) for ids in whole)
        self.add(len(texts), cut, sum(map(_is_unknown(tokenizer), tokenized["input_ids"])))


def counts_of(encoder: Any) -> TextCounts | None:
    """A copy of the counts of an encoder as they are now; `None` for one that does not count."""
    counts = getattr(encoder, "text_counts", None)
    return replace(counts) if isinstance(counts, TextCounts) else None


def warn_of_passages(encoder: Any, earlier: TextCounts | None) -> None:
    """Says once, after passages were encoded, how many of their texts were cut or not understood since `earlier`."""
    now = counts_of(encoder)
    if now is None or earlier is None:
        return
    new = now.since(earlier)
    if new.cut:
        logger.warning(
            "%s of %s texts (%.0f %%) are longer than the %s tokens that the encoder %r reads: their ends were not "
            "encoded and are found by words alone. Cut them into passages with `Chunking`, or choose an encoder for "
            "longer texts.",
            *(f"{new.cut:,}", f"{new.texts:,}", 100 * new.cut / new.texts, new.limit, encoder.name),
        )
    if new.unknown:
        logger.warning(
            "Of %s of %s texts (%.0f %%) the encoder %r does not know most words: its vectors of them mean little. "
            "Choose an encoder for their language.",
            *(f"{new.unknown:,}", f"{new.texts:,}", 100 * new.unknown / new.texts, encoder.name),
        )


def warn_of_queries(encoder: Any, earlier: TextCounts | None) -> None:
    """Says that the words of queries are not known to an encoder: it would find the same passages for all of them."""
    now = counts_of(encoder)
    if now is None or earlier is None:
        return
    new = now.since(earlier)
    if new.unknown:
        logger.warning(
            "The encoder %r does not know most words of %d of %d queries, as of a language that it was not trained "
            "for: what it finds for them means little. Choose an encoder for this language, or search by words: "
            '`channels=("bm25",)`.',
            *(encoder.name, new.unknown, new.texts),
        )


def _is_unknown(tokenizer: Any) -> Any:
    """Whether more than half of some token ids, marks left out, are the tokenizer's sign for what it does not know."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    marks = set(getattr(tokenizer, "all_special_ids", ())) - {unknown}
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    if unknown is None or unknown in [getattr(tokenizer, name, None) for name in names]:
        return lambda ids: False  # GPT-2's sign for the unknown is also its end of text

    def is_unknown(ids: Any) -> bool:
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        words = [token for token in ids if token not in marks]
        return 2 * words.count(unknown) > len(words)

    return is_unknown
