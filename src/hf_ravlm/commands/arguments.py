"""What the commands of `hf-ravlm` share: how an argument is declared, those that several have, and their choices.

The choices are copies, which a test compares with the constants of the folders that they come from: nothing here
imports torch, transformers or another folder of the library, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
from typing import Any

from .argument_types import path, port, positive, torch_device, weights


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

# Arguments of several commands, by their flags.
_SHARED: dict[str, dict[str, Any]] = {
    "model": {
        "metavar": "MODEL",
        "help": "a folder or Hub id of a saved system, or of any reader, or the address of a server of OpenAI's kind "
        "(--knowledge says what these read), or offline",
    },
    "folder": {
        "type": path,
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
        "help": "what each channel counts, and, without --channels, which there are: dense_image=0.8,dense_text=0.2 "
        "weighs images against words (default: channels are joined by rank, and dense takes image and words together)",
    },
    "--reader_name": {
        "metavar": "NAME",
        "help": "which model of the server reads, where the model is an address such as http://localhost:8000/v1",
    },
    "--system_message": {
        "metavar": "TEXT",
        "help": "what the reader is told first, such as 'Answer in one or two words.'",
    },
    "-k --k": {"type": positive, "help": "passages per question (default: as the model says)"},
    "--policy": {"metavar": "FOLDER", "help": "an answer policy (default: that of the model, if there is one)"},
    "--port": {"type": port},
    "--max_new_tokens": {"type": positive, "help": "the longest answer (default: %(default)s)"},
    "--batch_size": {"type": int, "default": 64, "help": "images encoded at once (default: 64)"},
}


def add_argument(parser: Any, flags: str, words: str | None = None, **settings: Any) -> None:
    """Declares an argument; what `words` (its help) and `settings` leave open comes from `_SHARED`."""
    said = {} if words is None else {"help": words}
    parser.add_argument(*flags.split(), **{**_SHARED.get(flags, {}), **said, **settings})


def switch(parser: Any, flag: str, words: str) -> None:
    parser.add_argument(flag, action="store_true", help=words)


def add_server(group: Any) -> None:
    """What is to be said of a reader behind a server."""
    add_argument(group, "--reader_name")
    switch(group, "--words_only", "send the reader of a server no images: they are for the search alone")


def add_encoder(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """The model that turns passages and questions into vectors, and how it runs."""
    group = parser.add_argument_group("the model")
    where = "" if required else "; by default the model in FOLDER itself"
    described = f"a local folder or the id of a model on the Hub{where}"
    add_argument(group, "--model", described, required=required, metavar="FOLDER|ID")
    add_argument(
        group,
        "--encoder",
        "what the model is; auto: its settings tell (default)",
        choices=ENCODER_KINDS,
        default="auto",
    )
    dtypes = ["auto", "float32", "bfloat16", "float16", "int8"]
    add_argument(group, "--dtype", "default: as the model is stored", choices=dtypes)
    add_argument(group, "--device")


_COLUMNS_HELP = (
    f"which column of a table holds what ({', '.join(COLUMNS)}); `id=` numbers the rows, `metadata=year,place` keeps "
    "these columns alone"
)
_ON_ERROR_HELP = "stop at an item that cannot be read (default), skip it, or skip its image alone"


def add_columns(group: Any) -> None:
    add_argument(group, "--columns", _COLUMNS_HELP, nargs="+", action="extend", metavar="NAME=COLUMN")


def add_on_error(group: Any) -> None:
    add_argument(group, "--on_error", _ON_ERROR_HELP, choices=["raise", "skip", "keep_text"], default="raise")


class Commands:
    """Adds commands to a parser, each with the options that all have."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        self.common = argparse.ArgumentParser(add_help=False)
        switch(self.common, "--json", "print one JSON document; messages stay on stderr")
        switch(self.common, "--quiet", "no progress, and warnings and errors alone")

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
        parser.set_defaults(run=run, interrupted=interrupted, parser=parser)
        return parser
