"""Knows the words of `hf-ravlm index`: its commands, their arguments, examples, and who carries them out."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import building, care, searching


_EXAMPLES = """examples:
  hf-ravlm index build my_pictures my_knowledge --model google/siglip2-base-patch16-224
  hf-ravlm index build birds.csv my_knowledge --model my_model --columns id=key text=caption --index auto
  hf-ravlm index build enwiki.xml.bz2 wiki --model intfloat/e5-small-v2 --on_error skip --report skipped.jsonl
  hf-ravlm index add my_knowledge more_birds.jsonl --model my_model --update
  hf-ravlm index search my_knowledge "a small brown bird" --image wren.jpg --where '{"licence": "CC0-1.0"}'
  hf-ravlm index search my_knowledge "Troglodytes" --channels bm25 --json
  hf-ravlm index remove my_knowledge wren robin && hf-ravlm index compact my_knowledge --purge
  hf-ravlm index verify my_knowledge || hf-ravlm index repair my_knowledge
  hf-ravlm index push my_knowledge me/birds
"""
_RESUMES = "Stopped. Finished work is kept: the same command goes on where it stopped."
_UNCHANGED = "Stopped. What was not finished was not begun; the knowledge base is whole."


def add_index_command(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    """Declares `index` and its commands.

    Args:
        commands: Where `index` is added.
        common: Options that every command has.
    """
    index = commands.add_parser(
        "index",
        help="build, search and look after knowledge bases",
        description="Builds, searches and looks after knowledge bases: passages with text, image or both, their "
        "vectors, and an index over them, in one folder that survives interruptions.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = index.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run, summary: str, interrupted: str = _UNCHANGED) -> argparse.ArgumentParser:
        parser = actions.add_parser(
            name,
            parents=[common],
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=_examples_of(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=run, interrupted=interrupted)
        return parser

    building.add_build_arguments(
        add("build", building.build, "read a source, encode it, and save a knowledge base", _RESUMES)
    )
    building.add_add_arguments(add("add", building.add, "add passages to a knowledge base", _RESUMES))
    parser = add("remove", care.remove, "remove passages by their ids")
    _add_folder(parser)
    parser.add_argument("ids", metavar="ID", nargs="*", help="ids of passages")
    parser.add_argument("--ids_file", type=Path, metavar="FILE", help="a file with one id per line; - for the input")
    parser = add("compact", care.compact, "rewrite a knowledge base without what was removed", _RESUMES)
    _add_folder(parser)
    parser.add_argument("--purge", action="store_true", help="erase earlier generations, too: nothing removed is left")
    _add_folder(add("info", care.info, "tell what a folder holds, without reading it all"))
    _add_folder(add("verify", care.verify, "read every byte and tell what is damaged; the exit code is 1 if any is"))
    parser = add("repair", care.repair, "make a damaged knowledge base usable again")
    _add_folder(parser)
    parser.add_argument("--to", metavar="GENERATION", help="go back to this one, such as gen-00000006")
    parser.add_argument("--drop_damaged", action="store_true", help="give up passages whose files are damaged")
    searching.add_search_arguments(add("search", searching.search, "find passages by text, by image, or by both"))
    care.add_push_arguments(add("push", care.push, "publish a knowledge base on the Hub, with a card", _RESUMES))


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="the folder of the knowledge base, or of the model it lies beside"
    )


def _examples_of(name: str) -> str | None:
    lines = [line for line in _EXAMPLES.splitlines() if f" index {name} " in line]
    return "\n".join(["examples:", *lines]) if lines else None
