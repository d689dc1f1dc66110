"""Prompts for image-text-to-text models, written by their own processor and chat template.

Words of questions and passages never enter the chat template. It is filled with one reserved token per text, which is
a token only in a copy of the tokenizer; the processor's output is cut at these tokens and the texts' ids, tokenised
apart as literal text, are put there. So no text can produce a control token, whatever the template does.

The layout is image, passages (with their images), question; the best passage stands last, next to the question.
Too long a prompt loses passages, the worst first; the question and its image are never cut.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from PIL import Image
from tokenizers import AddedToken
from transformers.processing_utils import ProcessorMixin

from ...errors import InvalidInputError
from .chat_processor import load_generator_processor
from .evidence import EvidenceItem, evidence_tensors, pad_rows
from .literal import control_tokens, literal_ids


FOLDER = "generator_processor"  # of a saved processor
SLOT = "<|ravlm-slot|>"  # stands for one text from outside, in a copy of the tokenizer
PASSAGE, QUESTION = "Passage: ", "Question: "
ASKED_ABOUT = "The first picture is the one that is asked about.\n\n"
WORD = "ravlmtext{}end"  # what the chat template sees of a text
HUB_ACCESS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "trust_remote_code")


@dataclass
class MultimodalRow:
    """One prompt: token ids of its texts, and its images; passages best first."""

    question: list[int]
    image: Image.Image | None = None
    passages: list[list[int]] = field(default_factory=list)
    passage_images: list[Image.Image | None] = field(default_factory=list)
    answer: list[int] | None = None


class MultimodalPrompt:
    """Writes batches of prompts through the processor of an image-text-to-text model.

    Args:
        processor (`ProcessorMixin`): of the model, with a chat template.

    Raises:
        `InvalidInputError`: if there is no chat template.
    """

    def __init__(self, processor: ProcessorMixin):
        if not (processor.chat_template or processor.tokenizer.chat_template):
            raise InvalidInputError(
                f"the generator's {type(processor).__name__} has no chat template, so there is no way to write a "
                "prompt for it; choose an instruction-tuned model, or set processor.chat_template"
            )
        self.processor = processor
        self.with_slots = copy.copy(processor)
        self.with_slots.tokenizer = copy.deepcopy(processor.tokenizer)
        self.with_slots.tokenizer.add_tokens([AddedToken(SLOT, special=True, normalized=False)], special_tokens=True)
        self.slot_id = self.with_slots.tokenizer.convert_tokens_to_ids(SLOT)

    def __call__(self, rows: Sequence[MultimodalRow], max_length: int, padding_side: str = "left") -> dict[str, Any]:
        """Inputs of the model: its processor's own, with the texts in their places.

        Args:
            rows (`Sequence[MultimodalRow]`): the prompts; either all have an answer (for training) or none.
            max_length (`int`): tokens of a prompt with its answer and the tokens of its images.
            padding_side (`str`): `"left"` to generate, `"right"` to train.

        Returns:
            `dict`: `input_ids`, `attention_mask` `(B, L)` and what the processor adds; with answers also `labels`.

        Raises:
            `InvalidInputError`: if images, question and answer alone are longer than `max_length`.
        """
        answers = [[] if row.answer is None else [*row.answer, *self.answer_frame[1]] for row in rows]
        kept = [len(row.passages) for row in rows]
        while True:
            inputs, order = self._template_inputs(rows, kept)
            fixed = inputs["attention_mask"].bool() & (inputs["input_ids"] != self.slot_id)  # beside the texts
            rooms = [
                max_length - taken - len(row.question) - len(answer)
                for taken, row, answer in zip(fixed.sum(dim=1).tolist(), rows, answers, strict=True)
            ]
            fitting = [
                num_fitting([len(ids) for ids in row.passages[:count]], room)
                for row, count, room in zip(rows, kept, rooms, strict=True)
            ]
            if fitting == kept:
                break
            kept = fitting  # a passage that leaves takes its image along, so there may be more room than thought
        for row, room in zip(rows, rooms, strict=True):
            if room < 0:
                raise InvalidInputError(
                    f"the question is too long: its image, the chat template, question and answer take "
                    f"{max_length - room} tokens ({len(row.question)} of them the question), the limit is "
                    f"{max_length}; shorten the question, let the generator's image processor make smaller images, "
                    "or raise the processor's max_length up to what the generator was trained for"
                )
        texts = [
            [[*share_room(row.passages[:count], room), row.question][slot] for slot in slots]
            for row, count, room, slots in zip(rows, kept, rooms, order, strict=True)
        ]
        return self._with_texts(inputs, texts, answers, padding_side)

    @cached_property
    def answer_frame(self) -> tuple[str, list[int]]:
        """What the template puts between its generation prompt and an answer (blanks), and the ids that close it."""
        tokenizer = self.processor.tokenizer
        asked = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": WORD.format(0)}]}]
        prompt = self.processor.apply_chat_template(asked, add_generation_prompt=True)
        before, _, after = self.processor.apply_chat_template(answered).partition(WORD.format(0))
        lead = before[len(prompt) :] if before.startswith(prompt) else ""
        special = {*tokenizer.all_special_ids, *control_tokens(tokenizer).values()}
        ids = tokenizer(after, add_special_tokens=False)["input_ids"]
        end = next((place + 1 for place, id in enumerate(ids) if id in special), 0)  # of the turn
        return lead if lead.isspace() else "", ids[:end] or [tokenizer.eos_token_id]

    def _template_inputs(self, rows: Sequence[MultimodalRow], kept: Sequence[int]) -> tuple[dict, list[list[int]]]:
        """The processor's output for templates with slots, and per row which text each slot stands for, in order."""
        written, order, images = [], [], []
        slot = re.compile(WORD.format(r"(\d+)"))
        for row, count in zip(rows, kept, strict=True):
            content, shown = self.content(row, count)
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            slots = [int(number) for number in slot.findall(text)]
            if sorted(slots) != list(range(count + 1)):
                raise InvalidInputError(
                    f"the chat template of {type(self.processor).__name__} lost or repeated parts of the message: of "
                    f"{count + 1} texts it wrote {len(slots)}; give it a template that writes every part once"
                )
            written.append(slot.sub(SLOT, text))
            order.append(slots)
            images.append(shown)
        options = {"padding": True, "return_tensors": "pt"}
        bos = self.processor.tokenizer.bos_token
        if bos is not None and written[0].startswith(bos):
            options["add_special_tokens"] = False  # the template wrote it
        inputs = self.with_slots(text=written, images=images if any(images) else None, **options)
        return dict(inputs), order

    def content(self, row: MultimodalRow, num_passages: int) -> tuple[list[dict[str, str]], list[Image.Image]]:
        """The parts of the user's message, texts as words of ours, and its images in the order of the parts."""
        parts, shown, text = [], [], ""
        passage_images = (row.passage_images or [None] * num_passages)[:num_passages]
        if row.image is not None:
            parts.append({"type": "image"})
            shown.append(row.image)
            text = ASKED_ABOUT if any(image is not None for image in passage_images) else ""
        for k in reversed(range(num_passages)):  # the best stands last
            if (image := passage_images[k]) is not None:
                parts += [{"type": "text", "text": text}] if text else []
                parts.append({"type": "image"})
                shown.append(image)
                text = ""
            text += f"{PASSAGE}{WORD.format(k)}\n\n"
        text += f"{QUESTION if num_passages else ''}{WORD.format(num_passages)}"
        return [*parts, {"type": "text", "text": text}], shown

    def _with_texts(
        self, inputs: dict[str, Any], texts: list[list[list[int]]], answers: list[list[int]], side: str
    ) -> dict[str, Any]:
        """Puts the texts' ids in place of their slots, and the closed answers (empty for none) behind the prompts.

        What else the processor gives per token (types, the images it may see) is repeated: a text's tokens take that
        of their slot, an answer's tokens that of the prompt's last one.
        """
        shape = inputs["input_ids"].shape
        sequences, sources, labels = [], [], []
        for i, answer in enumerate(answers):
            waiting, ids, source = iter(texts[i]), [], []
            for place in inputs["attention_mask"][i].nonzero().flatten().tolist():
                id = int(inputs["input_ids"][i, place])
                chunk = next(waiting) if id == self.slot_id else [id]
                ids += chunk
                source += [place] * len(chunk)
            labels.append([-100] * len(ids) + answer)
            sequences.append(ids + answer)
            sources.append(source + [source[-1]] * len(answer))
        spread = {name for name, value in inputs.items() if getattr(value, "shape", ())[:2] == shape}
        out = {name: value for name, value in inputs.items() if name not in spread}
        for name in spread - {"input_ids"}:
            out[name] = pad_rows([inputs[name][i, source] for i, source in enumerate(sources)], 0, side)
        out["input_ids"] = pad_rows(sequences, self.processor.tokenizer.pad_token_id, side)
        if answers[0]:
            out["labels"] = pad_rows(labels, -100, side)
        return out


def num_fitting(lengths: Sequence[int], room: int) -> int:
    """How many passages, best first, get a place in a prompt that has `room` tokens left for them all.

    >>> num_fitting([3, 3, 3], 7), num_fitting([3, 3, 3], 6), num_fitting([3, 3, 3], -1), num_fitting([], -1)
    (3, 2, 2, 0)
    """
    if room < 0:  # not even the template fits: try with one passage, and its image, less
        return max(len(lengths) - 1, 0)
    for count, length in enumerate(lengths):
        if length and room <= 0:
            return count
        room -= length
    return len(lengths)


def share_room(passages: Sequence[Sequence[int]], room: int) -> list[list[int]]:
    """What fits of each passage, best first.

    >>> share_room([[1, 2, 3], [4, 5, 6]], 5)
    [[1, 2, 3], [4, 5]]
    """
    shared = []
    for ids in passages:
        shared.append(list(ids[: max(room, 0)]))
        room -= len(ids)
    return shared


class GeneratorProcessorMixin:
    """Base of our processor; keeps the processor of an image-text-to-text generator in a folder of its own."""

    generator_processor: ProcessorMixin | None

    @cached_property
    def multimodal_prompt(self) -> MultimodalPrompt:
        """Writes prompts through the generator's processor."""
        return MultimodalPrompt(self.generator_processor)

    def multimodal_inputs(
        self,
        questions: Sequence[str],
        images: Sequence[Image.Image] | None,
        passages: Sequence[Sequence[EvidenceItem]],
        answers: Sequence[str] | None,
        padding_side: str,
        max_length: int,
    ) -> dict[str, Any]:
        """Inputs of an image-text-to-text generator; arguments as in `RavlmProcessor.__call__`.

        Raises:
            `InvalidInputError`: if a question with its image is longer than `max_length`.
        """
        prompt, tokenizer = self.multimodal_prompt, self.tokenizer
        targets: Sequence[list[int] | None] = [None] * len(questions)
        if answers is not None:
            targets = literal_ids(tokenizer, answers, lead=prompt.answer_frame[0])
        texts = iter(literal_ids(tokenizer, [item.text for row in passages for item in row]))
        rows = []
        for i, question in enumerate(literal_ids(tokenizer, questions)):
            shown = passages[i] if self.passage_images else []
            rows.append(
                MultimodalRow(
                    question=question,
                    image=None if images is None else images[i],
                    passages=[next(texts)[: self.max_passage_length] for _ in passages[i]],
                    passage_images=[None if item.image is None else self._load_image(item.image) for item in shown],
                    answer=targets[i],
                )
            )
        return {**prompt(rows, max_length, padding_side), **evidence_tensors(passages)}

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> Any:
        """As every processor; the generator's goes to a folder in it."""
        saved = super().save_pretrained(save_directory, **kwargs)
        if self.generator_processor is not None:
            self.generator_processor.save_pretrained(os.path.join(save_directory, FOLDER))
        return saved

    def to_dict(self) -> dict[str, Any]:
        """The settings; of the generator's processor its class alone."""
        light = copy.copy(self)
        for name in ("generator_processor", "multimodal_prompt"):
            light.__dict__.pop(name, None)
        settings = super(GeneratorProcessorMixin, light).to_dict()
        if self.generator_processor is not None:
            settings[FOLDER] = type(self.generator_processor).__name__
        return settings

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> tuple[dict, dict]:
        """The saved settings, with the generator's processor in place of its class."""
        access = {name: kwargs[name] for name in HUB_ACCESS if kwargs.get(name) is not None}
        settings, rest = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if settings.get(FOLDER):
            folder = os.path.join(kwargs.get("subfolder") or "", FOLDER)
            settings[FOLDER] = load_generator_processor(
                pretrained_model_name_or_path, settings[FOLDER], subfolder=folder, **access
            )
        return settings, rest
