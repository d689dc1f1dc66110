"""Which rows the training programs of this folder read: the flags world, or a file, folder or data set of your own.

A row is an image, a question, the accepted answers, and the ids of the passages that hold them; what is not there is
left out. An image is one of the data set, or a path beside the file.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, load_dataset

from flags.world import VIEWS, load_world
from hf_ravlm.training import undecoded


logger = logging.getLogger(__name__)

CHECKPOINT = str(Path(__file__).parent / "flags" / "checkpoint")
READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass
class DataOptions:
    """Where rows come from, and which column is what."""

    dataset: str = field(
        default="flags",
        metadata={"help": "'flags', a .jsonl, .csv or .parquet file, a folder of images, or a name on the Hub"},
    )
    split: str = field(default="train", metadata={"help": "of the data set; of the flags 'train' or 'dev'"})
    eval_dataset: str | None = field(default=None, metadata={"help": "as dataset, to evaluate with"})
    eval_split: str | None = field(default=None, metadata={"help": "to evaluate with, of dataset if nothing else"})
    max_rows: int | None = field(default=None, metadata={"help": "take so many rows of each"})
    image_column: str = field(default="image", metadata={"help": "images"})
    question_column: str = field(default="question", metadata={"help": "questions; none for captioning"})
    answer_column: str | None = field(
        default=None, metadata={"help": "an answer, a caption or several answers; by default 'answers', or 'answer'"}
    )
    gold_column: str = field(default="gold_ids", metadata={"help": "ids of the passages that hold the answer"})
    negatives: str | None = field(
        default=None, metadata={"help": "what mine_hard_negatives.py wrote for these rows; train.py: see distractors"}
    )
    on_error: Literal["raise", "skip", "blank"] = field(
        default="raise", metadata={"help": "an image that cannot be used stops, costs its row, or turns grey"}
    )


def training_rows(options: DataOptions) -> Dataset:
    """The rows to learn from, with mined negatives if there are any."""
    rows = read_rows(options.dataset, options.split, options)
    if options.negatives is None:
        return rows
    mined = [json.loads(line)["negative_ids"] for line in Path(options.negatives).read_text().splitlines()]
    if len(mined) != len(rows):
        raise SystemExit(f"{options.negatives} has negatives for {len(mined)} rows, but there are {len(rows)}")
    return rows.add_column("negative_ids", mined)


def evaluation_rows(options: DataOptions) -> Dataset | None:
    """The rows to evaluate with; `None` unless a data set or a split is named for it."""
    if options.eval_dataset is None and options.eval_split is None:
        return None
    return read_rows(options.eval_dataset or options.dataset, options.eval_split or options.split, options)


def read_rows(name: str, split: str, options: DataOptions) -> Dataset:
    """Rows with the columns `image` (encoded), `question`, `answers` and `gold_ids`, as far as there are such, and
    `row_number`, by which messages call them."""
    rows = flag_rows(split) if name == "flags" else undecoded(open_dataset(name, split, options.image_column))
    usual = "answer" if "answers" not in rows.column_names and "answer" in rows.column_names else "answers"
    wanted = {
        options.image_column: "image",
        options.question_column: "question",
        options.answer_column or usual: "answers",
        options.gold_column: "gold_ids",
    }
    unknown = [column for column, key in wanted.items() if column != key and column not in rows.column_names]
    if unknown or not set(wanted) & set(rows.column_names):
        raise SystemExit(f"{name}: expected the columns {unknown or list(wanted)}, found {rows.column_names}")
    unread = [column for column in rows.column_names if column not in wanted]
    if unread:
        logger.warning(
            "%s: the columns %s are not read; --question_column and so on name those that are", name, unread
        )
    rows = rows.remove_columns(unread)
    rows = rows.rename_columns({column: wanted[column] for column in rows.column_names if wanted[column] != column})
    rows = rows if options.max_rows is None else rows.select(range(min(options.max_rows, len(rows))))
    return rows.add_column("row_number", list(range(len(rows))))


def open_dataset(name: str, split: str, image_column: str) -> Dataset:
    """A file, a folder of images (with `metadata.jsonl` for the other columns), or a data set by its name."""
    path = Path(name)
    if path.is_file():
        if path.suffix not in READERS or not path.stat().st_size:
            raise SystemExit(f"{name}: expected rows in a file that ends in one of {list(READERS)}")
        rows = load_dataset(READERS[path.suffix], data_files={split: name}, split=split)
        return rows if image_column not in rows.column_names else with_whole_paths(rows, image_column, path.parent)
    if path.is_dir():
        return load_dataset("imagefolder", data_dir=name, split=split)
    return load_dataset(name, split=split)


def with_whole_paths(rows: Dataset, column: str, folder: Path) -> Dataset:
    """Rows whose images, where they are paths, are found from anywhere."""
    if getattr(rows.features[column], "dtype", None) != "string":
        return rows
    paths = [name and str(folder / name) for name in rows[column]]
    return rows.remove_columns(column).add_column(column, paths)


def flag_rows(split: str) -> Dataset:
    """The questions about flags of the countries to learn from ("train") or to choose by ("dev").

    Each question comes with one drawing of the flag; which drawing style it is changes from question to question.
    """
    world = load_world()
    countries = {"train": world.train, "dev": world.dev}[split]
    asked = [question for question in world.questions if question["entity"] in countries]
    rows: list[dict[str, Any]] = []
    for number, question in enumerate(asked):
        entity = question["entity"]
        views = [view for view in VIEWS if (entity, view) in world.images.encoded]
        rows.append(
            {
                "image": {"bytes": world.images.encoded[entity, views[number % len(views)]], "path": None},
                "question": question["question"],
                "answers": question["answer"],
                "gold_ids": [f"{entity}/{question['type']}"],
            }
        )
    return Dataset.from_list(rows)
