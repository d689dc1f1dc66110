"""Knows how a model card is written from the command line: the folder, the report, and what only people know."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ..errors import InvalidInputError
from .outcome import Outcome


_EXAMPLES = """examples:
  hf-ravlm evaluate my_model questions.jsonl reports/first
  hf-ravlm card my_model --report reports/first/report.json --licence apache-2.0 --questions "questions about birds" \\
      --command "accelerate launch train.py" --limits limits.md
"""


def add_card_command(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    """Declares `card`.

    Args:
        commands: Where it is added.
        common: Options that every command has.
    """
    parser = commands.add_parser(
        "card",
        parents=[common],
        help="write the model card of a folder from the report of an evaluation",
        description="Writes README.md into the folder of a model: figures from the report of `hf-ravlm evaluate`, the "
        "knowledge base\nwith its licences, and what you say of it. Your own words in a card that is there stay.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=card, interrupted="Stopped. The card is as it was.")
    parser.add_argument("model", metavar="MODEL", help="the folder of the model")
    parser.add_argument("--report", metavar="FILE", help="report.json of `hf-ravlm evaluate`")
    parser.add_argument("--name", help="of the model, such as its Hub id (default: the name of the folder)")
    parser.add_argument("--licence", metavar="NAME", help="of the weights, by the Hub's name, such as apache-2.0")
    parser.add_argument("--language", nargs="+", default=["en"], metavar="CODE", help="(default: en)")
    parser.add_argument("--base_model", nargs="+", default=[], metavar="ID", help="what it was made of, on the Hub")
    parser.add_argument("--dataset", nargs="+", default=[], metavar="ID", help="what it was trained on, on the Hub")
    parser.add_argument("--command", help="what trained it")
    parser.add_argument("--limits", metavar="FILE", help="a text file that says what it cannot do")
    parser.add_argument("--questions", default="questions", help="what it was evaluated on, in a few words")
    parser.add_argument("--tags", nargs="+", default=[], metavar="TAG", help="beside ours")
    parser.add_argument("--copy_to", metavar="FILE", help="write the card here, too")


def card(arguments: argparse.Namespace) -> Outcome:
    """`card`: writes and checks."""
    from ..hub.card import CardFacts, read_report, write_card

    limits = None
    if arguments.limits:
        if not Path(arguments.limits).is_file():
            raise InvalidInputError(f"--limits {arguments.limits}: there is no such file.")
        limits = Path(arguments.limits).read_text(encoding="utf-8").strip()
    facts = CardFacts(
        name=arguments.name or Path(arguments.model).resolve().name,
        licence=arguments.licence,
        language=arguments.language,
        base_models=arguments.base_model,
        datasets=arguments.dataset,
        command=arguments.command,
        limits=limits,
        questions=arguments.questions,
        tags=arguments.tags,
    )
    report = None if arguments.report is None else read_report(arguments.report)
    path, text = write_card(arguments.model, facts, report)
    files = [str(path)]
    if arguments.copy_to:
        shutil.copyfile(path, arguments.copy_to)
        files.append(arguments.copy_to)
    return Outcome({"card": text, "files": files}, "\n".join(["Written:", *(f"  {name}" for name in files)]))
