"""Passages and vectors published apart, and the check that what came together belongs together.

The manifest says what was published (`parts`), and has a digest of the passages (`input_sha256`), so that vectors are
joined with the passages they were made for, or refused.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa

from ...errors import InvalidInputError, KnowledgeBaseMismatchError, KnowledgeBaseNotFoundError
from ..passage import ids_digest, input_digest
from .manifest import Version


PARTS = ("passages", "vectors")
_ROLES = {"passages": ("passages", "tombstones"), "vectors": ("vectors", "tombstones", "probe", "index")}
_REMEDIES = {
    "passages": "If you have them, open the vectors with `RavlmRetriever.from_pretrained(..., knowledge_base=...)`.",
    "vectors": "Read it with `KnowledgeBase.from_pretrained` and encode it with `RavlmRetriever.build`.",
}


def roles_of(parts: Collection[str]) -> set[str]:
    """The roles of the files that make up some of `PARTS`.

    Raises:
        InvalidInputError: If there is none, or one is not known.

    >>> sorted(roles_of(["passages"]))
    ['passages', 'tombstones']
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown or not parts:
        raise InvalidInputError(f"parts={tuple(parts)}: expected at least one of {PARTS}.")
    return {role for part in parts for role in _ROLES[part]}


def check_parts(version: Version, needed: Sequence[str]) -> None:
    """Raises `KnowledgeBaseNotFoundError` if a part that is needed was not published."""
    published = version.manifest.get("parts", PARTS)
    missing = [part for part in needed if isinstance(published, Sequence) and part not in published]
    if missing:
        raise KnowledgeBaseNotFoundError(
            f"{version.folder}: this knowledge base was published without its {missing[0]}. {_REMEDIES[missing[0]]}"
        )


def check_made_for(version: Version, table: pa.Table) -> None:
    """Refuses the vectors of a version if they were made for other passages than those of a table.

    Raises:
        KnowledgeBaseMismatchError: If number, ids, order or (as far as the manifest says) content differ.
    """
    reason = _difference(version, table)
    if reason is not None:
        raise KnowledgeBaseMismatchError(
            f"{version.folder}: these vectors were made for other passages: {reason}. Read the passages again as "
            "the publisher of the vectors did, from the same state of the source and in the same order."
        )


def _difference(version: Version, table: pa.Table) -> str | None:
    if version.files_of("tombstones"):
        return "some of them were removed since (`compact` a knowledge base before its vectors are used alone)"
    num_vectors = sum(file.rows for file in version.files_of("vectors"))
    if num_vectors != len(table):
        return f"there are {num_vectors} vectors and {len(table)} passages"
    row = 0
    for file in version.files_of("vectors"):
        expected = file.fields.get("ids_sha256")
        if expected is not None and ids_digest(table.slice(row, file.rows)) != expected:
            return "their ids, or the order of them, differ"
        row += file.rows
    expected = version.manifest.get("input_sha256")
    if expected is not None and input_digest(table) != expected:
        return "they have the same ids, but other texts or images"
    return None
