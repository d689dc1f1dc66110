"""From what a user calls their knowledge (a folder of images and texts, a table, a stored base) to a retriever.

A knowledge base that is made from a source is kept in the cache of the Hub, and follows the source: what is new or
changed is encoded when it is opened again, what is gone is removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import cached_assets_path

from ..errors import InvalidInputError, KnowledgeBaseNotFoundError
from ..images import is_address
from ..saving.durable import replace_file


if TYPE_CHECKING:
    from ..retrieval import Encoder, KnowledgeBase, RavlmRetriever

logger = logging.getLogger(__name__)

KNOWLEDGE_FOLDER = "knowledge_base"
FILES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pdf": "pdf"}
_LISTING = "source.json"  # beside a kept knowledge base: the files it was made from


def open_knowledge(knowledge: Any, encoder: Encoder | None, **options: Any) -> RavlmRetriever:
    """A retriever over what the user named.

    Args:
        knowledge: A retriever, a `KnowledgeBase`, the folder of a stored one, a folder of images, texts and PDF
            files, a table (JSONL, CSV, TSV, Parquet), a PDF file, or the id of a repository on the Hub that holds one.
        encoder: Encodes passages and questions; `None` for the one that a stored knowledge base was built with.
        **options: How a source is read, see `KnowledgeBase`: `on_error`, `text_column`, ...

    Raises:
        InvalidInputError: If a source comes without an encoder, or is none of these.
        KnowledgeBaseNotFoundError: If there is no such folder, file or repository.
    """
    from ..retrieval import KnowledgeBase, RavlmRetriever  # FAISS and pyarrow come only when needed

    is_path = isinstance(knowledge, (str, os.PathLike))
    if options:
        _check_source(knowledge if is_path else None, options)
    if hasattr(knowledge, "retrieve"):
        return knowledge
    if isinstance(knowledge, KnowledgeBase):
        return RavlmRetriever.build(knowledge, _needed(encoder, "a KnowledgeBase"))
    if not is_path:
        raise InvalidInputError(
            f"knowledge= came as {type(knowledge).__name__}: expected a folder of images and texts, a table, a PDF "
            "file, the folder of a stored knowledge base, a KnowledgeBase or a retriever"
        )
    path = Path(knowledge).expanduser()
    if is_stored(path):
        return RavlmRetriever.from_pretrained(path, encoder)
    if path.exists():
        return _kept(path.resolve(), _needed(encoder, f"the source {path}"), options)
    check_place(knowledge)
    kind = "model" if encoder is None else "dataset"
    return RavlmRetriever.from_pretrained(os.fspath(knowledge), encoder, repo_type=kind)


def reading_words(options: Mapping[str, Any]) -> str:
    """What tells how a source is read, for a message that refuses it.

    >>> reading_words({"text_column": "caption", "on_error": "skip"})
    '`text_column=...` and `on_error="skip"` say how a source is read'
    """
    named = [f"`{name}=...`" if "_column" in name else f'`{name}="{value}"`' for name, value in options.items()]
    return f"{' and '.join(named)} {'says' if len(named) == 1 else 'say'} how a source is read"


def _check_source(place: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> None:
    """Refuses options of reading for what is not read, but opened as it is; `None` is an object."""
    if place is not None:
        check_place(place)
        path = Path(place).expanduser()
        if path.exists() and not is_stored(path):
            return
    named = "this" if place is None else place
    raise InvalidInputError(f"{reading_words(options)}, and {named} is a knowledge base already; leave it out")


def check_place(knowledge: str | os.PathLike[str]) -> None:
    """Refuses what is neither here nor has the form of a name on the Hub.

    Raises:
        KnowledgeBaseNotFoundError: With the path.
    """
    path = Path(knowledge).expanduser()
    is_name = os.fspath(knowledge).count("/") == 1 and not os.fspath(knowledge).startswith(("~", "/", "."))
    if not os.path.lexists(path) and (not is_name or path.suffix in FILES):
        if "milvus" in (name := os.fspath(knowledge)).lower() or is_address(name):
            from ..retrieval.indexes.index_types import MILVUS

            raise KnowledgeBaseNotFoundError(f"{name}: this is no file or folder. {MILVUS}")
        raise KnowledgeBaseNotFoundError(f"{path}: there is no such file or folder. Check the path.")


def check_encoded(knowledge: Any) -> None:
    """Refuses a source that nobody has encoded yet; asked where no encoder is named.

    Raises:
        InvalidInputError: With the encoders that could be.
    """
    if isinstance(knowledge, (str, os.PathLike)):
        path = Path(knowledge).expanduser()
        if path.exists() and not is_stored(path):
            _needed(None, f"the source {path}")


def is_stored(folder: Path) -> bool:
    """Whether a folder is a stored knowledge base, or holds one, be it damaged."""
    places = (folder, folder / KNOWLEDGE_FOLDER)
    return any(os.path.lexists(place / "CURRENT") or (place / "manifests").is_dir() for place in places)


def read_source(path: Path, options: Mapping[str, Any]) -> KnowledgeBase:
    """Reads a folder, a table or a PDF file.

    Raises:
        InvalidInputError: Its name does not say what it is, or an item cannot be read.
    """
    from ..retrieval import KnowledgeBase
    from ..retrieval.sources.text_files import plain_suffix

    if path.is_dir():
        return KnowledgeBase.from_folder(path, **options)
    kind = FILES.get(plain_suffix(path))
    if kind is None:
        raise InvalidInputError(
            f"{path}: its name does not say what it is: expected a folder, or a file that ends in {', '.join(FILES)}"
        )
    return getattr(KnowledgeBase, f"from_{kind}")(path, **options)


def _needed(encoder: Encoder | None, what: str) -> Encoder:
    if encoder is None:
        raise InvalidInputError(
            f"{what} has to be encoded: name an encoder (encoder=, --encoder), such as "
            "google/siglip2-base-patch16-224, or offline, the one that Python packages carry"
        )
    return encoder


def _kept(source: Path, encoder: Encoder, options: Mapping[str, Any]) -> RavlmRetriever:
    """The knowledge base of a source, as it was kept, brought up to date with it."""
    from ..retrieval import KnowledgeBase, RavlmRetriever
    from ..retrieval.passage import changed_rows
    from ..retrieval.store.versions import store_state

    key = json.dumps([str(source), encoder.fingerprint, sorted(map(repr, options.items()))])
    folder = Path(
        cached_assets_path(
            "hf_ravlm", namespace="knowledge", subfolder=hashlib.sha256(key.encode(errors="replace")).hexdigest()[:32]
        )
    )
    files = _listing(source)
    if not files:
        raise InvalidInputError(f"{source}: there is nothing in it that could be read. Expected images or texts.")
    listing = json.dumps(files).encode()
    note = folder / _LISTING
    was_kept = store_state(folder / KNOWLEDGE_FOLDER) == "whole"  # else a first build was killed, and goes on
    if was_kept and note.is_file() and note.read_bytes() == listing:
        return RavlmRetriever.from_pretrained(folder, encoder)
    knowledge_base = read_source(source, options)
    if was_kept:
        retriever = RavlmRetriever.from_pretrained(folder, encoder)
        gone, new = changed_rows(retriever.knowledge_base.table, knowledge_base.table)
        logger.info("%s: %d passages are new or changed, %d changed or are gone", source, len(new), len(gone))
        if gone:
            retriever.remove(gone)
        if len(new):
            retriever.add(KnowledgeBase(new))
    else:
        logger.info("%s: encoding %d passages, which are kept in %s", source, len(knowledge_base), folder)
        staging = folder / "staging"
        retriever = RavlmRetriever.build(knowledge_base, encoder, index="auto", staging=staging)
        retriever.save_pretrained(folder)
        shutil.rmtree(staging, ignore_errors=True)
    replace_file(note, listing)
    return retriever


def _listing(source: Path) -> list[list[Any]]:
    """Name, size and time of every file of a source; of a table, also of the files beside it, which it may name."""
    root = source if source.is_dir() else source.parent
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            place = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isfile(place):
                status = os.stat(place)
                found.append([os.path.relpath(place, root), status.st_size, status.st_mtime_ns])
    return found
