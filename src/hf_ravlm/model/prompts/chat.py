"""Prompts written by a chat template: of an image-text-to-text model by its processor, of a language model by its
tokenizer.

Words of questions, passages and system messages never enter the chat template. It is filled with one reserved token
per text, which is a token only in a copy of the tokenizer; the processor's output is cut at these tokens and the
texts' ids, tokenised apart as literal text, are put there. So no text can produce a control token, whatever the
template does.

The layout is images, passages (with their images), question; the best passage stands last, next to the question,
unless the settings say otherwise. Too long a prompt loses passages, the worst first; the question and its images are
never cut, but images are shrunk where they alone are too long.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError
from PIL import Image
from tokenizers import AddedToken
from transformers.processing_utils import ProcessorMixin

from ...errors import InvalidInputError
from ...images import shrunk
from ...tokenization import tokenize, tokenizer_lock
from .evidence import pad_rows
from .layout import Prompt, too_long
from .literal import control_tokens
from .plain_formats import NOT_MIXED, PLAIN_FORMATS
from .settings import PromptSettings


SLOT = "|ravlm-slot|"  # stands for one text from outside, in a copy of the tokenizer; for processors it is a word
ASKED_ABOUT = "The first picture is the one that is asked about.\n\n"
ASKED_ABOUT_SEVERAL = "The first {} pictures are those that are asked about.\n\n"
WORD = "ravlmtext{}end"  # what the chat template sees of a text
THINKING = ("enable_thinking", "thinking")  # variables of chat templates that switch it
BLANKS = ("Ġ", "▁", " ")  # a blank as a token of its own
FEWEST_PIXELS = 4_096  # an image is not shrunk further


@dataclass
class ShownPassage:
    """One passage of a prompt: token ids of its words, between those of its label and of what parts it from the next.

    `place` is its place among the passages of the question, as the retriever gave them; `first` words' tokens are the
    fewest that can be read.
    """

    words: list[int] = field(default_factory=list)
    image: Image.Image | None = None
    place: int = 0
    label: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    first: int = 1


@dataclass
class MultimodalRow:
    """One prompt: token ids of its texts, and its images; passages best first.

    `asked` is the question as it stands behind passages, with a label; `question` alone where there are none, and
    `behind_blank` in its place where the chat template ends in a blank, which is part of the first word then.
    """

    question: list[int]
    images: list[Image.Image] = field(default_factory=list)
    passages: list[ShownPassage] = field(default_factory=list)
    answer: list[int] | None = None
    asked: list[int] | None = None
    system: list[int] | None = None
    behind_blank: list[int] | None = None

    def of_question(self, num_passages: int) -> list[int]:
        """Token ids of the question in a prompt with so many passages."""
        return self.question if self.asked is None or not num_passages else self.asked


class SlotText(NamedTuple):
    """What goes into a slot: token ids, the passage they are of (-1 for none), and the ids behind a blank."""

    ids: list[int]
    passage: int = -1
    behind_blank: list[int] | None = None


@dataclass
class Written:
    """Prompts before they are padded: what the processor gave for templates with slots, and what goes into these.

    `texts` are those of every row, in the order of its slots; `read` are the places of the passages that stand in the
    prompt.
    """

    inputs: dict[str, Any]
    texts: list[list[SlotText]]
    answers: list[list[int]]
    read: list[list[int]]


class MultimodalPrompt:
    """Writes batches of prompts through the processor of an image-text-to-text model, or one of words alone.

    Args:
        processor: of the model, with a chat template: a `ProcessorMixin` or a [`WordsProcessor`].
        settings ([`PromptSettings`], *optional*): how prompts are written.
        image_settings (`dict`, *optional*): arguments of the image processor, such as `size` or `max_pixels`.
        with_slots (*optional*): `slotted(processor)`, where it is kept.

    Raises:
        `InvalidInputError`: if there is no chat template, or it does not know a setting.
    """

    def __init__(
        self,
        processor: Any,
        settings: PromptSettings | None = None,
        image_settings: Mapping[str, Any] | None = None,
        with_slots: Any = None,
    ):
        self.processor, self.settings = processor, settings or PromptSettings()
        self.image_settings = dict(image_settings or {})
        taught_no_chat = isinstance(processor, ProcessorMixin) and not processor.chat_template
        plain = PLAIN_FORMATS.get(type(processor).__name__) if taught_no_chat else None
        self.template = self.settings.chat_template or (plain.template if plain else template_of(processor))
        if not self.template:
            raise InvalidInputError(
                f"the generator's {type(processor).__name__} has no chat template, so there is no way to write a "
                "prompt for it; choose an instruction-tuned model, or give chat_template="
            )
        if hasattr(processor, "qformer_tokenizer"):
            raise InvalidInputError(
                f"the generator's {type(processor).__name__} reads every question a second time, for a Q-Former whose "
                "words could not be told from its marks; choose another image-text-to-text model"
            )
        self.plain = plain if plain is not None and self.template == plain.template else None
        self.variables = {}
        if self.settings.enable_thinking is not None:
            known = [name for name in THINKING if re.search(rf"\b{name}\b", self.template)]
            if not known:
                raise InvalidInputError(
                    f"enable_thinking={self.settings.enable_thinking}: the chat template of this reader does not know "
                    "it, so the reader thinks or not as it was trained to; leave it out, or give a chat_template= "
                    "that does"
                )
            self.variables = dict.fromkeys(known, self.settings.enable_thinking)
        self.with_slots = with_slots or slotted(processor)
        self.slot_id = self.with_slots.tokenizer.convert_tokens_to_ids(SLOT)
        vocabulary = processor.tokenizer.get_vocab()
        self.blanks = {vocabulary[blank] for blank in BLANKS if blank in vocabulary}

    def __call__(
        self,
        rows: Sequence[MultimodalRow],
        max_length: int | None = None,
        padding_side: str = "left",
        answer_on_top: bool = False,
    ) -> tuple[dict[str, Any], list[list[int]]]:
        """Inputs of the model: its processor's own, with the texts in their places.

        Args:
            rows (`Sequence[MultimodalRow]`): the prompts; either all have an answer (for training) or none.
            max_length (`int`, *optional*): tokens of a prompt with its answer and the tokens of its images.
            padding_side (`str`): `"left"` to generate, `"right"` to train.
            answer_on_top (`bool`): prompts are those without answers, which `max_length` does not count.

        Returns:
            `input_ids`, `attention_mask` `(B, L)` and what the processor adds, with passages `token_passages`, with
            answers `labels`; and the places of the passages that stand in each prompt.

        Raises:
            `InvalidInputError`: if images, question and answer alone are longer than `max_length`.
        """
        written = self.write(rows, max_length, answer_on_top)
        return self._with_texts(written, padding_side), written.read

    def write(
        self, rows: Sequence[MultimodalRow], max_length: int | None = None, answer_on_top: bool = False
    ) -> Written:
        """Fits rows into `max_length` and writes them; see `__call__`."""
        rows = [copy.copy(row) for row in rows]  # whose images may be shrunk
        limit = max_length or self.settings.max_length
        answers = [[] if row.answer is None else [*row.answer, *self.answer_frame[1]] for row in rows]
        reserved = [0 if answer_on_top else len(answer) for answer in answers]
        kept = [len(row.passages) for row in rows]
        while True:
            inputs, order = self._template_inputs(rows, kept)
            fixed = inputs["attention_mask"].bool() & (inputs["input_ids"] != self.slot_id)  # beside the texts
            rooms = [
                limit - taken - len(row.of_question(count)) - len(row.system or ()) - answer
                for taken, row, answer, count in zip(fixed.sum(dim=1).tolist(), rows, reserved, kept, strict=True)
            ]
            fitting = [
                num_fitting(row.passages[:count], room) for row, count, room in zip(rows, kept, rooms, strict=True)
            ]
            if fitting != kept:
                kept = fitting  # a passage that leaves takes its image along: there may be more room than thought
            elif min(rooms) < 0:
                kept = self._shrink(rows, kept, rooms, reserved, limit)
            else:
                break
        texts = []
        for row, count, room, slots in zip(rows, kept, rooms, order, strict=True):
            passages = share_room(row.passages[:count], room)
            question = SlotText(row.of_question(count), behind_blank=None if count else row.behind_blank)
            of_slots = [*passages, question, SlotText(row.system or [])]
            texts.append([of_slots[slot] for slot in slots])
        read = [[passage.place for passage in row.passages[:count]] for row, count in zip(rows, kept, strict=True)]
        return Written(inputs, texts, answers, read)

    def prompts(self, written: Written) -> list[Prompt]:
        """Prompts of words alone, as tokens with the passage that each belongs to."""
        made = []
        for i, answer in enumerate(written.answers):
            ids, _, owners = self._sequence(written, i)
            prefix = next((place for place, owner in enumerate(owners) if owner >= 0), len(ids))
            made.append(Prompt(ids + answer, owners + [-1] * len(answer), prefix, len(ids)))
        return made

    @property
    def labels_questions(self) -> bool:
        """Whether a question has its label also where there are no passages."""
        return bool(getattr(self.plain or self.processor, "labels_questions", False))

    def opens_thinking(self) -> bool:
        """Whether the prompt ends within the reader's thoughts, so that an answer begins with them."""
        written = self._render([{"role": "user", "content": _parts("?")}], add_generation_prompt=True)
        return written.rstrip().endswith("<think>")

    @cached_property
    def answer_frame(self) -> tuple[str, list[int]]:
        """What the template puts between its generation prompt and an answer (blanks), and the ids that close it."""
        tokenizer = self.processor.tokenizer
        asked = [{"role": "user", "content": _parts("?")}]
        answered = [*asked, {"role": "assistant", "content": _parts(WORD.format(0))}]
        prompt = self._render(asked, add_generation_prompt=True)
        before, _, after = self._render(answered).partition(WORD.format(0))
        lead = before[len(prompt) :] if before.startswith(prompt) else ""
        special = {*tokenizer.all_special_ids, *control_tokens(tokenizer).values()}
        ids: list[int] = tokenize(tokenizer, after, add_special_tokens=False)["input_ids"]
        end = next((place + 1 for place, id in enumerate(ids) if id in special), 0)  # of the turn
        return lead if lead.isspace() else "", ids[:end] or [tokenizer.eos_token_id]

    def _render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        return self.processor.apply_chat_template(messages, chat_template=self.template, **options, **self.variables)

    def _template_inputs(self, rows: Sequence[MultimodalRow], kept: Sequence[int]) -> tuple[dict, list[list[int]]]:
        """The processor's output for templates with slots, and per row which text each slot stands for, in order."""
        written, order, images = [], [], []
        for row, count in zip(rows, kept, strict=True):
            content, shown = self.content(row, count)
            text, slots = self._filled(content, count + 1, row.system is not None)
            written.append(text)
            order.append(slots)
            images.append(shown)
        if self.plain is not None:
            images = self.plain.fitting(self.processor, images)
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        bos = self.processor.tokenizer.bos_token
        if bos is not None and written[0].startswith(bos):
            options["add_special_tokens"] = False  # the template wrote it
        if any(images) and self.image_settings:
            options["images_kwargs"] = self.image_settings
        if "mm_token_type_ids" in getattr(self.processor, "model_input_names", ()):  # not all give them unasked
            options["return_mm_token_type_ids"] = True
        if type(self.processor).__name__ in NOT_MIXED and len({bool(row) for row in images}) > 1:
            raise InvalidInputError(
                f"a reader with a {type(self.processor).__name__} does not read prompts without an image beside "
                "prompts with one: ask them in batches of their own"
            )
        try:
            with tokenizer_lock(self.processor.tokenizer):
                inputs = self.with_slots(text=written, images=images if any(images) else None, **options)
        except Exception as error:  # whatever a processor raises for images or texts that it does not take
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            numbers = [len(row) if isinstance(row, list) else 1 for row in images]
            hint = "" if set(numbers) == {1} else "; ask about one image each, or leave out passage_images"
            raise InvalidInputError(
                f"the reader's {type(self.processor).__name__} does not take prompts with {numbers} images "
                f"({type(error).__name__}: {reason}){hint}"
            ) from error
        return dict(inputs), order

    def _filled(self, content: list[dict[str, str]], num_texts: int, with_system: bool) -> tuple[str, list[int]]:
        """The template with slots for its texts, the last of which is the system message if there is one."""
        found: list[int]
        slot, found, refused = re.compile(WORD.format(r"(\d+)")), [], ""
        for messages in _conversations(content, num_texts if with_system else None):
            try:
                text = self._render(messages, add_generation_prompt=True)
            except (TemplateError, TypeError) as error:
                found, refused = [], f" ({error})"
                continue
            found = [int(number) for number in slot.findall(text)]
            if sorted(found) == list(range(num_texts + with_system)):
                return slot.sub(SLOT, text), found
        raise InvalidInputError(
            f"the chat template of {type(self.processor).__name__} lost or repeated parts of the message: of "
            f"{num_texts + with_system} texts it wrote {len(found)}{refused}; give it a template that writes every "
            "part once"
        )

    def content(self, row: MultimodalRow, num_passages: int) -> tuple[list[dict[str, str]], list[Image.Image]]:
        """The parts of the user's message, texts as words of ours, and its images in the order of the parts."""
        passages = [passage.image for passage in row.passages[:num_passages]]
        return message_parts(row.images, passages, self.settings.passage_order == "best_first")

    def _shrink(
        self, rows: list[MultimodalRow], kept: list[int], rooms: list[int], reserved: list[int], limit: int
    ) -> list[int]:
        """Halves the images of rows that have no room for their question; the passages to try again with."""
        again = list(kept)
        for i, (row, room) in enumerate(zip(rows, rooms, strict=True)):
            if room >= 0:
                continue
            before = sum(image.width * image.height for image in row.images)
            row.images = [shrunk(image, max(image.width * image.height // 2, FEWEST_PIXELS)) for image in row.images]
            if sum(image.width * image.height for image in row.images) == before:
                answer = row.answer if reserved[i] else None
                what = "let the generator's image processor make smaller images, " if row.images else ""
                raise too_long(
                    limit, limit - room, row.question, answer, "its image, the chat template", what, row.system
                )
            again[i] = len(row.passages)
        return again

    def _sequence(self, written: Written, i: int) -> tuple[list[int], list[int], list[int]]:
        """Of one prompt its ids, the column of the processor's output each comes from, and the passage it is of."""
        waiting = iter(written.texts[i])
        ids: list[int] = []
        source: list[int] = []
        owners: list[int] = []
        for place in written.inputs["attention_mask"][i].nonzero().flatten().tolist():
            id = int(written.inputs["input_ids"][i, place])
            text = next(waiting) if id == self.slot_id else SlotText([id])
            chunk = text.ids
            if text.behind_blank is not None and ids and ids[-1] in self.blanks:
                chunk = text.behind_blank
                for row in (ids, source, owners):
                    row.pop()
            ids += chunk
            source += [place] * len(chunk)
            owners += [text.passage] * len(chunk)
        return ids, source, owners

    def _with_texts(self, written: Written, side: str) -> dict[str, Any]:
        """Puts the texts' ids in place of their slots, and the closed answers (empty for none) behind the prompts.

        What else the processor gives per token (types, the images it may see) is repeated: a text's tokens take that
        of their slot, an answer's tokens that of the prompt's last one.
        """
        inputs = written.inputs
        shape = inputs["input_ids"].shape
        sequences, sources, labels, passages = [], [], [], []
        for i, answer in enumerate(written.answers):
            ids, source, owners = self._sequence(written, i)
            passages.append(owners + [-1] * len(answer))
            labels.append([-100] * len(ids) + answer)
            sequences.append(ids + answer)
            sources.append(source + [source[-1]] * len(answer))
        spread = {
            name
            for name, value in inputs.items()  # pixels are numbers, and may have this shape by chance
            if getattr(value, "shape", ())[:2] == shape and not value.is_floating_point()
        }
        out = {name: value for name, value in inputs.items() if name not in spread}
        for name in spread - {"input_ids"}:
            out[name] = pad_rows([inputs[name][i, source] for i, source in enumerate(sources)], 0, side)
        out["input_ids"] = pad_rows(sequences, self.processor.tokenizer.pad_token_id, side)
        if any(written.read):
            out["token_passages"] = pad_rows(passages, -1, side)
        if written.answers[0]:
            out["labels"] = pad_rows(labels, -100, side)
        return out


def message_parts(
    images: Sequence[Image.Image], passages: Sequence[Image.Image | None], best_first: bool
) -> tuple[list[dict[str, str]], list[Image.Image]]:
    """The parts of a message: the images of the question, the passages (each with its image or `None`), the question.

    Returns:
        The parts, in which `WORD` stands for the text of each passage, by its number from 0, and last for the
        question; and all images, in the order of the parts.

    >>> message_parts([], [None, None], best_first=True)
    ([{'type': 'text', 'text': 'ravlmtext0endravlmtext1endravlmtext2end'}], [])
    """
    parts = [{"type": "image"} for _ in images]
    shown, text = list(images), ""
    if images and any(image is not None for image in passages):
        text = ASKED_ABOUT_SEVERAL.format(len(images)) if len(images) > 1 else ASKED_ABOUT
    places = range(len(passages))
    for k in places if best_first else reversed(places):
        if (image := passages[k]) is not None:
            parts += [{"type": "text", "text": text}] if text else []
            parts.append({"type": "image"})
            shown.append(image)
            text = ""
        text += WORD.format(k)
    return [*parts, {"type": "text", "text": text + WORD.format(len(passages))}], shown


def num_fitting(passages: Sequence[ShownPassage], room: int) -> int:
    """How many passages, best first, get a place in a prompt that has `room` tokens left for them all.

    Of a passage its label, its image and its first word have to fit.

    >>> three = [ShownPassage([1, 2, 3])] * 3
    >>> num_fitting(three, 7), num_fitting(three, 6), num_fitting(three, -1), num_fitting([], -1)
    (3, 2, 2, 0)
    """
    if room < 0:  # not even the template fits: try with one passage, and its image, less
        return max(len(passages) - 1, 0)
    for count, passage in enumerate(passages):
        frame = len(passage.label) + len(passage.end)
        if room < frame + min(len(passage.words), passage.first):
            return count
        room = max(room - frame - len(passage.words), 0)
    return len(passages)


def share_room(passages: Sequence[ShownPassage], room: int) -> list[SlotText]:
    """What fits of each passage, best first.

    >>> [text.ids for text in share_room([ShownPassage([1, 2, 3]), ShownPassage([4, 5, 6], place=1)], 5)]
    [[1, 2, 3], [4, 5]]
    """
    shared = []
    for passage in passages:
        room -= len(passage.label) + len(passage.end)
        words = passage.words[: max(room, 0)]
        shared.append(SlotText([*passage.label, *words, *passage.end], passage.place))
        room -= len(words)
    return shared


def template_of(processor: Any) -> str | None:
    """The chat template of a processor or tokenizer, or else of its tokenizer; of several the one named `default`."""
    template = getattr(processor, "chat_template", None) or getattr(
        getattr(processor, "tokenizer", None), "chat_template", None
    )
    return template.get("default") if isinstance(template, dict) else template


def slotted(processor: Any) -> Any:
    """A copy of a processor whose tokenizer knows our slot."""
    copied = copy.copy(processor)
    copied.tokenizer = copy.deepcopy(processor.tokenizer)
    copied.tokenizer.add_tokens([AddedToken(SLOT, special=True, normalized=False)], special_tokens=True)
    return copied


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _conversations(content: list[dict[str, str]], system: int | None) -> Iterator[list[dict[str, Any]]]:
    """The conversation in the forms that chat templates take, until one writes it: not all know a system message."""
    user = {"role": "user", "content": content}
    if system is None:
        yield [user]
        return
    word = WORD.format(system)
    yield [{"role": "system", "content": _parts(word)}, user]
    yield [{"role": "system", "content": word}, user]
    yield [{"role": "user", "content": [*_parts(word + "\n\n"), *content]}]


__all__ = ["MultimodalPrompt", "MultimodalRow", "ShownPassage", "Written", "message_parts"]
