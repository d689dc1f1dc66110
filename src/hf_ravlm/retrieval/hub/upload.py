"""Publishing a knowledge base: checked for licences, in one commit."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import InvalidInputError
from ...saving.commit import Destination, commit_files
from ..encoding.encoder_probe import EncoderRecord
from ..passage import first_few
from ..store.parts import PARTS, roles_of
from ..store.saving import write_published
from ..store.state import KnowledgeState
from .card import dataset_card
from .download import check_repo_type


def publish(
    knowledge: KnowledgeState,
    encoder: EncoderRecord,
    destination: Destination,
    parts: Sequence[str] = PARTS,
    allow_missing_licence: bool = False,
) -> Any:
    """Publishes a state; see `RavlmRetriever.push_to_hub`, also for the errors."""
    check_repo_type(destination.repo_type)
    roles_of(parts)
    if destination.repo_type == "model" and set(parts) != set(PARTS):
        raise InvalidInputError(
            f"parts={tuple(parts)}: beside a model the whole knowledge base is published, so that the model can use "
            'it. Publish a part on its own with `repo_type="dataset"`.'
        )
    table = knowledge.live_table
    if not allow_missing_licence:
        check_licences(table)
    stored = tuple(f"{destination.prefix}{name}/" for name in ("manifests", "objects"))
    with tempfile.TemporaryDirectory() as folder:
        version = write_published(folder, knowledge, encoder, parts)
        is_dataset = destination.repo_type == "dataset"
        return commit_files(
            {name: version.folder / name for name in version.file_names()},
            destination,
            lambda present, new: [name for name in present if name.startswith(stored) and name not in new],
            lambda earlier: dataset_card(destination.repo_id, version, table, earlier) if is_dataset else None,
        )


def check_licences(table: pa.Table) -> None:
    """Refuses passages without a licence, for their readers would not know what they may do with them.

    Raises:
        InvalidInputError: With how many there are, and the first ids.
    """
    missing = table["id"].filter(without_licence(table)).to_pylist()
    if missing:
        raise InvalidInputError(
            f"{len(missing)} of {len(table)} passages say nothing about their licence: {first_few(missing, 10)}. "
            "Publishing them, or vectors made of them, without a licence leaves readers without rights. Give each a "
            "`licence`, or pass `allow_missing_licence=True` if you may publish them all the same."
        )


def without_licence(table: pa.Table) -> pa.ChunkedArray:
    """Which passages say nothing about their licence."""
    return pc.equal(pc.utf8_trim_whitespace(pc.fill_null(table["licence"], "")), "")
