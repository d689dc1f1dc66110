"""`hf-ravlm ask`: a question in, an answer with its evidence out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..images import IMAGE_SUFFIXES
from ..pipelines.knowledge import check_place
from ..pipelines.opening import check_local, open_pipeline
from ..pipelines.policy.answer_policy import AnswerPolicy
from .models import of_server
from .outcome import Outcome, one_line
from .searching import conditions
from .sources import column_names, other_files


_CONFIG = "config.json"
MOST_LETTERS = 160  # of a passage that stands below an answer


def ask(arguments: argparse.Namespace) -> Outcome:
    """`ask`: opens what is searched, asks, and says what was read. An image alone is described.

    Raises:
        InvalidInputError: The question is empty, there is no such image, no model is named, or --save would replace
            what somebody keeps.
    """
    images, question = images_and_question(arguments.words)
    where = conditions(arguments.where)
    model, knowledge = model_and_knowledge(arguments.model, arguments.knowledge)
    reading = column_names(arguments.columns) if arguments.columns else {}
    reading |= {"on_error": arguments.on_error} if arguments.on_error != "raise" else {}
    if arguments.save is not None:
        check_local(model, "--save")
        check_free(arguments.save, arguments.overwrite)
    reading |= of_server(arguments)
    policy = None if arguments.policy is None else AnswerPolicy.from_pretrained(arguments.policy)
    pipeline = open_pipeline(model, knowledge, arguments.encoder, arguments.device, **reading)
    pipeline.policy = policy or pipeline.policy
    options: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "with_posterior": False}
    given = {name: getattr(arguments, name) for name in ("k", "query", "channels", "weights", "system_message")} | {
        "where": where
    }
    if arguments.weights and not arguments.channels:
        given["channels"] = list(arguments.weights)
    options |= {name: value for name, value in given.items() if value is not None}
    options |= {"cite": True} if arguments.cite else {}
    terminal = sys.__stdout__
    is_read = terminal is not None and terminal.isatty() and not arguments.json and not arguments.quiet
    asked = {"image": images or None, "question": question}
    answer = told_as_written(pipeline.stream(asked, **options)) if is_read else pipeline(asked, **options)[0]
    if arguments.save is not None:
        pipeline.save_pretrained(arguments.save)
    record = {"question": question, "images": images, **plain_record(answer)}
    for name in ("posterior", "leave_one_out"):
        if not record[name]:  # it was not asked for
            del record[name]
    lines = [] if is_read else [answer["generated_text"] or "(no answer)"]
    return Outcome(record, "\n".join([*lines, *_judged(record), *_evidence(record, bool(where) and arguments.k != 0)]))


def told_as_written(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The answer of a stream, whose words are written to the terminal as they come; all else goes elsewhere."""
    record: dict[str, Any] = {}
    for event in events:
        record = event.get("answer", record)
        print(event.get("text", ""), end="", flush=True, file=sys.__stdout__)
    print("" if record["generated_text"] else "(no answer)", file=sys.__stdout__)
    return record


def images_and_question(words: list[str]) -> tuple[list[str], str | None]:
    """The images of a question, and the question, which stands last; `None` where images came alone.

    Raises:
        InvalidInputError: The question is empty, or there is no such image.

    >>> images_and_question(["What is a wren?"])
    ([], 'What is a wren?')
    """
    *images, last = words
    if not last.strip():
        raise InvalidInputError("the question is empty. Write it last, in quotes.")
    is_address = last.startswith(("http://", "https://")) or Path(last).suffix.lower() in IMAGE_SUFFIXES
    is_image = os.path.isfile(last) or (is_address and len(last.split()) == 1)
    images, question = (words, None) if is_image else (images, last)
    for image in images:
        if "://" not in image and not os.path.isfile(image):
            reason = "this is a folder, not an image" if os.path.isdir(image) else "there is no such image"
            raise InvalidInputError(f"{image}: {reason}. Images come first, the question last, in quotes.")
    return images, question


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuses to save a system among files of another kind, and over another system unasked.

    Raises:
        InvalidInputError: With what to do.
    """
    others = other_files(folder)
    if others and not (folder / _CONFIG).is_file():
        raise InvalidInputError(f"--save {folder} holds other files ({others[0]}) and no system. Name a new folder.")
    if others and not overwrite:
        raise InvalidInputError(f"--save {folder} holds a system already. Name a new folder, or add --overwrite.")


def model_and_knowledge(model: str | None, knowledge: str) -> tuple[str, str | None]:
    """The reader and what it reads; a saved system is both.

    Raises:
        InvalidInputError: No model is named, or there is no such file or folder.
    """
    check_place(knowledge)
    if model is not None:
        return model, knowledge
    place = Path(knowledge).expanduser()
    if place.exists() and not (place / _CONFIG).is_file():
        raise InvalidInputError(
            f"{knowledge}: no model lies here. Name a reader: --model Qwen/Qwen3-VL-2B-Instruct, --model offline"
        )
    return knowledge, None


def plain_record(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer of the pipeline as JSON values: images of passages are left out, for their ids name them."""
    record = dict(answer)
    for name in ("evidence", "unread", "dropped"):
        if name in record:
            record[name] = [{key: value for key, value in one.items() if key != "image"} for one in record[name]]
    return record


def _judged(record: dict[str, Any]) -> list[str]:
    if record.get("confidence") is None:
        return []
    if not record["abstained"]:
        return [f"(sure by {record['confidence']:.2f}, says the policy)"]
    return [f"Withheld by the policy, which is sure by {record['confidence']:.2f} of: {one_line(record['withheld'])}"]


def _evidence(record: dict[str, Any], is_filtered: bool) -> list[str]:
    if not record["evidence"]:
        return ["", _why_nothing(record, is_filtered)]
    lines = ["", "Read:"]
    for number, passage in enumerate(record["evidence"], start=1):
        title, text = passage.get("title") or "", passage.get("text") or ""
        words = one_line(text if text.startswith(title) else f"{title} {text}")
        words = words if len(words) <= MOST_LETTERS else f"{words[:MOST_LETTERS]} ..."
        lines.append(f"  [{number}] {passage['score']:.2f}  {one_line(passage['id'])}: {words}")
        origin = [one_line(passage[name]) for name in ("source", "licence", "url") if passage.get(name)]
        lines += [f"      {', '.join(origin)}"] if origin else []
    if record.get("citations") == [] and not record.get("abstained"):
        lines.append("  The answer cites none of them.")
    for citation in record.get("citations") or []:
        if not citation["supported"]:
            lines.append(f"  {citation['marker']} is not supported by what was read: {citation['reason']}")
    if record.get("unread"):
        lines.append(f"  Found and not read: {', '.join(one_line(one['id']) for one in record['unread'])}")
    return lines


def _why_nothing(record: dict[str, Any], is_filtered: bool) -> str:
    if record.get("dropped"):
        why = f": the policy dropped {', '.join(one_line(one['id']) for one in record['dropped'])}"
    elif record.get("retrieved") is False:
        why = ": the policy did not search"
    else:
        why = ": nothing was found among what --where lets pass" if is_filtered else ""
    return f"Nothing was read for it{why}."
