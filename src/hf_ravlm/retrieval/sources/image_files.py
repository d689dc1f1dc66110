"""Which image files a table or a folder may name: those beside it, and those under folders that a user allows.

Also images in the columns of `datasets`, left encoded, so that one that is broken can be told.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError, UnsafeInputError
from ...images.sources import names_address, shortened
from ...saving.safe_paths import resolve_inside


ImageRoot = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None


def image_roots(image_root: ImageRoot) -> tuple[Path, ...]:
    """The folders of `image_root`; `InvalidInputError` if one of them is none."""
    given = [] if image_root is None else [image_root] if isinstance(image_root, (str, os.PathLike)) else image_root
    roots = tuple(Path(root).resolve() for root in given)
    for root in roots:
        if not root.is_dir():
            raise InvalidInputError(f"image_root={str(root)!r}: there is no such folder. Check the path.")
    return roots


def image_file(folder: Path, name: str, roots: Sequence[Path] = ()) -> Path:
    """The file of an image that data name: beside the data, or under one of the roots.

    A relative name is looked up beside the data first, then under each root. An absolute one, one with `..`, and a
    link are taken if they lead into the folder of the data or into a root. A name in another Unicode form is found.

    Raises:
        UnsafeInputError: If the name leads elsewhere, or is an address.
    """
    if names_address(name):
        raise UnsafeInputError(
            f"{shortened(name)}: this is an address, and what it leads to is never fetched while a source is read. "
            'Download it and name the file, or pass on_error="keep_text" to keep the text without it.'
        )
    refused: UnsafeInputError | None = None
    try:
        beside = resolve_inside(folder, name)
        if beside.exists():
            return beside
    except UnsafeInputError as error:
        refused = error
    allowed = [folder.resolve(), *roots]
    for path in _spellings((folder, *roots), name):
        with suppress(OSError, ValueError):  # a name that is none
            if path.exists() and any(path.resolve().is_relative_to(root) for root in allowed):
                return path
    if refused is None:
        return beside
    raise UnsafeInputError(f"{refused} To allow images of another folder, name it: image_root=...") from None


def _spellings(folders: Sequence[Path], name: str) -> Iterator[Path]:
    for folder in folders:
        for form in dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]):
            yield folder / form


def undecoded(dataset: Any) -> Any:
    """A data set of `datasets` whose images stay encoded; anything else comes back as it is.

    Decoding fails at the first broken image; encoded ones reach whoever has an `on_error` to decide.
    """
    if not hasattr(dataset, "cast_column"):
        return dataset
    from datasets import Image as ImageFeature

    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, ImageFeature) and feature.decode:
            dataset = dataset.cast_column(column, ImageFeature(decode=False))
    return dataset
