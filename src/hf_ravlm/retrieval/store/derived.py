"""Knows which stored files were made from others, and for which rows they still hold.

An index is made from vectors; lexical counts, token ids and token states are made from passages. Such a file names the
files it was made from. It covers their rows as long as a generation lists them in the same place, is ignored after
they changed, and may always be missing: whoever needs it makes it again.

    attach_derived(folder, NewFile("tokens", "safetensors", rows, write), made_from=generation.files_of("passages"))
    ...
    for derived in derived_files(generation, "tokens"):
        verify_file(derived.file)  # and read derived.file.path: rows derived.first_row ... + derived.file.rows
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from ...errors import InvalidInputError, KnowledgeBaseMismatchError
from .manifest import Generation, StoredFile
from .versions import Commit, NewFile, update_generation


# These are what was given; everything else in a store is derived or says something about it.
SOURCE_ROLES = ("passages", "vectors", "tombstones", "probe")
_MANIFEST_KEYS = ("format", "generation", "parent", "files")


class DerivedFile(NamedTuple):
    """A derived file and the first of the rows that it covers; `file.rows` says how many there are."""

    file: StoredFile
    first_row: int


def derived_files(generation: Generation, role: str) -> list[DerivedFile]:
    """Returns the files with a derived role that fit what they were made from, in the order of rows.

    Rows are those of the stored table, removed passages included: see `LivingKnowledge.live_rows`. The files have
    not been verified.

    Args:
        generation: As `read_generation` returns it, with all its files.
        role: Such as `"index"`.
    """
    fitting = [
        DerivedFile(file, file.fields["first_row"]) for file in generation.files_of(role) if _fits(generation, file)
    ]
    return sorted(fitting, key=lambda derived: derived.first_row)


def attach_derived(
    folder: str | os.PathLike[str],
    new_file: NewFile,
    made_from: Sequence[StoredFile],
    lock_timeout_seconds: float = 60.0,
) -> Generation:
    """Stores a derived file in a generation of its own; passages and vectors stay as they are.

    A file of the same role that covers some of the same rows is replaced.

    Args:
        folder: The folder of the knowledge base.
        new_file: The file; its role is none of `SOURCE_ROLES`, and its rows are those of `made_from`.
        made_from: The passage files, or the vector files, that it was made from: consecutive ones of a generation.
        lock_timeout_seconds: How long to wait for another writer.

    Returns:
        The new generation.

    Raises:
        InvalidInputError: If the role is not a derived one, or the rows do not fit.
        KnowledgeBaseMismatchError: If the knowledge base no longer holds those files in that place.
        KnowledgeBaseLockedError, KnowledgeBaseCorruptError, KnowledgeBaseNotFoundError, OSError: See
            `update_generation`.
    """
    num_rows = sum(file.rows for file in made_from)
    if new_file.role in SOURCE_ROLES or new_file.rows != num_rows or num_rows == 0:
        raise InvalidInputError(
            f"A file with the role {new_file.role!r} and {new_file.rows} rows cannot be attached to {num_rows} rows. "
            f"Expected as many rows, at least one, and another role than {', '.join(SOURCE_ROLES)}."
        )

    def plan(current: Generation) -> Commit:
        role, sources = made_from[0].role, [file.sha256 for file in made_from]
        first = _first_row(current, made_from[0])
        stop = first + num_rows
        if _run_of(current, role, first, num_rows) != sources:
            raise KnowledgeBaseMismatchError(
                f"{folder}: the knowledge base has changed since the {new_file.role} were made from it. Make them "
                "again from its current generation."
            )
        replaced = [
            derived.file
            for derived in derived_files(current, new_file.role)
            if derived.first_row < stop and first < derived.first_row + derived.file.rows
        ]
        kept = [file for file in current.files if not any(file is other for other in replaced)]
        fields = {**new_file.fields, "made_from": role, "first_row": first, "built_from": sources}
        return Commit(kept_fields(current), [*kept, new_file._replace(fields=fields)])

    return update_generation(folder, plan, lock_timeout_seconds)


def kept_fields(generation: Generation) -> dict[str, Any]:
    """The fields of a manifest that belong to the knowledge and not to one generation."""
    return {name: value for name, value in generation.manifest.items() if name not in _MANIFEST_KEYS}


def _first_row(generation: Generation, source: StoredFile) -> int:
    row = 0
    for file in generation.files_of(source.role):
        if file.sha256 == source.sha256:
            break
        row += file.rows
    return row


def _fits(generation: Generation, file: StoredFile) -> bool:
    source, first, shas = (file.fields.get(name) for name in ("made_from", "first_row", "built_from"))
    if not isinstance(source, str) or not isinstance(first, int) or not isinstance(shas, list):
        return False
    return _run_of(generation, source, first, file.rows) == shas


def _run_of(generation: Generation, role: str, first: int, num_rows: int) -> list[str]:
    """The checksums of the files of a role that hold exactly some rows; empty if no files begin and end there."""
    row = 0
    run: list[StoredFile] = []
    for file in generation.files_of(role):
        if row == first or (run and row + file.rows <= first + num_rows):
            run.append(file)
        row += file.rows
    return [file.sha256 for file in run] if sum(file.rows for file in run) == num_rows else []
