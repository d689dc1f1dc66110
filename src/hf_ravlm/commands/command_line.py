"""The words of `hf-ravlm`: every command with its arguments, examples, and the function that carries it out.

Nothing here imports torch, transformers or another folder of the library, so that `--help` answers at once. Functions
are named by strings (`"building.build"`) and imported when they run. The choices of options are copies, which a test
compares with the constants of the folders that they come from.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .argument_types import (
    CHANNEL_NAMES,
    bytes_of,
    channels,
    factors,
    names,
    passage_count,
    port,
    positive,
    torch_device,
    weights,
)


INDEX_KINDS = (
    "flat",
    "hnsw",
    "hnsw_sq8",
    "ivf_flat",
    "ivf_sq8",
    "ivf_pq",
    "ivf_opq_pq",
    "ivf_rabitq",
    "binary",
    "auto",
)
ENCODER_KINDS = ("auto", "ravlm", "dual", "image", "text", "sentence-transformers", "late-interaction")
PARTS = ("passages", "vectors")
BENCHMARKS = ("okvqa", "aokvqa", "aokvqa_choices", "infoseek", "encyclopedic_vqa", "viquae", "m2kr")
# The options that each format understands beside those of all formats, by their names in the arguments.
FORMATS: dict[str, tuple[str, ...]] = {
    "folder": ("chunk", "image_root", "pages"),
    "pdf": ("chunk", "pages"),
    "jsonl": ("chunk", "columns", "numeric_columns", "image_root"),
    "csv": ("chunk", "columns", "numeric_columns", "image_root", "delimiter"),
    "parquet": ("chunk", "columns", "numeric_columns", "image_root"),
    "stored": (),
    "wordnet": ("parts_of_speech",),
    "conceptnet": ("languages", "relations", "min_weight"),
    "wikipedia": ("chunk", "max_articles"),
    "encyclopedic_vqa": ("chunk",),
    "infoseek": ("chunk",),
    "m2kr": ("chunk",),
    "viquae": ("chunk",),
}
COLUMNS = ("id", "text", "image", "source", "licence", "url", "revision", "title", "metadata")

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


# Arguments of several commands, by their flags.
_SHARED: dict[str, dict[str, Any]] = {
    "model": {
        "metavar": "MODEL",
        "help": "a folder or Hub id of a saved system, or of any reader, or the address of a server of OpenAI's kind "
        "(--knowledge says what these read), or offline",
    },
    "folder": {
        "type": Path,
        "metavar": "FOLDER",
        "help": "the folder of the knowledge base, or of the model it lies beside",
    },
    "--device": {"type": torch_device, "help": "such as cuda or cpu (default: the graphics card, if there is one)"},
    "--knowledge": {
        "metavar": "PLACE",
        "help": "what is searched, if it is not in the folder of the model: a folder of images, texts and PDF files, "
        "a table, or a stored knowledge base",
    },
    "--encoder": {
        "metavar": "NAME",
        "help": "what turns knowledge and questions into vectors: a folder or Hub id, or offline (default: the one "
        "that built the knowledge base)",
    },
    "--weights": {
        "type": weights,
        "metavar": "NAME=NUMBER,...",
        "help": "what each channel counts: dense_image=0.8,dense_text=0.2 weighs images against words (default: "
        "channels are joined by rank, and dense takes image and words together)",
    },
    "--reader_name": {
        "metavar": "NAME",
        "help": "which model of the server reads, where the model is an address such as http://localhost:8000/v1",
    },
    "-k --k": {"type": positive, "help": "passages per question (default: as the model says)"},
    "--port": {"type": port},
    "--max_new_tokens": {"type": positive, "help": "the longest answer (default: %(default)s)"},
    "--batch_size": {"type": int, "default": 64, "help": "images encoded at once (default: 64)"},
}


def _add(parser: Any, flags: str, words: str | None = None, **settings: Any) -> None:
    """Declares an argument; what `words` (its help) and `settings` leave open comes from `_SHARED`."""
    said = {} if words is None else {"help": words}
    parser.add_argument(*flags.split(), **{**_SHARED.get(flags, {}), **said, **settings})


def _switch(parser: Any, flag: str, words: str) -> None:
    parser.add_argument(flag, action="store_true", help=words)


def _add_server(group: Any) -> None:
    """What is to be said of a reader behind a server."""
    _add(group, "--reader_name")
    _switch(group, "--words_only", "send the reader of a server no images: they are for the search alone")


def _add_encoder(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """The model that turns passages and questions into vectors, and how it runs."""
    group = parser.add_argument_group("the model")
    where = "" if required else "; by default the model in FOLDER itself"
    described = f"a local folder or the id of a model on the Hub{where}"
    _add(group, "--model", described, required=required, metavar="FOLDER|ID")
    _add(
        group,
        "--encoder",
        "what the model is; auto: its settings tell (default)",
        choices=ENCODER_KINDS,
        default="auto",
    )
    dtypes = ["auto", "float32", "bfloat16", "float16", "int8"]
    _add(group, "--dtype", "default: as the model is stored", choices=dtypes)
    _add(group, "--device")


_COLUMNS_HELP = (
    f"which column of a table holds what ({', '.join(COLUMNS)}); `id=` numbers the rows, `metadata=year,place` keeps "
    "these columns alone"
)
_ON_ERROR_HELP = "stop at an item that cannot be read (default), skip it, or skip its image alone"


def _add_columns(group: Any) -> None:
    _add(group, "--columns", _COLUMNS_HELP, nargs="+", action="extend", metavar="NAME=COLUMN")


def _add_on_error(group: Any) -> None:
    _add(group, "--on_error", _ON_ERROR_HELP, choices=["raise", "skip", "keep_text"], default="raise")


def _add_source(parser: argparse.ArgumentParser) -> None:
    """The source of passages and how it is read."""
    _add(parser, "source", "a file or folder with the passages, see --format", metavar="SOURCE", type=Path)
    group = parser.add_argument_group("reading the source")
    _add(
        group,
        "--format --kind",
        "what the source is; by default its name tells: a folder of images, texts and PDF files (or of WordNet), "
        ".jsonl, .csv, .tsv, .parquet, .pdf, .xml (a dump of Wikipedia), conceptnet-assertions...; tables and dumps "
        "compressed or not; or a stored knowledge base, whose passages are encoded anew",
        choices=FORMATS,
    )
    _add_columns(group)
    _add(group, "--delimiter", "of a CSV file (default: as its header has it)", metavar="CHARACTER")
    numbers = "columns whose values are numbers, for --where with min and max"
    _add(group, "--numeric_columns", numbers, nargs="+", metavar="COLUMN")
    roots = "folders outside the source that image paths and links may lead to"
    _add(group, "--image_root", roots, nargs="+", metavar="FOLDER")
    pages = "what PDF files become: pieces of text, images of pages and figures, or both (default)"
    _add(group, "--pages", pages, choices=["both", "text", "image"])
    _add(group, "--licence", "of passages that state none, such as CC-BY-4.0", metavar="NAME")
    _add(group, "--chunk", "cut texts into chunks of so many characters", type=int, metavar="LENGTH")
    _add(group, "--chunk_overlap --overlap", "repeated from chunk to chunk", type=int, default=0, metavar="LENGTH")
    _add_on_error(group)
    _add(group, "--report", "list the items skipped in this file (JSON lines)", type=Path, metavar="FILE")
    _add(group, "--parts_of_speech", "of WordNet: noun verb adjective adverb", nargs="+", metavar="NAME")
    _add(group, "--languages", "of ConceptNet; English by default", nargs="+", metavar="CODE")
    _add(group, "--relations", "of ConceptNet, such as IsA UsedFor", nargs="+", metavar="NAME")
    _add(group, "--min_weight", "of ConceptNet's assertions", type=float, metavar="WEIGHT")
    _add(group, "--max_articles", "of Wikipedia", type=int, metavar="NUMBER")


class _Commands:
    """Adds commands to a parser, each with the options that all have."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        self.common = argparse.ArgumentParser(add_help=False)
        _switch(self.common, "--json", "print one JSON document; messages stay on stderr")
        _switch(self.common, "--quiet", "no progress, and warnings and errors alone")

    def add(
        self, name: str, run: str, summary: str, description: str, examples: str | None, interrupted: str
    ) -> argparse.ArgumentParser:
        """One command.

        Args:
            name: What is typed.
            run: The module in `commands/` and its function, such as `"card.card"`.
            summary, description, examples: For the list of commands, and for its own help.
            interrupted: What is said after Ctrl-C.
        """
        parser: argparse.ArgumentParser = self.actions.add_parser(
            name,
            parents=[self.common],
            help=summary,
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=run, interrupted=interrupted)
        return parser


def make_parser(version: str) -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="hf-ravlm",
        description="Answers about images, with evidence from your own images and texts.",
        epilog="Begin with `hf-ravlm ask --help`.",
    )
    parser.add_argument("--version", action="version", version=f"hf_ravlm {version}")
    commands = _Commands(parser)
    for add in (
        _add_ask,
        _add_index,
        _add_evaluate,
        _add_fit_policy,
        _add_card,
        _add_explain,
        _add_demo,
        _add_serve,
        _add_export,
    ):
        add(commands)
    return parser


def _add_ask(commands: _Commands) -> None:
    parser = commands.add(
        "ask",
        "asking.ask",
        "answer a question about an image from your own images and texts",
        "Answers a question from a folder of images and texts, a table, a stored knowledge base, or a saved system.\n"
        "What was read stands below the answer. A folder is encoded once, and again where it changes.",
        """examples:
  hf-ravlm ask my_folder photo.jpg "What is this plant?" --model Qwen/Qwen3-VL-2B-Instruct \\
      --encoder google/siglip2-base-patch16-224
  hf-ravlm ask my_folder photo.jpg "What is this plant?" --model offline --encoder offline --save my_system
  hf-ravlm ask my_system photo.jpg "Is it poisonous?" --k 3 --cite
  hf-ravlm ask my_folder photo.jpg "What is this plant?" --model http://localhost:8000/v1 --encoder offline
  hf-ravlm ask products.csv "Which lamps are red?" --model offline --encoder offline --where '{"colour": "red"}'
""",
        "Stopped. What is encoded is kept: the same command goes on where it stopped.",
    )
    _add(parser, "knowledge", "what is searched; a saved system brings its own model", metavar="KNOWLEDGE")
    _add(
        parser,
        "words",
        "an image or several (files or addresses), if any, and last the question",
        metavar="IMAGE|QUESTION",
        nargs="+",
    )
    group = parser.add_argument_group("the models")
    reads = "the reader: a folder or Hub id, offline, or http://... (default: the model in KNOWLEDGE)"
    _add(group, "--model", reads, metavar="NAME")
    _add_server(group)
    _add(group, "--encoder")
    _add(group, "--device")
    group = parser.add_argument_group("reading KNOWLEDGE")
    _add_columns(group)
    _add_on_error(group)
    group = parser.add_argument_group("searching")
    _add(group, "-k --k", type=passage_count)
    _add(group, "--query", "words to search with, if not those of the question", metavar="TEXT")
    _add(group, "--where", 'only passages such as \'{"colour": "red"}\'', metavar="JSON")
    ways = f"how to find: {', '.join(CHANNEL_NAMES)}; several, such as dense,bm25, are joined (default: dense)"
    _add(group, "--channels", ways, type=names, metavar="NAMES")
    _add(group, "--weights")
    group = parser.add_argument_group("answering")
    _switch(group, "--cite", "ask for [1] marks in the answer, and check each")
    _add(group, "--system_message", "what the reader is told first", metavar="TEXT")
    _add(group, "--max_new_tokens", default=256)
    _add(
        group,
        "--save",
        "keep reader, encoder and knowledge as one system, by name where they have one",
        metavar="FOLDER",
        type=Path,
    )


def _add_index(commands: _Commands) -> None:
    index = commands.actions.add_parser(
        "index",
        help="build, search and look after knowledge bases",
        description="Builds, searches and looks after knowledge bases: passages with text, image or both, their "
        "vectors, and an index over them, in one folder that survives interruptions.",
        epilog=INDEX_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = _Commands(index)

    def add(name: str, module: str, summary: str, interrupted: str = _UNCHANGED) -> argparse.ArgumentParser:
        lines = [line for line in INDEX_EXAMPLES.splitlines() if f" index {name} " in line]
        examples = "\n".join(["examples:", *lines]) if lines else None
        description = f"{summary[0].upper()}{summary[1:]}."
        return actions.add(name, f"{module}.{name}", summary, description, examples, interrupted)

    _add_build_options(add("build", "building", "read a source, encode it, and save a knowledge base", _RESUMES))
    parser = add("add", "building", "add passages to a knowledge base", _RESUMES)
    _add(parser, "folder", "the folder of the knowledge base")
    _add_source(parser)
    _add_encoder(parser)
    _switch(parser, "--update", "replace passages with the same ids instead of refusing them")
    _add(parser, "--batch_size")
    parser = add("remove", "care", "remove passages by their ids")
    _add(parser, "folder")
    _add(parser, "ids", "ids of passages", metavar="ID", nargs="*")
    _add(parser, "--ids_file", "a file with one id per line; - for the input", type=Path, metavar="FILE")
    parser = add("compact", "care", "rewrite a knowledge base without what was removed", _RESUMES)
    _add(parser, "folder")
    _switch(parser, "--purge", "erase earlier versions, too: nothing removed is left")
    _add(add("info", "care", "tell what a folder holds, without reading it all"), "folder")
    _add(add("verify", "care", "read every byte and tell what is damaged; the exit code is 1 if any is"), "folder")
    parser = add("repair", "care", "make a damaged knowledge base usable again")
    _add(parser, "folder")
    _add(parser, "--to", "go back to this one, such as gen-00000006", metavar="VERSION")
    _switch(parser, "--drop_damaged", "give up passages whose files are damaged")
    _add_search_options(add("search", "searching", "find passages by text, by image, or by both"))
    _add_push_options(add("push", "care", "publish a knowledge base on the Hub, with a card", _RESUMES))


def _add_build_options(parser: argparse.ArgumentParser) -> None:
    _add_source(parser)
    _add(parser, "out", "the folder for the knowledge base; a model's will do", metavar="OUT", type=Path)
    _add_encoder(parser, required=True)
    group = parser.add_argument_group("building")
    _add(group, "--index", "auto: by size, memory and recall (default)", choices=INDEX_KINDS, default="auto")
    _add(group, "--memory_budget", "memory for searching, such as 2GB", type=bytes_of, metavar="SIZE")
    _add(group, "--recall", "share of the exact ten best to find (default: 0.95)", type=float, default=0.95)
    key = "what a passage is about, such as species: searches find that first, and then passages about it"
    _add(group, "--group_by", key, metavar="KEY")
    parts = ["both", "text", "image"]
    _add(group, "--group_query", "the part of a question that finds it (default: both)", choices=parts, default="both")
    _add(group, "--batch_size")
    staging = "for unfinished work, which is removed at the end (default: in OUT)"
    _add(group, "--staging", staging, type=Path, metavar="FOLDER")
    _switch(group, "--overwrite", "replace the knowledge base in OUT, in one step")


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    _add(parser, "folder", "the folder of the knowledge base, or its id on the Hub", type=None)
    _add(parser, "text", "the question", metavar="TEXT", nargs="?")
    _add(parser, "--image", "an image to ask with", type=Path, metavar="FILE")
    part = "the part of the image to ask with: left edge, upper edge, width and height, in pixels or in shares up to 1"
    _add(parser, "--region", part, nargs=4, type=float, metavar="NUMBER")
    _add(parser, "--crops", "also ask with so many parts of the image, those of most detail", type=int, default=0)
    _add(parser, "-k --k", "how many passages (default: 5)", type=int, default=5)
    _add(parser, "--where", 'only passages such as \'{"licence": "CC0-1.0"}\'', metavar="JSON")
    ways = f"how to find: {', '.join(CHANNEL_NAMES)}; several, such as dense,bm25, are joined (default: dense)"
    _add(parser, "--channels", ways, nargs="+", type=channels, metavar="NAME")
    _add(parser, "--weights")
    _add(parser, "--repo_type", "what the id on the Hub is", choices=["model", "dataset"], default="model")
    _add(parser, "--revision", "a branch, tag or commit on the Hub")
    _add_encoder(parser)


def _add_push_options(parser: argparse.ArgumentParser) -> None:
    _add(parser, "folder", "the folder of the knowledge base")
    _add(parser, "repo", "the repository; created if needed", metavar="OWNER/NAME")
    beside = "on its own (default), or beside a model"
    _add(parser, "--repo_type", beside, choices=["dataset", "model"], default="dataset")
    _add(parser, "--parts", "publish only this part", nargs="+", choices=PARTS, default=list(PARTS))
    _switch(parser, "--private", "a new repository is private")
    _add(parser, "--revision", "the branch; made if needed")
    _switch(parser, "--create_pr", "open a pull request instead of committing")
    _add(parser, "--message", "the message of the commit", default="Upload knowledge base")
    _switch(parser, "--allow_missing_licence", "publish passages that say nothing about their licence")


def _add_evaluate(commands: _Commands) -> None:
    parser = commands.add(
        "evaluate",
        "evaluating.evaluate",
        "ask a model questions, with and without evidence, and report",
        "Asks a model questions with and without evidence, and reports what the evidence changes. Every reply is kept "
        "in OUTPUT,\nso that a run that was stopped goes on when the same command is run again.",
        """examples:
  hf-ravlm evaluate my_model questions.jsonl reports/first
  hf-ravlm evaluate my_model vqa.parquet reports/vqa --columns answers=answer id=question_id --limit 200
  hf-ravlm evaluate my_model infoseek_data reports/infoseek --benchmark infoseek --images oven_images
  hf-ravlm evaluate Qwen/Qwen3-VL-2B-Instruct questions.csv reports/mine --knowledge my_folder \\
      --encoder google/siglip2-base-patch16-224
  hf-ravlm evaluate http://localhost:8000/v1 questions.jsonl reports/server --knowledge birds
  hf-ravlm evaluate my_model questions.jsonl reports/growing --distractors /usr/share/wordnet --factors 1,10
  hf-ravlm evaluate my_classifier labelled.jsonl reports/classes --task image-classification
""",
        "Stopped. Replies are kept: the same command goes on where it stopped.",
    )
    _add(parser, "model")
    data = "JSONL, Parquet, CSV or JSON; the folder of a data set; a Hub id; the files of a benchmark, or their folder"
    _add(parser, "data", data, metavar="DATA")
    _add(parser, "output", "the folder for reports and replies", metavar="OUTPUT")
    tasks = "DATA are questions (default), or images with the label of their class"
    _add(parser, "--task", tasks, choices=("questions", "image-classification"), default="questions")
    group = parser.add_argument_group("the questions")
    _add_questions(group)
    broken = "of a question whose image cannot be used: stop, or count it as answered wrongly (default: raise)"
    _add(group, "--on_error", broken, choices=("raise", "skip"), default="raise")
    _add(group, "--benchmark", "whose official files DATA are; its own metric decides", choices=BENCHMARKS)
    _add(group, "--images", "the folder of the benchmark's images", metavar="FOLDER")
    group = parser.add_argument_group("answering")
    arms = "such as closed_book,retrieved,gold (default: these and guarded, where they can be)"
    _add(group, "--arms", arms, type=names, metavar="NAMES")
    _add_server(group)
    _add(group, "--knowledge")
    _add(group, "--encoder")
    _add(group, "-k --k")
    _add(group, "--policy", "an answer policy, if it is not in that of the model", metavar="FOLDER")
    _add(group, "--channels", "how they are found, such as dense,bm25", type=names, metavar="NAMES")
    _add(group, "--max_new_tokens", default=32)
    _add(group, "--batch_size", "questions answered at once (default: 8)", type=positive, default=8)
    _add(group, "--device")
    group = parser.add_argument_group("the report")
    deciding = "the first decides what is right (default: exact_match,token_f1, or those of the benchmark)"
    _add(group, "--metrics", deciding, type=names, metavar="NAMES")
    _add(group, "--seed", "of intervals and of the places of gold passages (default: 0)", type=int, default=0)
    distractors = "WordNet or a JSONL file: what answers bear when the base grows by it"
    _add(group, "--distractors", distractors, metavar="SOURCE")
    _add(group, "--factors", "how many times larger it gets (default: 1,10,100)", type=factors, default=[1, 10, 100])


def _add_fit_policy(commands: _Commands) -> None:
    parser = commands.add(
        "fit-policy",
        "fitting.fit",
        "learn from questions with known answers when to search, what to read, and when to say nothing",
        "Fits an answer policy to your own questions, measures it on those that were kept apart, and saves it into the"
        "\nfolder of the system, which then answers by it. Give some hundreds of questions, of all kinds that will be"
        "\nasked, also such that the knowledge does not answer. Without a column gold_ids, a passage counts as right"
        "\nif it holds an accepted answer.",
        """examples:
  hf-ravlm fit-policy my_system questions.jsonl
  hf-ravlm fit-policy my_system questions.csv --columns answers=answer --wrong_cost 9 --search_cost 0.02
  hf-ravlm fit-policy Qwen/Qwen3-VL-2B-Instruct questions.jsonl --knowledge my_folder \\
      --encoder google/siglip2-base-patch16-224 --out my_policy
""",
        "Stopped. No policy was written.",
    )
    _add(parser, "model")
    _add(parser, "questions", "JSONL, Parquet, CSV or JSON; the folder of a data set; a Hub id", metavar="QUESTIONS")
    place = "where the policy is saved (default: the folder of the model)"
    _add(parser, "--out", place, type=Path, metavar="FOLDER")
    _add_questions(parser.add_argument_group("the questions"))
    group = parser.add_argument_group("answering")
    _add(group, "--knowledge")
    _add(group, "--encoder")
    _add(group, "-k --k")
    _add(group, "--channels", "how they are found, such as dense,bm25", type=names, metavar="NAMES")
    _add(group, "--max_new_tokens", default=32)
    _add(group, "--batch_size", "questions answered at once (default: 8)", type=positive, default=8)
    _add(group, "--device")
    group = parser.add_argument_group("the policy")
    _add(group, "--num_candidates", "passages that it looks at (default: twice k)", type=positive, metavar="NUMBER")
    _add(group, "--metric", "what calls an answer right (default: exact_match)", default="exact_match", metavar="NAME")
    wrong = "of a wrong answer, where a right one is worth 1; 0 never abstains, 9 answers from 90 %% on (default: 1)"
    _add(group, "--wrong_cost", wrong, type=float, default=1.0, metavar="COST")
    search = "of a search; the policy then also learns when to do without (default: every question is searched for)"
    _add(group, "--search_cost", search, type=float, metavar="COST")
    share = "of the questions, kept apart to measure with (default: 0.25)"
    _add(group, "--measured_share", share, type=float, default=0.25, metavar="SHARE")
    _add(group, "--seed", "of what is kept apart (default: 0)", type=int, default=0)


def _add_questions(group: Any) -> None:
    """How a table of questions is read."""
    columns = "which column holds what: question, answers, id, image, gold_ids, kind, cluster"
    _add(group, "--columns", columns, nargs="+", action="extend", default=[], metavar="NAME=COLUMN")
    _add(group, "--split", "of a data set that has several (default: test)", default="test")
    _add(group, "--limit", "only the first so many questions", type=positive, metavar="NUMBER")


def _add_card(commands: _Commands) -> None:
    parser = commands.add(
        "card",
        "card.card",
        "write the model card of a folder from the report of an evaluation",
        "Writes README.md into the folder of a model: figures from the report of `hf-ravlm evaluate`, the knowledge "
        "base\nwith its licences, and what you say of it. Your own words in a card that is there stay.",
        """examples:
  hf-ravlm evaluate my_model questions.jsonl reports/first
  hf-ravlm card my_model --report reports/first/report.json --licence apache-2.0 --questions "questions about birds" \\
      --command "accelerate launch train.py" --limits limits.md
""",
        "Stopped. The card is as it was.",
    )
    _add(parser, "model", "the folder of the model")
    _add(parser, "--report", "report.json of `hf-ravlm evaluate`", metavar="FILE")
    _add(parser, "--name", "of the model, such as its Hub id (default: the name of the folder)")
    _add(parser, "--licence", "of the weights, by the Hub's name, such as apache-2.0", metavar="NAME")
    _add(parser, "--language", "(default: en)", nargs="+", default=["en"], metavar="CODE")
    _add(parser, "--base_model", "what it was made of, on the Hub", nargs="+", default=[], metavar="ID")
    _add(parser, "--dataset", "what it was trained on, on the Hub", nargs="+", default=[], metavar="ID")
    _add(parser, "--command", "what trained it")
    _add(parser, "--limits", "a text file that says what it cannot do", metavar="FILE")
    _add(parser, "--questions", "what it was evaluated on, in a few words", default="questions")
    _add(parser, "--tags", "beside ours", nargs="+", default=[], metavar="TAG")
    _add(parser, "--copy_to", "write the card here, too", metavar="FILE")


def _add_explain(commands: _Commands) -> None:
    parser = commands.add(
        "explain",
        "explaining.explain",
        "answer a question about an image, and show where the answer comes from",
        "Answers a question about an image and draws where the answer comes from, as a PNG.",
        """examples:
  hf-ravlm explain my_model --image kite.png --question "What is this?" --out explained.png
  hf-ravlm explain my_model --image kite.png --answer "A wren." --k 4 --out why_no_wren.png
  hf-ravlm explain my_model --image kite.png --layer vision_tower.encoder.stages.1 --out finer.png --json

The figure shows where the image speaks for the answer (Grad-CAM), where it found each passage, what each passage
gave to the answer (posterior, attention, what is lost without it), and which cells and words matched.
""",
        "Stopped. Nothing was written.",
    )
    _add(parser, "model")
    _add(
        parser,
        "--image",
        "the image; several are asked about together, none is a question alone",
        nargs="+",
        metavar="FILE",
    )
    _add(parser, "--question", "what is asked (default: the model's own question)", metavar="TEXT")
    _add(parser, "--out", "where the figure is written", required=True, metavar="PNG", type=Path)
    group = parser.add_argument_group("answering")
    _add(group, "--knowledge")
    _add(group, "--encoder")
    _add(group, "-k --k", "passages; 0 is closed-book (default: as the model says)", type=passage_count)
    _add(group, "--max_new_tokens", default=64)
    _add(group, "--device")
    group = parser.add_argument_group("explaining")
    _add(group, "--answer", "explain this answer instead of the model's own", metavar="TEXT")
    _add(group, "--token", "explain this token of it alone, counted from 0", type=int, metavar="NUMBER")
    _add(group, "--layer", "of the vision tower (default: its last output)", metavar="NAME")
    weighing = "how gradients become a map: weighed by channel, or place by place (default: grad_cam)"
    _add(group, "--method", weighing, choices=["grad_cam", "hires_cam"], default="grad_cam")


def _add_demo(commands: _Commands) -> None:
    parser = commands.add(
        "demo",
        "serving.demonstrate",
        "open a page on which a model answers questions about images, with its evidence",
        "Opens a page: an image and a question in; the answer, its evidence and its reasons out.",
        """examples:
  hf-ravlm demo my_model
  hf-ravlm demo my_model --knowledge birds --port 7861
  hf-ravlm demo Qwen/Qwen3-VL-2B-Instruct --knowledge my_folder --encoder google/siglip2-base-patch16-224

The page is served to this machine alone (http://127.0.0.1:7860); nothing is sent anywhere. It needs gradio:
pip install "hf_ravlm[demo]".
""",
        "Stopped.",
    )
    _add(parser, "model")
    _add(parser, "--knowledge")
    _add(parser, "--encoder")
    _add(parser, "--port", "where it listens (default: 7860)", default=7860)
    address = (
        "the address it listens on (default: 127.0.0.1, this machine alone; anyone who reaches another one can use "
        "the page, there is no password)"
    )
    _add(parser, "--host", address, default="127.0.0.1")
    _add(parser, "--device")


def _add_serve(commands: _Commands) -> None:
    parser = commands.add(
        "serve",
        "serving.serve",
        "answer chat clients with evidence, as an OpenAI-compatible server",
        "Starts a server with a system, or with a reader and what it reads, until it is stopped with Ctrl-C."
        '\nNeeds: pip install "hf_ravlm[serve]"',
        """examples:
  hf-ravlm serve my_model
  hf-ravlm serve my_model --port 9000 --k 3 --device cuda
  hf-ravlm serve Qwen/Qwen3-VL-2B-Instruct --knowledge my_folder --encoder google/siglip2-base-patch16-224

Then ask it as you would ask any such server, with images as data:image/png;base64,... in the messages:
  openai.OpenAI(base_url="http://localhost:8000/v1", api_key="none").chat.completions.create(model="my_model", ...)
""",
        "Stopped.",
    )
    _add(parser, "model")
    _add(parser, "--knowledge")
    _add(parser, "--encoder")
    who = "who may ask (default: localhost, this machine alone; it asks no password)"
    _add(parser, "--host", who, default="localhost")
    _add(parser, "--port", "default: 8000", default=8000)
    _switch(parser, "--fetch_images", "clients may give images by address; private ones are never fetched")
    _add_server(parser)
    _add(parser, "-k --k", type=passage_count)
    _add(parser, "--device")


def _add_export(commands: _Commands) -> None:
    parser = commands.add(
        "export",
        "exporting.export",
        "write the two towers that find passages as ONNX files",
        "Writes image tower and text tower with their projections to FOLDER, as ONNX files for batches of any size."
        '\nNeeds: pip install "hf_ravlm[onnx]"',
        None,
        "Stopped. The folder is not whole: run the same command again.",
    )
    _add(parser, "model")
    _add(parser, "folder", "where the files go", type=None)
