"""Knows how an answer is explained from the command line: a picture and a question in, a figure out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from .outcome import Outcome, one_line, positive, torch_device


_EXAMPLES = """examples:
  hf-ravlm explain my_model --image kite.png --question "What is this?" --out explained.png
  hf-ravlm explain my_model --image kite.png --answer "A wren." --k 4 --out why_no_wren.png
  hf-ravlm explain my_model --image kite.png --layer vision_tower.encoder.stages.1 --out finer.png --json

The figure shows where the picture speaks for the answer (Grad-CAM), where it found each passage, what each passage
gave to the answer (posterior, attention, what is lost without it), and which cells and words matched.
"""
_STOPPED = "Stopped. Nothing was written."


def add_explain_command(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    """Declares `explain`.

    Args:
        commands: Where it is added.
        common: Options that every command has.
    """
    parser = commands.add_parser(
        "explain",
        parents=[common],
        help="answer a question about a picture, and show where the answer comes from",
        description="Answers a question about a picture and draws where the answer comes from, as a PNG.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=explain, interrupted=_STOPPED)
    parser.add_argument("model", metavar="MODEL", help="a folder or Hub id of a RAVLM with its processor")
    parser.add_argument("--image", required=True, metavar="FILE", help="the picture")
    parser.add_argument("--question", metavar="TEXT", help="what is asked (default: the model's own question)")
    parser.add_argument("--out", required=True, metavar="PNG", type=Path, help="where the figure is written")
    group = parser.add_argument_group("answering")
    group.add_argument("--knowledge", metavar="FOLDER", help="the knowledge base, if it is not in that of the model")
    group.add_argument("-k", "--k", type=_number, help="passages; 0 is closed-book (default: as the model says)")
    group.add_argument("--max_new_tokens", type=positive, default=64, help="the longest answer (default: 64)")
    group.add_argument(
        "--device", type=torch_device, help="such as cuda or cpu (default: the graphics card, if there is one)"
    )
    group = parser.add_argument_group("explaining")
    group.add_argument("--answer", metavar="TEXT", help="explain this answer instead of the model's own")
    group.add_argument("--token", type=int, metavar="NUMBER", help="explain this token of it alone, counted from 0")
    group.add_argument("--layer", metavar="NAME", help="of the vision tower (default: its last output)")
    group.add_argument(
        "--method",
        choices=["grad_cam", "hires_cam"],
        default="grad_cam",
        help="how gradients become a map: weighed by channel, or place by place (default: grad_cam)",
    )


def explain(arguments: argparse.Namespace) -> Outcome:
    """`explain`: answers, looks back, draws."""
    from ..explain.explanation import explain_answer
    from ..explain.explanation_sheet import explanation_sheet

    out: Path = arguments.out
    if out.suffix.lower() != ".png":
        raise InvalidInputError(f"--out {out}: the figure is a PNG. Expected a name that ends in .png.")
    if not out.absolute().parent.is_dir():
        raise InvalidInputError(f"--out {out}: there is no folder {out.absolute().parent}. Make it first.")
    reader = open_reader(arguments.model, arguments.knowledge, arguments.device)
    told = explain_answer(
        reader.model,
        reader.processor,
        reader.retriever,
        arguments.image,
        arguments.question,
        k=arguments.k,
        answer=arguments.answer,
        token=arguments.token,
        layer=arguments.layer,
        method=arguments.method,
        max_new_tokens=arguments.max_new_tokens,
        do_sample=False,
    )
    explanation_sheet(told).save(out)
    record: dict[str, Any] = {**told.to_record(), "files": [str(out)]}
    return Outcome(record, "\n".join(_lines(record)))


def open_reader(name: str, knowledge: str | None = None, device: str | None = None) -> Any:
    """The pipeline of a RAVLM: `model`, `processor`, and `retriever` (`None` where there is no knowledge base).

    Args:
        name: A folder or Hub id.
        knowledge: The folder of another knowledge base, built by the model's own encoder.
        device: Such as `"cuda"`; `None` for the graphics card, if there is one.

    Raises:
        InvalidInputError: If there is no RAVLM.
        KnowledgeBaseNotFoundError: If there is no knowledge base in `knowledge`.
    """
    from transformers import pipeline

    from ..retrieval import RavlmEncoder, RavlmRetriever
    from .encoder_choice import default_device
    from .evaluating import check_model

    check_model(name)
    reader = pipeline("image-to-text", model=name, device=device or default_device() or "cpu")
    if knowledge is not None:
        encoder = RavlmEncoder(reader.model.model, reader.processor)
        reader.retriever = RavlmRetriever.from_pretrained(knowledge, encoder=encoder)
    return reader


def _lines(record: dict[str, Any]) -> list[str]:
    lines = [one_line(record["question"]), f"-> {one_line(record['answer'])}"]
    if record["picture_worth"] is not None:
        lines.append(f"   without the picture {-record['picture_worth']:+.2f} nats")
    for passage in record["passages"]:
        shares = [f"posterior {passage['posterior']:.2f}", f"without it {-passage['leave_one_out']:+.2f} nats"]
        if passage["attention"] is not None:
            shares.append(f"attention {passage['attention']:.2f}")
        lines.append(f"   {passage['score']:.2f}  {one_line(passage['id'])}: {', '.join(shares)}")
        lines.append(f"         {one_line(passage['text'] or '')[:160]}")
    lines += [f"Not told: {one_line(note)}" for note in record["missing"]]
    return [*lines, f"Written: {record['files'][0]}"]


def _number(text: str) -> int:
    return 0 if text.strip() == "0" else positive(text)
