"""One tokenizer, many threads: fast tokenizers keep truncation and padding of the last call in themselves.

Two threads that call one with different settings change each other's: texts come out cut or padded in the wrong way,
without an error. Every call of a tokenizer that may be shared goes through here, one at a time.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any


_LOCKS: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_OF_ALL = threading.Lock()


def tokenizer_lock(tokenizer: Any) -> threading.RLock:
    """The lock of a tokenizer; hold it around a processor that calls the tokenizer itself."""
    with _OF_ALL:
        return _LOCKS.setdefault(tokenizer, threading.RLock())


def tokenize(tokenizer: Any, texts: str | Sequence[str], **options: Any) -> Any:
    """What `tokenizer(texts, **options)` returns, while no other thread changes its settings."""
    with tokenizer_lock(tokenizer):
        return tokenizer(texts, **options)
