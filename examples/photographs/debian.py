"""Reads files out of a Debian package with nothing but Python: an `ar` archive that holds a tar archive of files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path


def files_in_package(path: str | Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The regular files of a package whose name is wanted, in the order of the package: (name, content).

    Args:
        path (`str` or `Path`): A `.deb` file.
        wanted (callable): Says of a name such as `"usr/share/wordnet/data.noun"` whether to read that file.

    Raises:
        ValueError: If the file is no Debian package, or one compressed in a way that Python cannot read (zstd).
    """
    data = _member(Path(path), "data.tar")
    try:
        archive = tarfile.open(fileobj=io.BytesIO(data))  # xz, gzip, bzip2 or plain
    except tarfile.ReadError as error:
        raise ValueError(f"{path}: its files are packed in a way that this Python cannot read ({error})") from None
    with archive:
        for entry in archive:
            name = entry.name.removeprefix("./")
            if entry.isreg() and wanted(name):
                content = archive.extractfile(entry)
                if content is not None:
                    yield name, content.read()


def _member(path: Path, prefix: str) -> bytes:
    """The first member of an `ar` archive whose name starts like that."""
    with open(path, "rb") as stream:
        if stream.read(8) != b"!<arch>\n":
            raise ValueError(f"{path} is no Debian package: it does not begin with '!<arch>'")
        while header := stream.read(60):
            name, size = header[:16].decode("latin-1").strip(), int(header[48:58])
            content = stream.read(size)
            stream.read(size % 2)
            if name.startswith(prefix):
                return content
    raise ValueError(f"{path} is no Debian package: there is no {prefix} in it")
