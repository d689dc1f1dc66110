"""`hf-ravlm fit-policy`: one's own questions in, a policy for a system out, with what it is worth."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..evaluation.model_evaluation import read_questions
from ..pipelines.opening import open_pipeline
from ..pipelines.policy.answer_policy import NUMBERS_FILE, SETTINGS_FILE
from ..training.own_questions import check_enough, fit_policy
from .evaluating import column_names
from .outcome import Outcome, written


# Arguments that `fit_policy` takes by the same names.
_OPTIONS = (
    *("k", "num_candidates", "num_readings", "channels", "metric", "search_cost", "wrong_cost", "measured_share"),
    *("batch_size", "seed", "max_new_tokens"),
)
_THRESHOLDS = ("critic_threshold", "answer_threshold", "num_candidates", "num_readings")


def fit(arguments: argparse.Namespace) -> Outcome:
    """`fit-policy`: reads the questions, fits, measures and saves.

    Raises:
        InvalidInputError: The policy has no place, or as of `fit_policy`.
    """
    folder = _place(arguments.model, arguments.out)
    questions = read_questions(arguments.questions, column_names(arguments.columns), arguments.split)
    if arguments.limit is not None:
        questions = questions.first(arguments.limit)
    check_enough(questions)  # before a large model is loaded
    options = {name: getattr(arguments, name) for name in _OPTIONS}
    pipe = open_pipeline(arguments.model, arguments.knowledge, arguments.encoder, arguments.device)
    fitted = fit_policy(pipe, questions, **options)
    policy, report = fitted.policy, fitted.report
    policy.save_pretrained(folder)
    files = [str(folder / name) for name in (SETTINGS_FILE, NUMBERS_FILE)]
    thresholds = {name: getattr(policy, name) for name in _THRESHOLDS}
    thresholds |= {} if policy.gate is None else {"gate_threshold": policy.gate_threshold}
    record: dict[str, Any] = {
        "num_fitted": fitted.num_fitted,
        "num_measured": report.num_questions,
        "policy": {"fingerprint": policy.fingerprint, **thresholds},
        "report": report.to_dict(),
        "files": files,
    }
    lines = [
        f"Fitted on {fitted.num_fitted} questions. On {report.num_questions} others (guarded is with the policy):",
        "",
        report.to_markdown(),
        written(files),
    ]
    return Outcome(record, "\n".join(lines))


def _place(model: str, out: Path | None) -> Path:
    """Where the policy goes: into the folder of the system, unless another is named."""
    place = Path(model).expanduser() if out is None else out.expanduser()
    if out is None and not (place / "config.json").is_file() and not (place / "adapter_config.json").is_file():
        raise InvalidInputError(f"{model} is no folder here that could keep the policy. Name one: --out FOLDER.")
    if os.path.lexists(place) and not place.is_dir():
        raise InvalidInputError(f"{place} is a file. Name a folder for the policy.")
    return place
