"""The words of `hf-ravlm index`: what builds, searches and looks after knowledge bases."""

from __future__ import annotations

import argparse

from .argument_types import CHANNEL_NAMES, bytes_of, channels, path, positive
from .arguments import (
    FORMATS,
    INDEX_KINDS,
    PARTS,
    Commands,
    add_argument,
    add_columns,
    add_encoder,
    add_on_error,
    switch,
)


_RESUMES = "Stopped. Finished work is kept: the same command goes on where it stopped."
_UNCHANGED = "Stopped. What was not finished was not begun; the knowledge base is whole."

INDEX_EXAMPLES = """examples:
  hf-ravlm index build my_pictures my_knowledge --model google/siglip2-base-patch16-224
  hf-ravlm index build manuals my_knowledge --model google/siglip2-base-patch16-224 --on_error skip
  hf-ravlm index build birds.csv my_knowledge --model my_model --columns id=key text=caption --index auto
  hf-ravlm index build enwiki.xml.bz2 wiki --model intfloat/e5-small-v2 --on_error skip --report skipped.jsonl
  hf-ravlm index build shop.csv shop --model my_model --numeric_columns price --image_root photos --on_error keep_text
  hf-ravlm index build my_knowledge my_knowledge --model google/siglip2-base-patch16-224 --overwrite
  hf-ravlm index add my_knowledge more_birds.jsonl --model my_model --update
  hf-ravlm index search my_knowledge "a small brown bird" --image wren.jpg --where '{"licence": "CC0-1.0"}'
  hf-ravlm index search my_knowledge "Troglodytes" --channels bm25 --json
  hf-ravlm index remove my_knowledge wren robin && hf-ravlm index compact my_knowledge --purge
  hf-ravlm index verify my_knowledge || hf-ravlm index repair my_knowledge
  hf-ravlm index push my_knowledge me/birds
"""


def add_index(commands: Commands) -> None:
    index = commands.actions.add_parser(
        "index",
        help="build, search and look after knowledge bases",
        description="Builds, searches and looks after knowledge bases: passages with text, image or both, their "
        "vectors, and an index over them, in one folder that survives interruptions.",
        epilog=INDEX_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = Commands(index)

    def add(name: str, module: str, summary: str, interrupted: str = _UNCHANGED) -> argparse.ArgumentParser:
        lines = [line for line in INDEX_EXAMPLES.splitlines() if f" index {name} " in line]
        examples = "\n".join(["examples:", *lines]) if lines else None
        description = f"{summary[0].upper()}{summary[1:]}."
        return actions.add(name, f"{module}.{name}", summary, description, examples, interrupted)

    _add_build_options(add("build", "building", "read a source, encode it, and save a knowledge base", _RESUMES))
    parser = add("add", "building", "add passages to a knowledge base", _RESUMES)
    add_argument(parser, "folder", "the folder of the knowledge base")
    _add_source(parser)
    add_encoder(parser)
    switch(
        parser, "--update", "change what is known by the same ids instead of refusing it; what a row leaves open stays"
    )
    add_argument(parser, "--batch_size")
    parser = add("remove", "care", "remove passages by their ids")
    add_argument(parser, "folder")
    add_argument(parser, "ids", "ids of passages", metavar="ID", nargs="*")
    add_argument(parser, "--ids_file", "a file with one id per line; - for the input", type=path, metavar="FILE")
    parser = add("compact", "care", "rewrite a knowledge base without what was removed", _RESUMES)
    add_argument(parser, "folder")
    switch(parser, "--purge", "erase earlier versions, too: nothing removed is left")
    add_argument(add("info", "care", "tell what a folder holds, without reading it all"), "folder")
    add_argument(
        add("verify", "care", "read every byte and tell what is damaged; the exit code is 1 if any is"), "folder"
    )
    parser = add("repair", "care", "make a damaged knowledge base usable again")
    add_argument(parser, "folder")
    add_argument(parser, "--to", "go back to this one, such as gen-00000006", metavar="VERSION")
    switch(parser, "--drop_damaged", "give up passages whose files are damaged")
    _add_search_options(add("search", "searching", "find passages by text, by image, or by both"))
    _add_push_options(add("push", "care", "publish a knowledge base on the Hub, with a card", _RESUMES))


def _add_source(parser: argparse.ArgumentParser) -> None:
    """The source of passages and how it is read."""
    add_argument(parser, "source", "a file or folder with the passages, see --format", metavar="SOURCE", type=path)
    group = parser.add_argument_group("reading the source")
    add_argument(
        group,
        "--format --kind",
        "what the source is; by default its name tells: a folder of images, texts and PDF files (or of WordNet), "
        ".jsonl, .csv, .tsv, .parquet, .pdf, .xml (a dump of Wikipedia), conceptnet-assertions...; tables and dumps "
        "compressed or not; or a stored knowledge base, whose passages are encoded anew",
        choices=FORMATS,
    )
    add_columns(group)
    add_argument(group, "--delimiter", "of a CSV file (default: as its header has it)", metavar="CHARACTER")
    numbers = "columns whose values are numbers, for --where with min and max"
    add_argument(group, "--numeric_columns", numbers, nargs="+", metavar="COLUMN")
    roots = "folders outside the source that image paths and links may lead to"
    add_argument(group, "--image_root", roots, nargs="+", metavar="FOLDER")
    pages = "what PDF files become: pieces of text, images of pages and figures, or both (default)"
    add_argument(group, "--pages", pages, choices=["both", "text", "image"])
    add_argument(group, "--licence", "of passages that state none, such as CC-BY-4.0", metavar="NAME")
    add_argument(group, "--chunk", "cut texts into chunks of so many characters", type=positive, metavar="LENGTH")
    add_argument(
        group, "--chunk_overlap --overlap", "repeated from chunk to chunk", type=int, default=0, metavar="LENGTH"
    )
    add_on_error(group)
    add_argument(group, "--report", "list the items skipped in this file (JSON lines)", type=path, metavar="FILE")
    add_argument(group, "--parts_of_speech", "of WordNet: noun verb adjective adverb", nargs="+", metavar="NAME")
    add_argument(group, "--languages", "of ConceptNet; English by default", nargs="+", metavar="CODE")
    add_argument(group, "--relations", "of ConceptNet, such as IsA UsedFor", nargs="+", metavar="NAME")
    add_argument(group, "--min_weight", "of ConceptNet's assertions", type=float, metavar="WEIGHT")
    add_argument(group, "--max_articles", "of Wikipedia", type=int, metavar="NUMBER")


def _add_build_options(parser: argparse.ArgumentParser) -> None:
    _add_source(parser)
    add_argument(parser, "out", "the folder for the knowledge base; a model's will do", metavar="OUT", type=path)
    add_encoder(parser, required=True)
    group = parser.add_argument_group("building")
    add_argument(group, "--index", "auto: by size, memory and recall (default)", choices=INDEX_KINDS, default="auto")
    add_argument(group, "--memory_budget", "memory for searching, such as 2GB", type=bytes_of, metavar="SIZE")
    add_argument(group, "--recall", "share of the exact ten best to find (default: 0.95)", type=float, default=0.95)
    key = "what a passage is about, such as species: searches find that first, and then passages about it"
    add_argument(group, "--group_by", key, metavar="KEY")
    parts = ["both", "text", "image"]
    add_argument(
        group, "--group_query", "the part of a question that finds it (default: both)", choices=parts, default="both"
    )
    add_argument(group, "--batch_size")
    staging = "for unfinished work, which is removed at the end (default: in OUT)"
    add_argument(group, "--staging", staging, type=path, metavar="FOLDER")
    switch(group, "--overwrite", "replace the knowledge base in OUT, in one step")


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    add_argument(parser, "folder", "the folder of the knowledge base, or its id on the Hub", type=None)
    add_argument(parser, "text", "the question", metavar="TEXT", nargs="?")
    add_argument(parser, "--image", "an image to ask with", type=path, metavar="FILE")
    part = "the part of the image to ask with: left edge, upper edge, width and height, in pixels or in shares up to 1"
    add_argument(parser, "--region", part, nargs=4, type=float, metavar="NUMBER")
    add_argument(
        parser, "--crops", "also ask with so many parts of the image, those of most detail", type=int, default=0
    )
    add_argument(parser, "-k --k", "how many passages (default: 5)", type=int, default=5)
    add_argument(parser, "--where", 'only passages such as \'{"licence": "CC0-1.0"}\'', metavar="JSON")
    ways = f"how to find: {', '.join(CHANNEL_NAMES)}; several, such as dense,bm25, are joined (default: dense)"
    add_argument(parser, "--channels", ways, nargs="+", type=channels, metavar="NAME")
    add_argument(parser, "--weights")
    add_argument(parser, "--repo_type", "what the id on the Hub is", choices=["model", "dataset"], default="model")
    add_argument(parser, "--revision", "a branch, tag or commit on the Hub")
    add_encoder(parser)


def _add_push_options(parser: argparse.ArgumentParser) -> None:
    add_argument(parser, "folder", "the folder of the knowledge base")
    add_argument(parser, "repo", "the repository; created if needed", metavar="OWNER/NAME")
    beside = "on its own (default), or beside a model"
    add_argument(parser, "--repo_type", beside, choices=["dataset", "model"], default="dataset")
    add_argument(parser, "--parts", "publish only this part", nargs="+", choices=PARTS, default=list(PARTS))
    switch(parser, "--private", "a new repository is private")
    add_argument(parser, "--revision", "the branch; made if needed")
    switch(parser, "--create_pr", "open a pull request instead of committing")
    add_argument(parser, "--message", "the message of the commit", default="Upload knowledge base")
    switch(parser, "--allow_missing_licence", "publish passages that say nothing about their licence")
