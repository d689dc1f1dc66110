"""The words of `hf-ravlm`: every command with its arguments, examples, and the function that carries it out.

Functions are named by strings (`"building.build"`) and imported when they run.
"""

from __future__ import annotations

import argparse
from typing import Any

from .argument_types import CHANNEL_NAMES, channels, factors, names, passage_count, path, positive
from .arguments import (
    BENCHMARKS,
    INDEX_KINDS,
    Commands,
    add_argument,
    add_columns,
    add_on_error,
    add_server,
    switch,
)
from .index_line import add_index


def make_parser(version: str) -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="hf-ravlm",
        description="Answers about images, with evidence from your own images and texts.",
        epilog="Begin with `hf-ravlm ask --help`.",
    )
    parser.add_argument("--version", action="version", version=f"hf_ravlm {version}")
    commands = Commands(parser)
    for add in (
        _add_ask,
        add_index,
        _add_evaluate,
        _add_fit_policy,
        _add_card,
        _add_explain,
        _add_demo,
        _add_serve,
        _add_compress,
        _add_export,
    ):
        add(commands)
    return parser


def _add_ask(commands: Commands) -> None:
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
        "Stopped. Whatever was encoded is kept: the same command goes on where it stopped.",
    )
    add_argument(parser, "knowledge", "what is searched; a saved system brings its own model", metavar="KNOWLEDGE")
    add_argument(
        parser,
        "words",
        "an image or several (files or addresses), if any, and last the question; images alone are described",
        metavar="IMAGE|QUESTION",
        nargs="+",
    )
    group = parser.add_argument_group("the models")
    reads = "the reader: a folder or Hub id, offline, or http://... (default: the model in KNOWLEDGE)"
    add_argument(group, "--model", reads, metavar="NAME")
    add_server(group)
    add_argument(group, "--encoder")
    add_argument(group, "--device")
    group = parser.add_argument_group("reading KNOWLEDGE")
    add_columns(group)
    add_on_error(group)
    group = parser.add_argument_group("searching")
    add_argument(group, "-k --k", type=passage_count)
    add_argument(group, "--query", "words to search with, if not those of the question", metavar="TEXT")
    add_argument(group, "--where", 'only passages such as \'{"colour": "red"}\'', metavar="JSON")
    ways = f"how to find: {', '.join(CHANNEL_NAMES)}; several, such as dense,bm25, are joined (default: dense)"
    add_argument(group, "--channels", ways, type=channels, metavar="NAMES")
    add_argument(group, "--weights")
    group = parser.add_argument_group("answering")
    switch(group, "--cite", "ask for [1] marks in the answer, and check each")
    add_argument(group, "--policy")
    add_argument(group, "--system_message")
    add_argument(group, "--max_new_tokens", default=256)
    add_argument(
        group,
        "--save",
        "keep reader, encoder and knowledge as one system, by name where they have one",
        metavar="FOLDER",
        type=path,
    )
    switch(group, "--overwrite", "let --save replace the system in FOLDER")


def _add_evaluate(commands: Commands) -> None:
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
  hf-ravlm evaluate my_model questions.jsonl reports/closed --task visual-question-answering
  hf-ravlm evaluate my_classifier labelled.jsonl reports/classes --task image-classification
  hf-ravlm evaluate my_detector annotated_images reports/boxes --task object-detection
""",
        "Stopped. Replies are kept: the same command goes on where it stopped.",
    )
    add_argument(parser, "model")
    data = "JSONL, Parquet, CSV or JSON; the folder of a data set; a Hub id; the files of a benchmark, or their folder"
    add_argument(parser, "data", data, metavar="DATA")
    add_argument(parser, "output", "the folder for reports and replies", metavar="OUTPUT")
    tasks = (
        "DATA are questions (default), questions whose answers the model chooses of a closed set, images with the "
        "label of their class, or images with boxes"
    )
    choices = ("questions", "visual-question-answering", "image-classification", "object-detection")
    add_argument(parser, "--task", tasks, choices=choices, default="questions")
    group = parser.add_argument_group("the questions")
    _add_questions(group)
    closed = "a text file with the closed set, one answer a line (default: that of the model, else all of DATA)"
    add_argument(group, "--allowed_answers", closed, metavar="FILE")
    broken = "of a question whose image cannot be used: stop, or count it as answered wrongly (default: raise)"
    add_argument(group, "--on_error", broken, choices=("raise", "skip"), default="raise")
    add_argument(group, "--benchmark", "whose official files DATA are; its own metric decides", choices=BENCHMARKS)
    add_argument(group, "--images", "the folder of the benchmark's images", metavar="FOLDER")
    group = parser.add_argument_group("answering")
    arms = "such as closed_book,retrieved,gold (default: these and guarded, where they can be)"
    add_argument(group, "--arms", arms, type=names, metavar="NAMES")
    add_server(group)
    add_argument(group, "--knowledge")
    add_argument(group, "--encoder")
    add_argument(group, "-k --k")
    add_argument(group, "--policy")
    add_argument(group, "--channels", "how they are found, such as dense,bm25", type=channels, metavar="NAMES")
    add_argument(group, "--system_message")
    add_argument(group, "--max_new_tokens", default=32)
    add_argument(group, "--batch_size", "questions answered at once (default: 8)", type=positive, default=8)
    add_argument(group, "--device")
    _add_report(parser.add_argument_group("the report"))


def _add_report(group: Any) -> None:
    deciding = "the first decides what is right (default: exact_match,token_f1, or those of the benchmark)"
    add_argument(group, "--metrics", deciding, type=names, metavar="NAMES")
    add_argument(group, "--seed", "of intervals and of the places of gold passages (default: 0)", type=int, default=0)
    distractors = "WordNet or a JSONL file: what answers bear when the base grows by it"
    add_argument(group, "--distractors", distractors, metavar="SOURCE")
    add_argument(
        group, "--factors", "how many times larger it gets (default: 1,10,100)", type=factors, default=[1, 10, 100]
    )


def _add_fit_policy(commands: Commands) -> None:
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
    add_argument(parser, "model")
    add_argument(
        parser, "questions", "JSONL, Parquet, CSV or JSON; the folder of a data set; a Hub id", metavar="QUESTIONS"
    )
    place = "where the policy is saved (default: the folder of the model)"
    add_argument(parser, "--out", place, type=path, metavar="FOLDER")
    _add_questions(parser.add_argument_group("the questions"))
    group = parser.add_argument_group("answering")
    add_argument(group, "--knowledge")
    add_argument(group, "--encoder")
    add_argument(group, "-k --k")
    add_argument(group, "--channels", "how they are found, such as dense,bm25", type=channels, metavar="NAMES")
    add_argument(group, "--max_new_tokens", default=32)
    add_argument(group, "--batch_size", "questions answered at once (default: 8)", type=positive, default=8)
    add_argument(group, "--device")
    group = parser.add_argument_group("the policy")
    add_argument(
        group,
        "--num_candidates",
        "passages that it looks at (default: twice k, or k a reading)",
        type=positive,
        metavar="NUMBER",
    )
    add_argument(
        group, "--metric", "what calls an answer right (default: exact_match)", default="exact_match", metavar="NAME"
    )
    again = 'how often the reader may read: the next k passages where it says "unknown" to those before (default: 1)'
    add_argument(group, "--num_readings", again, type=positive, default=1, metavar="NUMBER")
    wrong = "of a wrong answer, where a right one is worth 1; 0 never abstains, 9 answers from 90 %% on (default: 1)"
    add_argument(group, "--wrong_cost", wrong, type=float, default=1.0, metavar="COST")
    search = "of a search; the policy then also learns when to do without (default: every question is searched for)"
    add_argument(group, "--search_cost", search, type=float, metavar="COST")
    share = "of the questions, kept apart to measure with (default: 0.25)"
    add_argument(group, "--measured_share", share, type=float, default=0.25, metavar="SHARE")
    add_argument(group, "--seed", "of what is kept apart (default: 0)", type=int, default=0)


def _add_questions(group: Any) -> None:
    """How a table of questions is read."""
    columns = "which column holds what: question, answers, id, image, gold_ids, kind, cluster"
    add_argument(group, "--columns", columns, nargs="+", action="extend", default=[], metavar="NAME=COLUMN")
    add_argument(group, "--split", "of a data set that has several (default: test)", default="test")
    add_argument(group, "--limit", "only the first so many questions", type=positive, metavar="NUMBER")


def _add_card(commands: Commands) -> None:
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
    add_argument(parser, "model", "the folder of the model")
    add_argument(parser, "--report", "report.json of `hf-ravlm evaluate`", metavar="FILE")
    add_argument(parser, "--name", "of the model, such as its Hub id (default: the name of the folder)")
    add_argument(parser, "--licence", "of the weights, by the Hub's name, such as apache-2.0", metavar="NAME")
    add_argument(parser, "--language", "(default: en)", nargs="+", default=["en"], metavar="CODE")
    add_argument(parser, "--base_model", "what it was made of, on the Hub", nargs="+", default=[], metavar="ID")
    add_argument(parser, "--dataset", "what it was trained on, on the Hub", nargs="+", default=[], metavar="ID")
    add_argument(parser, "--command", "what trained it")
    add_argument(parser, "--limits", "a text file that says what it cannot do", metavar="FILE")
    add_argument(parser, "--questions", "what it was evaluated on, in a few words", default="questions")
    add_argument(parser, "--tags", "beside ours", nargs="+", default=[], metavar="TAG")
    add_argument(parser, "--copy_to", "write the card here, too", metavar="FILE")


def _add_explain(commands: Commands) -> None:
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
    add_argument(parser, "model")
    add_argument(
        parser,
        "--image",
        "the image; several are asked about together, none is a question alone",
        nargs="+",
        metavar="FILE",
    )
    add_argument(parser, "--question", "what is asked (default: the model's own question)", metavar="TEXT")
    add_argument(parser, "--out", "where the figure is written", required=True, metavar="PNG", type=path)
    group = parser.add_argument_group("answering")
    add_argument(group, "--knowledge")
    add_argument(group, "--encoder")
    add_argument(group, "-k --k", "passages; 0 is closed-book (default: as the model says)", type=passage_count)
    add_argument(group, "--max_new_tokens", default=64)
    add_argument(group, "--device")
    group = parser.add_argument_group("explaining")
    add_argument(group, "--answer", "explain this answer instead of the model's own", metavar="TEXT")
    add_argument(group, "--token", "explain this token of it alone, counted from 0", type=int, metavar="NUMBER")
    add_argument(group, "--layer", "of the vision tower (default: its last output)", metavar="NAME")
    weighing = "how gradients become a map: weighed by channel, or place by place (default: grad_cam)"
    add_argument(group, "--method", weighing, choices=["grad_cam", "hires_cam"], default="grad_cam")


def _add_demo(commands: Commands) -> None:
    parser = commands.add(
        "demo",
        "serving.demonstrate",
        "open a page on which a model answers questions about images, with its evidence",
        "Opens a page: an image and a question in; the answer, its evidence and its reasons out, or the best of your\n"
        "answers. Of a classifier or a detector: an image in; classes or boxes out, with the entries they rest on.",
        """examples:
  hf-ravlm demo my_model
  hf-ravlm demo my_model --knowledge birds --port 7861
  hf-ravlm demo my_detector
  hf-ravlm demo Qwen/Qwen3-VL-2B-Instruct --knowledge my_folder --encoder google/siglip2-base-patch16-224

The page is served to this machine alone (http://127.0.0.1:7860); nothing is sent anywhere. It needs gradio:
pip install "hf_ravlm[demo]".
""",
        "Stopped.",
    )
    add_argument(parser, "model")
    add_argument(parser, "--knowledge")
    add_argument(parser, "--encoder")
    add_argument(parser, "--port", "where it listens (default: 7860)", default=7860)
    address = (
        "the address it listens on (default: 127.0.0.1, this machine alone; anyone who reaches another one can use "
        "the page, there is no password)"
    )
    add_argument(parser, "--host", address, default="127.0.0.1")
    add_argument(parser, "--device")


def _add_serve(commands: Commands) -> None:
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
    add_argument(parser, "model")
    add_argument(parser, "--knowledge")
    add_argument(parser, "--encoder")
    who = "who may ask (default: localhost, this machine alone; it asks no password)"
    add_argument(parser, "--host", who, default="localhost")
    add_argument(parser, "--port", "default: 8000", default=8000)
    switch(parser, "--fetch_images", "clients may give images by address; private ones are never fetched")
    add_server(parser)
    add_argument(parser, "-k --k", type=passage_count)
    add_argument(parser, "--device")


def _add_compress(commands: Commands) -> None:
    parser = commands.add(
        "compress",
        "compressing.run",
        "write a smaller copy of a saved system: pruned, quantized, without near-duplicates",
        "Writes a smaller copy of a saved system, which opens as the system did. Only --recover trains.",
        """examples:
  hf-ravlm compress my_model my_small_model --quantize int8
  hf-ravlm compress my_model my_small_model --prune 0.3 --quantize int4
  hf-ravlm compress my_model my_small_model --prune 2:4 --recover train.jsonl --epochs 2
  hf-ravlm compress my_model my_small_model --drop_duplicates 0.98 --index binary
  hf-ravlm compress my_model my_small_model --questions asked.jsonl

Pruned weights are zeros: they take as much memory as others, but where kernels for 2:4 sparsity are. Measure what is
lost: hf-ravlm evaluate my_small_model questions.jsonl reports/small. Eight bits need torchao, four bitsandbytes.
""",
        "Stopped. The folder is not whole: delete it and run the same command again.",
    )
    add_argument(parser, "model", "a folder or Hub id of a saved system")
    add_argument(parser, "out", "the folder to write, which must be new or empty", metavar="OUT")
    add_argument(parser, "--quantize", "the weights of the reader's linear layers", choices=("int8", "int4"))
    add_argument(parser, "--prune", "the share of each layer's smallest weights that become zeros, or 2:4")
    add_argument(
        parser, "--recover", "questions with answers that the pruned reader learns from again", metavar="DATA"
    )
    add_argument(parser, "--epochs", "passes over the data of --recover", type=float, default=1.0)
    duplicates = "of passages whose vectors are at least so alike (a cosine, such as 0.98) the first stays"
    add_argument(parser, "--drop_duplicates", duplicates, type=float, metavar="COSINE")
    log = "what was asked so far: passages that are read for none of these questions go"
    add_argument(parser, "--questions", log, metavar="FILE")
    add_argument(parser, "--index", "another kind of vector index, such as binary", choices=INDEX_KINDS)


def _add_export(commands: Commands) -> None:
    parser = commands.add(
        "export",
        "exporting.export",
        "write the two towers that find passages as ONNX files",
        "Writes image tower and text tower with their projections to FOLDER, as ONNX files for batches of any size."
        '\nNeeds: pip install "hf_ravlm[onnx]"',
        None,
        "Stopped. The folder is not whole: run the same command again.",
    )
    add_argument(parser, "model")
    add_argument(parser, "folder", "where the files go", type=None)
