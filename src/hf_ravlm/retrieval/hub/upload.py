"""Publishing a knowledge base: checked for licences, in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import InvalidInputError
from ...saving.commit import Destination, commit_files
from ...saving.durable import temporary_folder
from ..encoding.encoder_probe import EncoderRecord
from ..passage import first_few
from ..store.parts import PARTS, roles_of
from ..store.saving import write_state
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
    """Publishes a state; see `RavlmRetriever.push_to_hub`.

    Raises:
        InvalidInputError: If licences are missing, or `parts` are none that can be published there.
    """
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
    stored = (f"{destination.prefix}manifests/", f"{destination.prefix}objects/")
    with temporary_folder() as folder:
        version = write_state(folder, knowledge, encoder, parts).version
        is_dataset = destination.repo_type == "dataset"
        return commit_files(
            {name: version.folder / name for name in version.file_names()},
            destination,
            lambda present, new: [name for name in present if name.startswith(stored) and name not in new],
            lambda earlier: dataset_card(destination.repo_id, version, table, earlier) if is_dataset else None,
        )


def check_licences(table: pa.Table) -> None:
    """Raises `InvalidInputError` if passages say nothing about their licence."""
    licences = pc.utf8_trim_whitespace(pc.fill_null(table["licence"], ""))
    missing = table["id"].filter(pc.equal(licences, "")).to_pylist()
    if missing:
        raise InvalidInputError(
            f"{len(missing)} of {len(table)} passages say nothing about their licence: {first_few(missing, 10)}. "
            "Publishing them, or vectors made of them, without a licence leaves readers without rights. Give each a "
            "`licence`, or pass `allow_missing_licence=True` if you may publish them all the same."
        )
