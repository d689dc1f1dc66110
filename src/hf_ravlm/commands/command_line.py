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
)


INDEX_KINDS = ("flat", "hnsw", "hnsw_sq8", "ivf_flat", "ivf_sq8", "ivf_pq", "ivf_opq_pq", "ivf_rabitq", "auto")
ENCODER_KINDS = ("auto", "ravlm", "dual", "text", "sentence-transformers")
PARTS = ("passages", "vectors")
# The options that each format understands beside those of all formats, by their names in the arguments.
FORMATS: dict[str, tuple[str, ...]] = {
    "folder": ("chunk",),
    "jsonl": ("chunk", "columns"),
    "csv": ("chunk", "columns"),
    "parquet": ("chunk", "columns"),
    "wordnet": ("parts_of_speech",),
    "conceptnet": ("languages", "relations", "min_weight"),
    "wikipedia": ("chunk", "max_articles"),
}
COLUMNS = ("id", "text", "image", "source", "licence", "url", "revision", "title", "metadata")

_RESUMES = "Stopped. Finished work is kept: the same command goes on where it stopped."
_UNCHANGED = "Stopped. What was not finished was not begun; the knowledge base is whole."

INDEX_EXAMPLES = """examples:
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


# Arguments of several commands, by their first flag.
_SHARED: dict[str, dict[str, Any]] = {
    "model": {"metavar": "MODEL", "help": "a folder or Hub id of a RAVLM with its processor"},
    "folder": {"metavar": "FOLDER", "help": "the folder of the knowledge base, or of the model it lies beside"},
    "--device": {"help": "such as cuda or cpu (default: the graphics card, if there is one)"},
    "--knowledge": {"metavar": "FOLDER", "help": "the knowledge base, if it is not in that of the model"},
    "-k": {"dest": "k", "help": "passages per question (default: as the model says)"},
    "--port": {},
    "--max_new_tokens": {"help": "the longest answer (default: %(default)s)"},
    "--batch_size": {"default": 64, "help": "images encoded at once (default: 64)"},
}
_TYPES: dict[str, Any] = {
    "folder": Path,
    "--device": torch_device,
    "-k": positive,
    "--port": port,
    "--max_new_tokens": positive,
    "--batch_size": int,
}


def _add(parser: Any, flag: str, **changes: Any) -> None:
    """Declares an argument of `_SHARED`, with what differs here."""
    flags = ("-k", "--k") if flag == "-k" else (flag,)
    parser.add_argument(*flags, **{"type": _TYPES.get(flag), **_SHARED[flag], **changes})


def _add_encoder(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """The model that turns passages and questions into vectors, and how it runs."""
    group = parser.add_argument_group("the model")
    where = "" if required else "; by default the model in FOLDER itself"
    described = f"a local folder or the id of a model on the Hub{where}"
    group.add_argument("--model", required=required, metavar="FOLDER|ID", help=described)
    group.add_argument(
        "--encoder", choices=ENCODER_KINDS, default="auto", help="what the model is; auto: its settings tell (default)"
    )
    group.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16", "int8"], help="default: as the model is stored"
    )
    _add(group, "--device")


def _add_source(parser: argparse.ArgumentParser) -> None:
    """The source of passages and how it is read."""
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a file or folder with the passages, see --format")
    group = parser.add_argument_group("reading the source")
    group.add_argument(
        *("--format", "--kind"),
        choices=FORMATS,
        help="what the source is; by default its name tells: a folder of images and texts (or of WordNet), .jsonl, "
        ".csv, .tsv, .parquet, .xml (a dump of Wikipedia), conceptnet-assertions...; compressed or not",
    )
    group.add_argument(
        "--columns",
        nargs="+",
        action="extend",
        metavar="NAME=COLUMN",
        help=f"which column of a table holds what ({', '.join(COLUMNS)}); `id=` numbers the rows, "
        "`metadata=year,place` keeps these columns alone",
    )
    group.add_argument("--licence", metavar="NAME", help="of passages that state none, such as CC-BY-4.0")
    group.add_argument("--chunk", type=int, metavar="LENGTH", help="cut texts into chunks of so many characters")
    group.add_argument(
        *("--chunk_overlap", "--overlap"), type=int, default=0, metavar="LENGTH", help="repeated from chunk to chunk"
    )
    skipping = "stop at an item that cannot be read, or skip it"
    group.add_argument("--on_error", choices=["raise", "skip"], default="raise", help=skipping)
    group.add_argument("--report", type=Path, metavar="FILE", help="list the items skipped in this file (JSON lines)")
    group.add_argument("--parts_of_speech", nargs="+", metavar="NAME", help="of WordNet: noun verb adjective adverb")
    group.add_argument("--languages", nargs="+", metavar="CODE", help="of ConceptNet; English by default")
    group.add_argument("--relations", nargs="+", metavar="NAME", help="of ConceptNet, such as IsA UsedFor")
    group.add_argument("--min_weight", type=float, metavar="WEIGHT", help="of ConceptNet's assertions")
    group.add_argument("--max_articles", type=int, metavar="NUMBER", help="of Wikipedia")


class _Commands:
    """Adds commands to a parser, each with the options that all have."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        self.common = argparse.ArgumentParser(add_help=False)
        self.common.add_argument(
            "--json", action="store_true", help="print one JSON document; messages stay on stderr"
        )
        self.common.add_argument("--quiet", action="store_true", help="no progress, and warnings and errors alone")

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
        description="Knowledge bases of texts and images for retrieval-augmented vision-language models.",
        epilog="See `hf-ravlm index --help` and `hf-ravlm evaluate --help` for examples.",
    )
    parser.add_argument("--version", action="version", version=f"hf_ravlm {version}")
    commands = _Commands(parser)
    _add_index(commands)
    _add_evaluate(commands)
    _add_card(commands)
    _add_explain(commands)
    _add_demo(commands)
    _add_serve(commands)
    _add_export(commands)
    return parser


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
    _add(parser, "folder", help="the folder of the knowledge base")
    _add_source(parser)
    _add_encoder(parser)
    replacing = "replace passages with the same ids instead of refusing them"
    parser.add_argument("--update", action="store_true", help=replacing)
    _add(parser, "--batch_size")
    parser = add("remove", "care", "remove passages by their ids")
    _add(parser, "folder")
    parser.add_argument("ids", metavar="ID", nargs="*", help="ids of passages")
    parser.add_argument("--ids_file", type=Path, metavar="FILE", help="a file with one id per line; - for the input")
    parser = add("compact", "care", "rewrite a knowledge base without what was removed", _RESUMES)
    _add(parser, "folder")
    parser.add_argument("--purge", action="store_true", help="erase earlier versions, too: nothing removed is left")
    _add(add("info", "care", "tell what a folder holds, without reading it all"), "folder")
    _add(add("verify", "care", "read every byte and tell what is damaged; the exit code is 1 if any is"), "folder")
    parser = add("repair", "care", "make a damaged knowledge base usable again")
    _add(parser, "folder")
    parser.add_argument("--to", metavar="VERSION", help="go back to this one, such as gen-00000006")
    parser.add_argument("--drop_damaged", action="store_true", help="give up passages whose files are damaged")
    _add_search_options(add("search", "searching", "find passages by text, by image, or by both"))
    _add_push_options(add("push", "care", "publish a knowledge base on the Hub, with a card", _RESUMES))


def _add_build_options(parser: argparse.ArgumentParser) -> None:
    _add_source(parser)
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder for the knowledge base; a model's will do")
    _add_encoder(parser, required=True)
    group = parser.add_argument_group("building")
    group.add_argument(
        "--index", choices=INDEX_KINDS, default="auto", help="auto: by size, memory and recall (default)"
    )
    group.add_argument("--memory_budget", type=bytes_of, metavar="SIZE", help="memory for searching, such as 2GB")
    share = "share of the exact ten best to find (default: 0.95)"
    group.add_argument("--recall", type=float, default=0.95, help=share)
    _add(group, "--batch_size")
    staging = "for unfinished work, which is removed at the end (default: in OUT)"
    group.add_argument("--staging", type=Path, metavar="FOLDER", help=staging)
    group.add_argument("--overwrite", action="store_true", help="replace the knowledge base in OUT, in one step")


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="the folder of the knowledge base, or its id on the Hub")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the question")
    parser.add_argument("--image", type=Path, metavar="FILE", help="an image to ask with")
    parser.add_argument("-k", "--k", type=int, default=5, help="how many passages (default: 5)")
    parser.add_argument("--where", metavar="JSON", help='only passages such as \'{"licence": "CC0-1.0"}\'')
    parser.add_argument(
        "--channels",
        nargs="+",
        type=channels,
        default=[["dense"]],
        metavar="NAME",
        help=f"how to find: {', '.join(CHANNEL_NAMES)}; several, such as dense,bm25, are joined (default: dense)",
    )
    parser.add_argument("--repo_type", choices=["model", "dataset"], default="model", help="what the id on the Hub is")
    parser.add_argument("--revision", help="a branch, tag or commit on the Hub")
    _add_encoder(parser)


def _add_push_options(parser: argparse.ArgumentParser) -> None:
    _add(parser, "folder", help="the folder of the knowledge base")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository; created if needed")
    beside = "on its own (default), or beside a model"
    parser.add_argument("--repo_type", choices=["dataset", "model"], default="dataset", help=beside)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="publish only this part")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--revision", help="the branch; made if needed")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--message", default="Upload knowledge base", help="the message of the commit")
    unlicensed = "publish passages that say nothing about their licence"
    parser.add_argument("--allow_missing_licence", action="store_true", help=unlicensed)


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
  hf-ravlm evaluate my_model questions.jsonl reports/growing --distractors /usr/share/wordnet --factors 1,10
""",
        "Stopped. Replies are kept: the same command goes on where it stopped.",
    )
    _add(parser, "model")
    parser.add_argument("data", metavar="DATA", help="JSONL, Parquet, CSV or JSON; the folder of a data set; a Hub id")
    parser.add_argument("output", metavar="OUTPUT", help="the folder for reports and replies")
    group = parser.add_argument_group("the questions")
    columns = "which column holds what: question, answers, id, image, gold_ids, kind, cluster"
    group.add_argument("--columns", nargs="+", action="extend", default=[], metavar="NAME=COLUMN", help=columns)
    group.add_argument("--split", default="test", help="of a data set that has several (default: test)")
    group.add_argument("--limit", type=positive, metavar="NUMBER", help="only the first so many questions")
    group = parser.add_argument_group("answering")
    arms = "such as closed_book,retrieved,gold (default: these and guarded, where they can be)"
    group.add_argument("--arms", type=names, metavar="NAMES", help=arms)
    _add(group, "--knowledge")
    _add(group, "-k")
    group.add_argument("--policy", metavar="FOLDER", help="an answer policy, if it is not in that of the model")
    group.add_argument("--channels", type=names, metavar="NAMES", help="how they are found, such as dense,bm25")
    _add(group, "--max_new_tokens", default=32)
    _add(group, "--batch_size", type=positive, default=8, help="questions answered at once (default: 8)")
    _add(group, "--device")
    group = parser.add_argument_group("the report")
    group.add_argument(
        "--metrics",
        type=names,
        default=["exact_match", "token_f1"],
        metavar="NAMES",
        help="the first decides what is right (default: exact_match,token_f1)",
    )
    seeded = "of intervals and of the places of gold passages (default: 0)"
    group.add_argument("--seed", type=int, default=0, help=seeded)
    distractors = "WordNet or a JSONL file: what answers bear when the base grows by it"
    group.add_argument("--distractors", metavar="SOURCE", help=distractors)
    growth = "how many times larger it gets (default: 1,10,100)"
    group.add_argument("--factors", type=factors, default=[1, 10, 100], help=growth)


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
    _add(parser, "model", help="the folder of the model")
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
    parser.add_argument("--image", required=True, metavar="FILE", help="the image")
    parser.add_argument("--question", metavar="TEXT", help="what is asked (default: the model's own question)")
    parser.add_argument("--out", required=True, metavar="PNG", type=Path, help="where the figure is written")
    group = parser.add_argument_group("answering")
    _add(group, "--knowledge")
    _add(group, "-k", type=passage_count, help="passages; 0 is closed-book (default: as the model says)")
    _add(group, "--max_new_tokens", default=64)
    _add(group, "--device")
    group = parser.add_argument_group("explaining")
    group.add_argument("--answer", metavar="TEXT", help="explain this answer instead of the model's own")
    group.add_argument("--token", type=int, metavar="NUMBER", help="explain this token of it alone, counted from 0")
    group.add_argument("--layer", metavar="NAME", help="of the vision tower (default: its last output)")
    weighing = "how gradients become a map: weighed by channel, or place by place (default: grad_cam)"
    group.add_argument("--method", choices=["grad_cam", "hires_cam"], default="grad_cam", help=weighing)


def _add_demo(commands: _Commands) -> None:
    parser = commands.add(
        "demo",
        "demonstrating.demonstrate",
        "open a page on which a model answers questions about images, with its evidence",
        "Opens a page: an image and a question in; the answer, its evidence and its reasons out.",
        """examples:
  hf-ravlm demo my_model
  hf-ravlm demo my_model --knowledge birds --port 7861

The page is served to this machine alone (http://127.0.0.1:7860); nothing is sent anywhere. It needs gradio:
pip install "hf_ravlm[demo]".
""",
        "Stopped.",
    )
    _add(parser, "model")
    _add(parser, "--knowledge")
    _add(parser, "--port", default=7860, help="where it listens (default: 7860)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address it listens on (default: 127.0.0.1, this machine alone; anyone who reaches another one can "
        "use the page, there is no password)",
    )
    _add(parser, "--device")


def _add_serve(commands: _Commands) -> None:
    parser = commands.add(
        "serve",
        "serving.serve",
        "answer chat clients with evidence, as an OpenAI-compatible server",
        "Starts the server of transformers with a model and the knowledge base in its folder, until it is stopped "
        'with Ctrl-C.\nNeeds: pip install "hf_ravlm[serve]"',
        """examples:
  hf-ravlm serve my_model
  hf-ravlm serve my_model --port 9000 --k 3 --device cuda

Then ask it as you would ask any such server, with images as data:image/png;base64,... in the messages:
  openai.OpenAI(base_url="http://localhost:8000/v1", api_key="none").chat.completions.create(model="my_model", ...)
""",
        "Stopped.",
    )
    _add(parser, "model")
    who = "who may ask (default: localhost, this machine alone; it asks no password)"
    parser.add_argument("--host", default="localhost", help=who)
    _add(parser, "--port", default=8000, help="default: 8000")
    _add(parser, "-k")
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
    _add(parser, "folder", type=None, help="where the files go")
