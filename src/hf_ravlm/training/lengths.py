"""Rows of like length share a batch, so that little of it is padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError


if TYPE_CHECKING:
    from datasets import Dataset


def with_lengths(dataset: Dataset, tokenizer: Any, columns: Sequence[str], name: str = "length") -> Dataset:
    """Adds a column with the number of tokens of each row, which the Trainer packs batches by.

    Args:
        dataset (`datasets.Dataset`): pictures in it are not touched.
        tokenizer: that of the language model for a reader, the `text_tokenizer` for the towers.
        columns (`list[str]`): whose texts count, added up; lists of texts count by their sum, what is empty as 0.
        name (`str`, *optional*, defaults to `"length"`): of the new column.

    Raises:
        InvalidInputError: If there is no such column.

    Example:

    ```python
    dataset = with_lengths(dataset, processor.tokenizer, ["question", "answer"])
    arguments = TrainingArguments(..., train_sampling_strategy="group_by_length", remove_unused_columns=False)
    ```
    """
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise InvalidInputError(f"there is no column {missing[0]!r}: the data set has {dataset.column_names}")

    def count(batch: dict[str, list[Any]]) -> dict[str, list[int]]:
        total = np.zeros(len(batch[columns[0]]), dtype=np.int64)
        for column in columns:
            texts = [_joined(value) for value in batch[column]]
            total += [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        return {name: total.tolist()}

    counted = dataset.select_columns(list(columns)).map(count, batched=True, remove_columns=list(columns))
    return dataset.add_column(name, counted[name])


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of padding in batches of rows, each padded to its longest row.

    >>> padding_share([1, 3, 3], [[0, 1], [2]])  # two of nine places are empty
    0.2222222222222222
    """
    room = sum(max(lengths[row] for row in batch) * len(batch) for batch in batches)
    return 1 - sum(lengths[row] for batch in batches for row in batch) / max(room, 1)


def _joined(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return "\n".join(map(str, value))
