"""Knows the token ids of every passage, so that what was found is ready for a model without tokenising it again.

Tokenising is done once per passage instead of once per answer; afterwards a batch of evidence is a few copies out of
one flat array, padded to the longest passage in the batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InvalidInputError, KnowledgeBaseCorruptError, KnowledgeBaseMismatchError
from .ragged_array import RaggedArray, RaggedPart, write_ragged


if TYPE_CHECKING:
    from ..knowledge_base import KnowledgeBase


_ROWS_PER_CALL = 1_000

Encode = Callable[[list[str]], list[list[int]]]


class PassageTokens:
    """The token ids of all passages, by their position in the knowledge base.

    Args:
        ids: The ids of each passage, int32.
        fingerprint: Identifies the tokenizer and the length at which it cuts.
        pad_token_id: What stands behind a passage that is shorter than others in its batch.

    Example, with words for tokens:

    ```python
    >>> from hf_ravlm.retrieval import KnowledgeBase
    >>> from hf_ravlm.retrieval.passages.passage_tokens import PassageTokens
    >>> birds = KnowledgeBase.from_dicts([{"id": 1, "text": "a robin sings"}, {"id": 2, "text": "a wren"}])
    >>> words = ["<pad>", "a", "robin", "sings", "wren"]
    >>> tokens = PassageTokens.build(
    ...     birds, lambda texts: [[words.index(word) for word in text.split()] for text in texts], fingerprint="words"
    ... )
    >>> ids, mask = tokens.gather([[1, 0]])
    >>> ids.tolist()
    [[[1, 4, 0], [1, 2, 3]]]
    >>> mask.tolist()
    [[[True, True, False], [True, True, True]]]

    ```
    """

    def __init__(self, ids: RaggedArray, fingerprint: str, pad_token_id: int = 0) -> None:
        self.ids = ids
        self.fingerprint = fingerprint
        self.pad_token_id = pad_token_id

    @classmethod
    def build(
        cls,
        knowledge_base: KnowledgeBase,
        encode: Encode,
        fingerprint: str,
        *,
        pad_token_id: int = 0,
        path: str | os.PathLike[str] | None = None,
        earlier: PassageTokens | None = None,
    ) -> PassageTokens:
        """Tokenises all passages, a thousand at a time.

        Args:
            knowledge_base: The passages; one without text counts as an empty text.
            encode: Returns the token ids of texts, with the special tokens that the model expects and cut to its
                length.
            fingerprint: Identifies the tokenizer and the length at which it cuts; asked for when the ids are used.
            pad_token_id: See the class.
            path: A file to stream the ids to, which is then mapped into memory; `None` keeps them in memory, 4 bytes
                each.
            earlier: The ids of the first passages, from before the knowledge base grew; they are copied, and only the
                others are tokenised.

        Raises:
            InvalidInputError: If `encode` returns another number of texts, or ids below 0 or beyond 32 bits.
            KnowledgeBaseMismatchError: If another tokenizer made the earlier ids.
            OSError: If the disk refuses.
        """
        if earlier is not None:
            earlier.check_fingerprint(fingerprint)
            if len(earlier) > len(knowledge_base):
                raise InvalidInputError(
                    f"Earlier ids of {len(earlier)} passages came with {len(knowledge_base)} passages. Pass those of "
                    "the first passages, before others were added."
                )
        parts = _tokenised(knowledge_base, encode, earlier)
        if path is None:
            return cls(RaggedArray.from_parts(parts), fingerprint, pad_token_id)
        write_ragged(path, parts, len(knowledge_base), _description(fingerprint, pad_token_id))
        return cls.open(path, fingerprint)

    @classmethod
    def open(cls, path: str | os.PathLike[str], fingerprint: str) -> PassageTokens:
        """Maps stored ids into memory.

        Args:
            path: A file written by `write` or `build`. It must not change while it is in use.
            fingerprint: That of the tokenizer that the model uses now.

        Raises:
            FileNotFoundError: If there is no file.
            KnowledgeBaseCorruptError: If it is damaged or holds something else.
            KnowledgeBaseMismatchError: If another tokenizer made the ids.
        """
        ids, description = RaggedArray.open(path)
        if description.get("kind") != "tokens" or ids.values.dtype != np.int32 or ids.values.ndim != 1:
            raise KnowledgeBaseCorruptError(
                f"{os.fspath(path)}: expected token ids of passages, but the file holds {description.get('kind')!r}."
            )
        tokens = cls(ids, str(description.get("fingerprint")), int(description.get("pad_token_id", 0)))
        tokens.check_fingerprint(fingerprint)
        return tokens

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"PassageTokens({len(self)} passages, {len(self.ids.values)} tokens)"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Stores the ids as one safetensors file."""
        write_ragged(path, [self.ids.part()], len(self), _description(self.fingerprint, self.pad_token_id))

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raises `KnowledgeBaseMismatchError` if a tokenizer is not the one that made the ids."""
        if fingerprint != self.fingerprint:
            raise KnowledgeBaseMismatchError(
                f"The passages were tokenised by another tokenizer, or cut at another length (fingerprint "
                f"{self.fingerprint[:12]}), than the one in use (fingerprint {fingerprint[:12]}). Build them again: "
                "`PassageTokens.build(knowledge_base, encode, fingerprint)`."
            )

    def gather(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns the token ids of passages, padded at the right to the longest of them.

        Args:
            rows: Positions in the knowledge base, of shape (n, k); -1 stands for no passage.

        Returns:
            Ids of shape (n, k, L) in int64, and a mask of the same shape in bool, true at tokens.

        Raises:
            InvalidInputError: If a row is below -1 or beyond the last passage.
        """
        return self.ids.gather(rows, np.int64, self.pad_token_id)


def _tokenised(knowledge_base: KnowledgeBase, encode: Encode, earlier: PassageTokens | None) -> Iterator[RaggedPart]:
    from transformers.utils.logging import tqdm

    if earlier is not None:
        yield earlier.ids.part()
    texts = knowledge_base.table["text"]
    starts = range(0 if earlier is None else len(earlier), len(knowledge_base), _ROWS_PER_CALL)
    for start in tqdm(starts, desc="Tokenising passages") if len(starts) > 1 else starts:
        batch = [text or "" for text in texts.slice(start, _ROWS_PER_CALL).to_pylist()]
        encoded = encode(batch)
        if len(encoded) != len(batch):
            raise InvalidInputError(f"`encode` returned {len(encoded)} lists of ids for {len(batch)} texts.")
        yield _flat(encoded)


def _flat(encoded: list[list[int]]) -> RaggedPart:
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    try:
        values = np.fromiter(chain.from_iterable(encoded), np.int32, int(lengths.sum()))
    except OverflowError as error:
        raise InvalidInputError(f"A token id does not fit into 32 bits: {error}.") from error
    if values.min(initial=0) < 0:
        raise InvalidInputError(f"`encode` returned the token id {values.min()}. Expected ids from 0.")
    return RaggedPart(values, lengths)


def _description(fingerprint: str, pad_token_id: int) -> dict[str, Any]:
    return {"kind": "tokens", "fingerprint": fingerprint, "pad_token_id": pad_token_id}
