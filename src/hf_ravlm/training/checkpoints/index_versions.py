"""Vectors of an index that is rebuilt while training, one file per version, to which checkpoints refer.

The weights of a checkpoint cannot make them again: they are newer than the last refresh.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from ...errors import KnowledgeBaseCorruptError, KnowledgeBaseMismatchError
from ...retrieval import RavlmRetriever
from ...retrieval.passage import ids_digest
from ...saving.durable import make_folder, publish_file, replace_file


STATE = "index_generation.json"
FOLDER = "index_generations"


def save_index_version(run_folder: Path, checkpoint: Path, number: int, retriever: RavlmRetriever) -> None:
    """Writes the number of the index version into a checkpoint, and its vectors into the run folder, once.

    Args:
        run_folder: Output folder of the training.
        checkpoint: Folder of the checkpoint.
        number: 0 for the index that the training began with, which is not written.
        retriever: With this version.
    """
    vectors = np.ascontiguousarray(retriever.vectors)
    state = {
        "generation": number,
        "vectors_sha256": hashlib.sha256(vectors).hexdigest(),
        "ids_sha256": ids_digest(retriever.knowledge_base.table),
        "encoder_fingerprint": retriever.encoder_fingerprint,
    }
    path = _path(run_folder, number)
    if number and not path.exists():
        make_folder(path.parent)
        publish_file(lambda temporary: save_file({"vectors": vectors}, temporary), path.parent, lambda _: path)
    replace_file(checkpoint / STATE, json.dumps(state, indent=1).encode())


def load_index_version(run_folder: Path, checkpoint: Path, retriever: RavlmRetriever) -> tuple[int, RavlmRetriever]:
    """The number of the index version at a checkpoint, and a retriever with it.

    Args:
        run_folder: Output folder of the training.
        checkpoint: Folder of the checkpoint.
        retriever: The one that the training began with.

    Raises:
        KnowledgeBaseMismatchError: If the retriever has other passages or vectors than the training began with.
        KnowledgeBaseCorruptError: If the vectors of the version are missing or damaged.
    """
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_bytes())
    if state["ids_sha256"] != ids_digest(retriever.knowledge_base.table):
        raise KnowledgeBaseMismatchError(
            f"{checkpoint} was trained with other passages than the retriever holds. Resume with the knowledge base "
            "that the training began with."
        )
    number = int(state["generation"])
    if not number:
        if hashlib.sha256(np.ascontiguousarray(retriever.vectors)).hexdigest() != state["vectors_sha256"]:
            raise KnowledgeBaseMismatchError(
                f"{checkpoint} was trained with other vectors of the passages than the retriever has. Resume with the "
                "retriever that the training began with, as it was saved, not with one built by the trained model."
            )
        return 0, retriever
    path = _path(run_folder, number)
    if not path.is_file():
        raise KnowledgeBaseCorruptError(f"{path} is missing: the vectors that {checkpoint} goes on with.")
    vectors = load_file(path)["vectors"]
    if hashlib.sha256(vectors).hexdigest() != state["vectors_sha256"]:
        raise KnowledgeBaseCorruptError(
            f"{path} is damaged: its vectors are not those that {checkpoint} goes on with."
        )
    kind = retriever.index.spec["kind"]
    fingerprint = state["encoder_fingerprint"]
    return number, RavlmRetriever(retriever.knowledge_base, retriever.encoder, vectors, fingerprint, kind)


def drop_unused_versions(run_folder: Path) -> None:
    """Deletes the vectors that no checkpoint refers to any more."""
    states = [json.loads(path.read_bytes()) for path in run_folder.glob(f"checkpoint-*/{STATE}")]
    used = {_path(run_folder, int(state["generation"])) for state in states}
    for path in set((run_folder / FOLDER).glob("generation-*.safetensors")) - used:
        path.unlink()


def _path(run_folder: Path, number: int) -> Path:
    return run_folder / FOLDER / f"generation-{number:06d}.safetensors"
