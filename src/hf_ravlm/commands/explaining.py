"""`hf-ravlm explain`: an image and a question in, a figure out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..explain.explanation import explain_answer
from ..explain.sheets import explanation_sheet, nats
from ..pipelines.opening import check_local, open_pipeline
from .outcome import Outcome, one_line


# Arguments that `explain_answer` takes by the same names.
_OPTIONS = ("k", "answer", "token", "layer", "method", "max_new_tokens")


def explain(arguments: argparse.Namespace) -> Outcome:
    """`explain`: answers, looks back, draws.

    Raises:
        InvalidInputError: The figure cannot be written where it should be, or there is no image.
    """
    out: Path = arguments.out
    if out.suffix.lower() != ".png":
        raise InvalidInputError(f"--out {out}: the figure is a PNG. Expected a name that ends in .png.")
    if not out.absolute().parent.is_dir():
        raise InvalidInputError(f"--out {out}: there is no folder {out.absolute().parent}. Make it first.")
    images: list[str] = arguments.image or []
    if missing := [image for image in images if "://" not in image and not Path(image).is_file()]:
        raise InvalidInputError(f"--image {missing[0]}: there is no such file.")
    options = {name: getattr(arguments, name) for name in _OPTIONS}
    check_local(arguments.model, "explain")
    reader = open_pipeline(arguments.model, arguments.knowledge, arguments.encoder, arguments.device)
    parts = (reader.model, reader.processor, reader.retriever)
    explanation = explain_answer(*parts, images, arguments.question, do_sample=False, **options)
    explanation_sheet(explanation).save(out)
    record: dict[str, Any] = {**explanation.to_record(), "files": [str(out)]}
    return Outcome(record, "\n".join(_lines(record)))


def _lines(record: dict[str, Any]) -> list[str]:
    lines = [one_line(record["question"]), f"-> {one_line(record['answer'])}"]
    if record["image_worth"] is not None:
        lines.append(f"   the image gives {nats(record['image_worth'])} nats")
    for passage in record["passages"]:
        shares = [f"posterior {passage['posterior']:.2f}", f"gives {nats(passage['leave_one_out'])} nats"]
        if passage["attention"] is not None:
            shares.append(f"attention {passage['attention']:.2f}")
        lines.append(f"   {passage['score']:.2f}  {one_line(passage['id'])}: {', '.join(shares)}")
        lines.append(f"         {one_line(passage['text'] or '')[:160]}")
    lines += [f"Not known: {one_line(note)}" for note in record["missing"]]
    return [*lines, f"Written: {record['files'][0]}"]
