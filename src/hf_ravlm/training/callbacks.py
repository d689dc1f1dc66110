"""Callbacks that renew the index or the hard negatives every so many steps."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..errors import InvalidInputError
from ..retrieval import KnowledgeBase, RavlmRetriever
from ..retrieval.encoding.encoders import Encoder
from ..saving.durable import replace_file
from .negatives.hard_negatives import HardNegatives, mine_hard_negatives


logger = logging.getLogger(__name__)

_NEGATIVES = "hard_negatives.json"


class RefreshIndexCallback(TrainerCallback):
    """Calls `refresh` every so many steps, before evaluation and saving, and once at the end of the training.

    Args:
        every: Steps; `None` for the end alone.
        refresh: What to call.
    """

    def __init__(self, every: int | None, refresh: Callable[[], None]) -> None:
        self.every, self.refresh = every, refresh

    def on_step_end(self, args, state, control, **kwargs):
        """Refreshes every `every` steps; the last time is `on_train_end`."""
        if self.every is not None and state.global_step % self.every == 0 and state.global_step < state.max_steps:
            self.refresh()

    def on_train_end(self, args, state, control, **kwargs):
        """Refreshes, so that model and index fit together."""
        self.refresh()


class MineNegativesCallback(TrainerCallback):
    """Mines hard negatives anew every so many steps, with the vectors of the model as it is then.

    Checkpoints keep the negatives. Processes share the work through files in the output folder.

    Args:
        knowledge_base: The passages.
        encoder: Of the model that is trained.
        rows: What to mine for, see `mine_hard_negatives`.
        every: Steps between two minings.
        use: Called with one `HardNegatives` per row, in the training's own process: workers of a data loader hold
            copies of the data set, which it does not change.
        warmup_steps: No mining before this step; negatives of an untrained model are random.
        num_negatives: As in `mine_hard_negatives`.
        **options: Other arguments of `mine_hard_negatives`.

    Raises:
        InvalidInputError: If `every` is below 1.

    Example:

    ```python
    callback = MineNegativesCallback(knowledge_base, RavlmEncoder(model, processor), rows, every=500, use=dataset.set)
    RavlmPreTrainer(model, args, train_dataset=dataset, data_collator=collator, callbacks=[callback]).train()
    ```
    """

    def __init__(
        self,
        knowledge_base: KnowledgeBase,
        encoder: Encoder,
        rows: Any,
        every: int,
        use: Callable[[Sequence[HardNegatives]], None],
        warmup_steps: int = 0,
        num_negatives: int = 8,
        **options: Any,
    ) -> None:
        if every < 1:
            raise InvalidInputError(f"every={every}: expected at least 1 step.")
        self.knowledge_base, self.encoder, self.rows = knowledge_base, encoder, rows
        self.every, self.use, self.warmup_steps = every, use, warmup_steps
        self.num_negatives, self.options = num_negatives, options
        self.negatives: list[HardNegatives] | None = None
        self._shared: Path | None = None  # files of the last mining

    def on_step_end(self, args, state, control, **kwargs):
        """Mines every `every` steps after the warm-up, but for the last step."""
        step = state.global_step
        if step % self.every or step < self.warmup_steps or step >= state.max_steps:
            return
        folder = Path(args.output_dir) / "mining" / f"step-{step}" if args.world_size > 1 else None
        retriever = RavlmRetriever.build(
            self.knowledge_base, self.encoder, staging=None if folder is None else folder / "vectors"
        )
        self.negatives = mine_hard_negatives(
            retriever,
            self.rows,
            self.num_negatives,
            cache=folder,
            process=(args.process_index, args.world_size),
            **self.options,
        )
        logger.info("Mined hard negatives of %d rows at step %d.", len(self.negatives), step)
        self.use(self.negatives)
        if args.process_index == 0 and self._shared is not None:  # every process has long read it
            shutil.rmtree(self._shared, ignore_errors=True)
        self._shared = folder

    def save_state(self, folder: Path) -> None:
        """Writes the negatives into a checkpoint."""
        if self.negatives is not None:
            replace_file(folder / _NEGATIVES, json.dumps(self.negatives).encode())

    def load_state(self, folder: Path) -> None:
        """Reads the negatives of a checkpoint and hands them to `use`."""
        if (folder / _NEGATIVES).is_file():
            self.negatives = [HardNegatives(*row) for row in json.loads((folder / _NEGATIVES).read_bytes())]
            self.use(self.negatives)
