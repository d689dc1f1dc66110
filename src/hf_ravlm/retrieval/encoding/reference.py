"""How an encoder is loaded again: its reference, which a knowledge base keeps.

A reference is a JSON dictionary: `name` of a repository on the Hub, `revision` (the commit it was loaded from), and
`kind`, `query_prompt`, `passage_prompt` and `dtype` as of `load_encoder`. It may be a stranger's, so it is checked; it
names nothing on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...errors import InvalidInputError


ENCODER_KINDS = ("auto", "ravlm", "dual", "image", "text", "sentence-transformers", "late-interaction")

OFFLINE = {"name": "offline", "kind": "offline"}  # of the encoder whose weights Python packages carry

_NAME = re.compile(r"(?!.*(--|\.\.))[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TEXTS = ("query_prompt", "passage_prompt", "dtype")
_MOST_LETTERS = 10_000


def checked_reference(reference: Any) -> dict[str, Any] | None:
    """Returns a reference that was read from a file, with all of its entries; `None` for `None`.

    Raises:
        InvalidInputError: If it is none.

    >>> checked_reference({"name": "me/clip", "revision": "0" * 40, "kind": "dual"})["query_prompt"] is None
    True
    """
    if reference is None:
        return None
    if (
        isinstance(reference, Mapping)
        and {key: text for key, text in reference.items() if text is not None} == OFFLINE
    ):
        return {**OFFLINE, "revision": None, **dict.fromkeys(_TEXTS)}
    entries: Mapping[str, Any] = reference if isinstance(reference, Mapping) else {}
    name, revision, kind = (entries.get(key) for key in ("name", "revision", "kind"))
    texts = {key: entries.get(key) for key in _TEXTS}
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise InvalidInputError(f"it names the encoder {str(name)[:100]!r}, which is no name on the Hub")
    if not isinstance(revision, str) or _COMMIT.fullmatch(revision) is None:
        raise InvalidInputError(f"it names the encoder {name} at {str(revision)[:100]!r}, which is no commit")
    if kind not in ENCODER_KINDS:
        raise InvalidInputError(f"it names an encoder of the kind {str(kind)[:100]!r}. Known: {ENCODER_KINDS}")
    if any(text is not None and not (isinstance(text, str) and len(text) <= _MOST_LETTERS) for text in texts.values()):
        raise InvalidInputError(f"prompts and dtype of the encoder {name} are no short texts")
    return {"name": name, "revision": revision, "kind": kind, **texts}


def describe_reference(reference: Mapping[str, Any]) -> str:
    """Returns an encoder's name, commit, prompts and number type, for people.

    >>> describe_reference({"name": "me/e5", "revision": "0123456789ab", "kind": "text", "query_prompt": "query: "})
    "me/e5 at 0123456 (text, query_prompt='query: ')"
    """
    if reference["name"] == OFFLINE["name"]:
        return "offline (EfficientNet-Lite0 and all-MiniLM-L6-v2)"
    told = [str(reference["kind"])]
    told += [f"{name}={reference[name]!r}" for name in _TEXTS if reference.get(name) is not None]
    return f"{reference['name']} at {str(reference['revision'])[:7]} ({', '.join(told)})"
