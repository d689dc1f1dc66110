"""The current state of the knowledge: in memory, and in the folder where every change is committed.

A search takes the state once and keeps it. Writers of one process wait for each other here, those of several at the
lock of the folder.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...errors import storage_errors
from ..encoding.corpus_shards import remove_leftovers
from ..encoding.encoder_probe import EncoderRecord
from ..passage import input_digest
from .loading import OpenOptions, open_state, read_state
from .saving import SavedState, write_change, write_replacement, write_state
from .state import KnowledgeState
from .versions import remove_old_versions


STAGING = "staging"
_MIN_STAGED_PASSAGES = 1_000


class CurrentKnowledge:
    """The current state, and the folder that it is committed to, if any.

    Args:
        knowledge: The state.
        stored: The state as it was read from a folder; `None` if it is in memory alone.
        options: How newer versions of that folder are opened.

    The attributes `knowledge` and `stored` follow every change; each is replaced as a whole.
    """

    def __init__(
        self, knowledge: KnowledgeState, stored: SavedState | None = None, options: OpenOptions | None = None
    ) -> None:
        self.knowledge = knowledge
        self.stored = stored
        self._options = OpenOptions() if options is None else options
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def change(self, change: Callable[[KnowledgeState], KnowledgeState]) -> None:
        """Makes the next state of the newest one, and commits it if there is a folder.

        `change` is called once, under the lock of the folder.
        """
        with self._lock:
            if self.stored is None:
                self.knowledge = change(self.knowledge)
            else:
                reload = partial(read_state, options=self._options, earlier=self.stored)
                self._adopt(write_change(self.stored, change, reload))
                remove_leftovers(self.stored.version.folder / STAGING)

    def newer(self) -> SavedState | None:
        """The state that the folder holds, if somebody else has changed it; it is not adopted yet."""
        with self._lock:
            if self.stored is None:
                return None
            state = open_state(self.stored.version.folder, self._options, self.stored)
            return None if state is self.stored else state

    def adopt(self, state: SavedState) -> None:
        """Takes over a state that `newer` returned, unless a change has brought a later one meanwhile."""
        with self._lock:
            if self.stored is None or state.version.number > self.stored.version.number:
                self._adopt(state)

    def save(self, folder: Path, encoder: EncoderRecord, overwrite: bool = True) -> None:
        """Writes all files of the state (the newest one of the same folder) anew, and commits later changes there.

        Raises:
            InvalidInputError: If there is another knowledge base, and `overwrite` is not.
        """
        folder = folder.absolute()
        with self._lock, storage_errors(folder):
            store = None if self.stored is None else self.stored.version.folder
            is_same = store is not None and (folder / "CURRENT").exists() and store.exists() and folder.samefile(store)
            if self.stored is not None and is_same:
                self.stored = replace(self.stored, encoder=encoder)
                self.change(lambda knowledge: knowledge.renewed())
            else:
                self._adopt(write_state(folder, self.knowledge, encoder, overwrite=overwrite))
                remove_leftovers(folder / STAGING)

    def replace(self, knowledge: KnowledgeState, encoder: EncoderRecord) -> bool:
        """Puts the same passages with the vectors of another encoder in the place of the state, in one commit.

        Returns:
            Whether it did: not if the state is no longer the one that `knowledge` was made of, row by row.

        Raises:
            KnowledgeBaseLockedError, OSError: See `write_replacement`.
        """
        with self._lock:
            if not knowledge.table.equals(self.knowledge.live_table):
                return False
            if self.stored is None:
                self.knowledge = knowledge
                return True
            state = write_replacement(self.stored, knowledge, encoder)
            if state is not None:
                self._adopt(state)
            return state is not None

    @contextmanager
    def staging(self, table: pa.Table) -> Iterator[Path | None]:
        """Gives a folder for the half-made vectors of new passages, and removes it once they are committed.

        It stays after an error or a kill, for the next attempt. `None` for few passages, or knowledge in memory alone.
        """
        if self.stored is None or len(table) < _MIN_STAGED_PASSAGES:
            yield None
            return
        folder = self.stored.version.folder / STAGING / f"add-{input_digest(table)[:20]}"
        yield folder
        shutil.rmtree(folder, ignore_errors=True)

    def follow(self) -> None:
        """Takes over the state that the folder holds."""
        state = self.newer()
        if state is not None:
            self.adopt(state)

    def purge(self, timeout_seconds: float, follow: Callable[[], object] | None = None) -> None:
        """Removes earlier versions and half-made work from the folder; see `remove_old_versions`.

        `follow`, by default the method, takes over what others commit meanwhile.
        """
        with self._lock:
            if self.stored is not None:
                folder = self.stored.version.folder
                shutil.rmtree(folder / STAGING, ignore_errors=True)
                remove_old_versions(folder, timeout_seconds, follow or self.follow)

    def _adopt(self, state: SavedState) -> None:
        before, self.stored, self.knowledge = self.stored, state, state.knowledge
        if before is not None and before.version is not state.version:
            before.version.lease.release()
