"""Knows how a model is evaluated from the command line: questions in, tables and replies out."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..errors import InvalidInputError
from .outcome import Outcome, names, one_line, positive, torch_device


_EXAMPLES = """examples:
  hf-ravlm evaluate my_model questions.jsonl reports/first
  hf-ravlm evaluate my_model vqa.parquet reports/vqa --columns answers=answer id=question_id --limit 200
  hf-ravlm evaluate my_model questions.jsonl reports/growing --distractors /usr/share/wordnet --factors 1,10
"""
_RESUMES = "Stopped. Replies are kept: the same command goes on where it stopped."


def add_evaluate_command(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    """Declares `evaluate`.

    Args:
        commands: Where it is added.
        common: Options that every command has.
    """
    parser = commands.add_parser(
        "evaluate",
        parents=[common],
        help="ask a model questions, with and without evidence, and report",
        description="Asks a model questions with and without evidence, and reports what the evidence changes. Every "
        "reply is kept in OUTPUT,\nso that a run that was stopped goes on when the same command is run again.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=evaluate, interrupted=_RESUMES)
    parser.add_argument("model", metavar="MODEL", help="a folder or Hub id of a RAVLM with its processor")
    parser.add_argument("data", metavar="DATA", help="JSONL, Parquet, CSV or JSON; the folder of a data set; a Hub id")
    parser.add_argument("output", metavar="OUTPUT", help="the folder for reports and replies")
    group = parser.add_argument_group("the questions")
    group.add_argument(
        "--columns",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=COLUMN",
        help="which column holds what: question, answers, id, image, gold_ids, kind, cluster",
    )
    group.add_argument("--split", default="test", help="of a data set that has several (default: test)")
    group.add_argument("--limit", type=positive, metavar="NUMBER", help="only the first so many questions")
    group = parser.add_argument_group("answering")
    group.add_argument(
        "--arms",
        type=names,
        metavar="NAMES",
        help="such as closed_book,retrieved,gold (default: these and guarded, where they can be)",
    )
    group.add_argument("--knowledge", metavar="FOLDER", help="the knowledge base, if it is not in that of the model")
    group.add_argument("-k", "--k", type=positive, help="passages per question (default: as the model says)")
    group.add_argument("--policy", metavar="FOLDER", help="an answer policy, if it is not in that of the model")
    group.add_argument("--channels", type=names, metavar="NAMES", help="how they are found, such as dense,bm25")
    group.add_argument("--max_new_tokens", type=positive, default=32, help="the longest answer (default: 32)")
    group.add_argument("--batch_size", type=positive, default=8, help="questions answered at once (default: 8)")
    group.add_argument(
        "--device", type=torch_device, help="such as cuda or cpu (default: the graphics card, if there is one)"
    )
    group = parser.add_argument_group("the report")
    group.add_argument(
        "--metrics",
        type=names,
        default=["exact_match", "token_f1"],
        metavar="NAMES",
        help="the first decides what is right (default: exact_match,token_f1)",
    )
    group.add_argument(
        "--seed", type=int, default=0, help="of intervals and of the places of gold passages (default: 0)"
    )
    group.add_argument(
        "--distractors", metavar="SOURCE", help="WordNet or a JSONL file: what answers bear when the base grows by it"
    )
    group.add_argument(
        "--factors", type=_factors, default=[1, 10, 100], help="how many times larger it gets (default: 1,10,100)"
    )


def evaluate(arguments: argparse.Namespace) -> Outcome:
    """`evaluate`: asks, judges and reports."""
    from ..evaluation.model_evaluation import evaluate_model

    columns = _columns(arguments.columns)
    check_model(arguments.model)
    found = evaluate_model(
        arguments.model,
        arguments.data,
        arguments.output,
        arms=arguments.arms,
        columns=columns,
        split=arguments.split,
        limit=arguments.limit,
        metrics=arguments.metrics,
        knowledge=arguments.knowledge,
        k=arguments.k,
        policy=arguments.policy,
        channels=arguments.channels,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        device=arguments.device,
        distractors=arguments.distractors,
        factors=arguments.factors,
        max_new_tokens=arguments.max_new_tokens,
    )
    growth = found.growth
    record: dict[str, Any] = {
        "report": found.report.to_dict(),
        "growth": None if growth is None else _with_nulls(growth.to_dict()),
        "files": [str(path) for path in found.files],
    }
    tables = [found.report.to_markdown(), *([] if growth is None else [growth.to_markdown()])]
    return Outcome(record, "\n".join([*tables, "Written:", *(f"  {path}" for path in record["files"])]))


def check_model(name: str) -> None:
    """Refuses what is no RAVLM by its settings alone: loading another model as one would make it up at full size."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{name}: there is no model that can be loaded. Expected the folder or Hub id of a RAVLM. "
            f"({one_line(str(error))[:300]})"
        ) from error
    if config.model_type != "ravlm":
        raise InvalidInputError(
            f"{name}: this is a model of the type {config.model_type!r}. Expected a RAVLM with a generator, as "
            "`RavlmForConditionalGeneration.save_pretrained` writes it."
        )


def _columns(pairs: list[str]) -> dict[str, str] | None:
    split = [pair.partition("=") for pair in pairs]
    wrong = [pair for pair, parts in zip(pairs, split, strict=True) if not all(parts)]
    if wrong:
        raise InvalidInputError(f"--columns {wrong[0]}: expected NAME=COLUMN, such as answers=answer.")
    return {name: column for name, _, column in split} or None


def _factors(text: str) -> list[int]:
    return [positive(name) for name in names(text)]


def _with_nulls(record: dict[str, Any]) -> dict[str, Any]:
    """JSON values, with `None` for what is not a number.

    >>> _with_nulls({"mean": float("nan"), "size": 3})
    {'mean': None, 'size': 3}
    """
    plain: dict[str, Any] = json.loads(json.dumps(record), parse_constant=lambda name: None)
    return plain
