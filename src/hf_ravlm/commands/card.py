"""`hf-ravlm card`: the model card of a folder, from the report and what only people know."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ..errors import InvalidInputError
from ..hub.card import CardFacts, read_report, write_card
from .outcome import Outcome, written


def card(arguments: argparse.Namespace) -> Outcome:
    """`card`: writes and checks.

    Raises:
        InvalidInputError: There is no such file of limits.
    """
    limits = None
    if arguments.limits:
        if not Path(arguments.limits).is_file():
            raise InvalidInputError(f"--limits {arguments.limits}: there is no such file.")
        limits = Path(arguments.limits).read_text(encoding="utf-8").strip()
    facts = CardFacts(
        name=arguments.name or Path(arguments.model).resolve().name,
        base_models=arguments.base_model,
        datasets=arguments.dataset,
        limits=limits,
        **{name: getattr(arguments, name) for name in ("licence", "language", "command", "questions", "tags")},
    )
    report = None if arguments.report is None else read_report(arguments.report)
    path, text = write_card(arguments.model, facts, report)
    files = [str(path)]
    if arguments.copy_to:
        files.append(shutil.copyfile(path, arguments.copy_to))
    return Outcome({"card": text, "files": files}, written(files))
