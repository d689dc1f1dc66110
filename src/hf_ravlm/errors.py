"""The errors of the project: what came, what was expected, what to do. All that is raised on purpose is here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class RavlmError(Exception):
    """Base of every error that `hf_ravlm` raises on purpose."""

    def __str__(self) -> str:
        r"""The message; what no terminal can show, such as a byte of a file name that is no text, as `\udcff`."""
        return super().__str__().encode("utf-8", "backslashreplace").decode()


class UnsafeInputError(RavlmError, ValueError):
    """An input cannot be used safely: a broken or oversized image, a path out of its folder, a vector with NaN."""


class InvalidInputError(RavlmError, ValueError):
    """An argument is wrong: an empty question, duplicate ids, `k < 1`, a passage without text and image."""


class KnowledgeBaseMismatchError(RavlmError, ValueError):
    """The knowledge base was built by another encoder than the one that now asks it."""


class KnowledgeBaseCorruptError(RavlmError, OSError):
    """A stored knowledge base is damaged or incomplete."""


class KnowledgeBaseLockedError(RavlmError, OSError):
    """Another process is writing this knowledge base."""


class KnowledgeBaseNotFoundError(RavlmError, FileNotFoundError):
    """There is no stored knowledge base where one was expected."""


class KnowledgeBaseIncompleteError(KnowledgeBaseNotFoundError, KnowledgeBaseCorruptError):
    """A knowledge base that cannot be read yet, or no longer: its build was stopped, or its file CURRENT is gone."""


class HubUnavailableError(RavlmError, ConnectionError):
    """The Hub cannot be reached, or refused to answer; what lies on this machine is as it was."""


class RemoteServerError(RavlmError, ConnectionError):
    """A server that reads or encodes for us cannot be reached, is too slow, broke off, or answers nonsense."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """What is refused inside is named: of a batch, the one that cannot be used.

    >>> with naming("the image of question 3"):
    ...     raise UnsafeInputError("it is empty.")
    Traceback (most recent call last):
    hf_ravlm.errors.UnsafeInputError: the image of question 3: it is empty.
    """
    try:
        yield
    except (InvalidInputError, UnsafeInputError) as error:
        raise type(error)(f"{what}: {error}") from error
