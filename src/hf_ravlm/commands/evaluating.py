"""`hf-ravlm evaluate`: questions in, tables and replies out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..evaluation.classifier_evaluation import ClassifierEvaluation, evaluate_classifier
from ..evaluation.closed_set import answers_of_model
from ..evaluation.detector_evaluation import DetectorEvaluation, evaluate_detector
from ..evaluation.model_evaluation import evaluate_model, read_questions
from .models import of_server
from .outcome import Outcome, written


# Arguments that `evaluate_model` takes by the same names.
_OPTIONS = (
    *("arms", "knowledge", "encoder", "k", "policy", "channels", "batch_size", "device", "max_new_tokens"),
    *("split", "limit", "metrics", "seed", "distractors", "factors", "on_error", "benchmark", "images"),
)


_OF_CLASSIFIERS = ("limit", "split", "k", "batch_size", "device", "seed")
_OF_QUESTIONS = ("arms", "knowledge", "encoder", "policy", "channels", "distractors", "columns", "system_message")


def evaluate(arguments: argparse.Namespace) -> Outcome:
    """`evaluate`: asks, judges and reports.

    Raises:
        InvalidInputError: A column is not `NAME=COLUMN`, or there is no reader.
    """
    closed = arguments.task == "visual-question-answering"
    if not closed and arguments.allowed_answers is not None:
        raise InvalidInputError("--allowed_answers is of --task visual-question-answering.")
    if closed and arguments.system_message is not None:
        raise InvalidInputError("--system_message is of answers that are written, not of a closed set.")
    if arguments.task not in ("questions", "visual-question-answering"):
        return _evaluate_on_images(arguments)
    options = {name: getattr(arguments, name) for name in _OPTIONS}
    options |= of_server(arguments)
    options["columns"] = column_names(arguments.columns)
    if arguments.system_message is not None:
        options["prompt"] = {"system_message": arguments.system_message}
    if closed:
        options["allowed_answers"] = closed_set(arguments, options["columns"])
    found = evaluate_model(arguments.model, arguments.data, arguments.output, **options)
    growth = found.growth
    record: dict[str, Any] = {
        "report": found.report.to_dict(),
        "growth": None if growth is None else _with_nulls(growth.to_dict()),
        "files": [str(path) for path in found.files],
    }
    tables = [found.report.to_markdown(), *([] if growth is None else [growth.to_markdown()])]
    return Outcome(record, "\n".join([*tables, written(record["files"])]))


def _evaluate_on_images(arguments: argparse.Namespace) -> Outcome:
    """A classifier or a detector, on images whose classes are known."""
    if idle := [name for name in _OF_QUESTIONS if getattr(arguments, name)]:
        what = "a classifier" if arguments.task == "image-classification" else "a detector"
        raise InvalidInputError(f"--{idle[0]} is of questions; {what} is shown labelled images alone.")
    options = {name: getattr(arguments, name) for name in _OF_CLASSIFIERS}
    places = (arguments.model, arguments.data, arguments.output)
    found: ClassifierEvaluation | DetectorEvaluation
    if arguments.task == "image-classification":
        found = evaluate_classifier(*places, **options)
    else:
        del options["seed"]  # of intervals, which COCO's measures have none of
        found = evaluate_detector(*places, **options)
    files = [str(path) for path in found.files]
    return Outcome({"report": found.report, "files": files}, "\n".join([found.to_markdown(), "", written(files)]))


def closed_set(arguments: argparse.Namespace, columns: Mapping[str, str] | None) -> list[str]:
    """The answers to choose among: of a file, else of the model, else all that the questions have.

    Raises:
        InvalidInputError: The file cannot be read or is empty.
    """
    if arguments.allowed_answers is not None:
        try:
            lines = Path(arguments.allowed_answers).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"--allowed_answers {arguments.allowed_answers}: it cannot be read.") from error
        found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        if not found:
            raise InvalidInputError(f"--allowed_answers {arguments.allowed_answers}: there is no answer in it.")
        return found
    if (own := answers_of_model(arguments.model)) is not None:
        return own
    questions = read_questions(arguments.data, columns, arguments.split).without_images()
    return list(dict.fromkeys(question.answers[0] for question in questions if question.answers))


def column_names(pairs: Sequence[str]) -> dict[str, str] | None:
    """Turns `answers=answer` and the like into the columns of questions; `None` for none.

    Raises:
        InvalidInputError: A pair is not `NAME=COLUMN`.

    >>> column_names(["answers=answer", "id=number"])
    {'answers': 'answer', 'id': 'number'}
    """
    columns = [pair.partition("=") for pair in pairs]
    if wrong := ["".join(parts) for parts in columns if not all(parts)]:
        raise InvalidInputError(f"--columns {wrong[0]}: expected NAME=COLUMN, such as answers=answer.")
    return {name: column for name, _, column in columns} or None


def _with_nulls(record: dict[str, Any]) -> dict[str, Any]:
    """JSON values, with `None` for what is not a number.

    >>> _with_nulls({"mean": float("nan"), "size": 3})
    {'mean': None, 'size': 3}
    """
    plain: dict[str, Any] = json.loads(json.dumps(record), parse_constant=lambda name: None)
    return plain
