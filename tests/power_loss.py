"""A disk in memory that forgets: what may be left of a folder when the power fails, by the worst that POSIX allows.

Content that was written and not flushed may be whole, cut, empty, or end in zeros. A name that was made, moved or
removed and whose folder was not flushed reaches the disk or does not, each with probability 1/2. A rename is atomic.
The journal is written by a stand-in for the `os` module of `durable_files` and by the removals of `storage`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class Content:
    """What a file holds, and what of it is safe."""

    now: bytes = b""
    safe: bytes | None = None  # None: nothing was ever flushed


@dataclass
class Disk:
    """Names and contents, as programs see them and as they are sure to be after a power cut.

    `pending` holds changes of names since the last flush of their folder: pairs of folder and {name: content or None}.
    """

    root: Path
    names: dict[str, Content] = field(default_factory=dict)
    safe_names: dict[str, Content] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    safe_folders: set[str] = field(default_factory=set)
    pending: list[tuple[str, dict[str, Content | None]]] = field(default_factory=list)

    def relative(self, path) -> str | None:
        try:
            return Path(path).relative_to(self.root).as_posix()
        except ValueError:
            return None

    def look(self, name: str) -> None:
        """Takes note of what a library has written."""
        if name in self.names:
            self.names[name].now = (self.root / name).read_bytes()

    def change(self, folder: str, names: dict[str, Content | None]) -> None:
        for name, content in names.items():
            if content is None:
                self.names.pop(name, None)
            else:
                self.names[name] = content
        self.pending.append((folder, names))

    def flush_folder(self, folder: str) -> None:
        kept = []
        for where, names in self.pending:
            if where == folder:
                apply(self.safe_names, names)
            else:
                kept.append((where, names))
        self.pending = kept
        self.safe_folders |= {name for name in self.folders if parent_of(name) == folder}

    def after_power_cut(self, random: np.random.Generator) -> dict[str, bytes]:
        """One state that may be found: names and contents."""
        names = dict(self.safe_names)
        for _, change in self.pending:
            if random.random() < 0.5:
                apply(names, change)
        folders = self.safe_folders | {name for name in self.folders if random.random() < 0.5} | {"."}
        return {
            name: survivor(content, random)
            for name, content in names.items()
            if all(parent.as_posix() in folders for parent in Path(name).parents)
        }


def apply(names: dict[str, Content], change: dict[str, Content | None]) -> None:
    for name, content in change.items():
        if content is None:
            names.pop(name, None)
        else:
            names[name] = content


def parent_of(name: str) -> str:
    return Path(name).parent.as_posix()


def survivor(content: Content, random: np.random.Generator) -> bytes:
    if content.safe == content.now:
        return content.now
    place = int(random.integers(len(content.now) + 1))
    choices = [content.now, b"", content.now[:place], content.now[:place] + bytes(len(content.now) - place)]
    if content.safe is not None:
        choices.append(content.safe)
    return choices[int(random.integers(len(choices)))]


class RecordingOs:
    """Stands in for the `os` module, and keeps a journal on a `Disk`; `each_step` is called after every change.

    Args:
        disk: The disk.
        each_step: Called with no argument.
        omit: Leaves out `"file"` or `"folder"` flushes, to see that the test notices.
    """

    def __init__(self, disk: Disk, each_step, omit: str | None = None) -> None:
        self.disk, self.each_step, self.omit = disk, each_step, omit
        self.opened: dict[int, str] = {}

    def __getattr__(self, name):
        return getattr(os, name)

    def open(self, path, flags, mode=0o777):
        new = bool(flags & os.O_CREAT) and not Path(path).exists()
        descriptor = os.open(path, flags, mode)
        name = self.disk.relative(path)
        if name is not None:
            self.opened[descriptor] = name
            if new:
                self.disk.change(parent_of(name), {name: Content()})
                self.each_step()
        return descriptor

    def write(self, descriptor, data):
        written = os.write(descriptor, data)
        self.disk.look(self.opened[descriptor])
        self.each_step()
        return written

    def fsync(self, descriptor):
        name = self.opened[descriptor]
        is_folder = (self.disk.root / name).is_dir()
        if not is_folder:
            self.disk.look(name)
            self.each_step()  # written by a library, not flushed yet
        if self.omit == ("folder" if is_folder else "file"):
            return
        if is_folder:
            self.disk.flush_folder(name)
        else:
            self.disk.names[name].safe = self.disk.names[name].now
        self.each_step()

    def close(self, descriptor):
        os.close(descriptor)
        self.opened.pop(descriptor, None)

    def mkdir(self, path, *arguments):
        os.mkdir(path, *arguments)
        self.disk.folders.add(self.disk.relative(path) or ".")
        self.each_step()

    def replace(self, source, target):
        old, new = self.disk.relative(source), self.disk.relative(target)
        self.disk.look(old)
        os.replace(source, target)
        # One change, of the folder in which the file appears: it is there or it still has its old name.
        self.disk.change(parent_of(new), {new: self.disk.names[old], old: None})
        self.each_step()

    def unlink(self, path):
        os.unlink(path)
        name = self.disk.relative(path)
        if name in self.disk.names:
            self.disk.change(parent_of(name), {name: None})
            self.each_step()
