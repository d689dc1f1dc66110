"""The processor: from image, question and evidence, none of them trusted, to the tensors of the model."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin, Unpack
from transformers.utils import PROCESSOR_NAME

from ..errors import InvalidInputError, naming
from ..images import safe_image, shrunk, trim_margins
from ..saving.folders import PublishMixin, load_checked
from ..saving.safe_paths import at_home
from .parts.looking_once import once, rows_once
from .parts.references import note_states, unchanged_reference
from .prompts.asked import Asked, check_one_image_each, read_questions, rows_of_images
from .prompts.chat import MultimodalPrompt, slotted
from .prompts.chat_inputs import chat_prompts, multimodal_inputs
from .prompts.chat_processor import PROCESSORS, GeneratorProcessorMixin, WordsProcessor, load_processors
from .prompts.evidence import pad_prompts, read_answers, read_evidence
from .prompts.keywords import RavlmProcessorKwargs, sorted_keywords
from .prompts.layout import SPECIAL_TOKENS, PromptMarkers
from .prompts.literal import literal_ids
from .prompts.marked import marked_prompts
from .prompts.reader_parts import check_parts, own_template, prepare_tokenizer
from .prompts.settings import (
    MAX_IMAGE_PIXELS,
    MAX_PASSAGE_IMAGE_PIXELS,
    SETTINGS,
    PromptSettings,
    check_settings,
    split_settings,
)
from .prompts.thinking import split_thinking
from .prompts.tower_inputs import tower_texts


CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


_PLAIN_END = re.compile(r"\n\s*(?:Question|Passage):")  # where a language model goes on with a prompt of its own
HUB_ACCESS = ("cache_dir", "force_download", "local_files_only", "token", "trust_remote_code")


class PresentParts:
    """`get_attributes` of a processor, on an object without the parts that this one lacks: they are not saved."""

    def __get__(self, processor, owner):
        names = [*ProcessorMixin.__dict__["get_attributes"].__func__(owner)]
        return lambda: [name for name in names if processor is None or getattr(processor, name, self) is not None]


class PublishedProcessor(PublishMixin, GeneratorProcessorMixin, ProcessorMixin):
    """`ProcessorMixin` that saves with our shim: transformers asks a processor's first base for what it overrides."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers, from files that are as they were saved; `verify=False` does not compare them.

        Raises:
            `UnsafeInputError`: if one is not.
        """
        source, load = at_home(pretrained_model_name_or_path), super().from_pretrained
        return load_checked(source, ("processor",), kwargs, lambda _: load(source, **kwargs))


class RavlmProcessor(PublishedProcessor):
    r"""
    Prepares questions about images, with evidence, for [`RavlmForConditionalGeneration`], and queries and passages for
    [`RavlmModel`].

    Args:
        image_processor (*optional*): an image processor of transformers (the PIL ones need no torchvision).
        tokenizer: tokenizer of the language model; missing marks (`<image>`, `<evidence>`, `<passage>`, `<question>`,
            `<answer>`) are added to it, so resize the language model's embeddings for a tokenizer that lacks them.
        text_tokenizer (*optional*):
            tokenizer of the text encoder. A reader without towers has neither this nor the image processor: an
            image-text-to-text generator sees images through `generator_processor`, a causal one sees none.
        chat_template (`str`, *optional*): Jinja template that the reader's prompts are written in, in place of its
            own. (Conversations become text by one that puts `<image>` before the words.)
        fusion (`str`, *optional*, defaults to `"in_context"`), num_image_tokens (`int`, *optional*, defaults to 4),
            num_memory_tokens (`int`, *optional*, defaults to 8): as in the model's config.
        layout (`str`, *optional*):
            `"marks"`, our own, for a reader that is trained in it; `"chat"`, the reader's chat template; `"plain"`,
            plain words for a language model without one. By default `"chat"` with a `generator_processor`, else
            `"marks"`. In `"chat"` and `"plain"` a language model reads words alone.
        question_first (`bool`, *optional*, defaults to `False`):
            with `"marks"` the question stands before the passages: with one prompt per passage, image and question
            are then read once. A reader answers well only in the layout that it was trained in.
        passage_prompts (`bool`, *optional*, defaults to `False`):
            one prompt per passage, as `config.marginalization` other than `"none"` needs.
        passage_images (`bool`, *optional*, defaults to `False`): whether the reader sees the images of passages.
        max_length (`int`, *optional*, defaults to 1024): tokens of a prompt; what the language model was trained for.
        max_passage_length (`int`, *optional*, defaults to 256): tokens of one passage in a prompt.
        max_text_length (`int`, *optional*, defaults to 256): tokens for the text encoder, its own marks included.
        system_message, number_passages, passage_titles, passage_order, max_image_pixels, max_passage_image_pixels,
            drop_duplicates, enable_thinking, cite (*optional*):
            as in [`PromptSettings`], of which all are settings of a call, too. By default titles are shown in all
            layouts but `"marks"`, and the images of a reader that sees by itself have at most 1,048,576 pixels, those
            of its passages 262,144.
        trim_image_margins (`bool`, *optional*, defaults to `False`):
            cut the white margin off drawings first (`hf_ravlm.images.trim_margins`).
        pad_text, lower_case_text (`bool`, *optional*, default to `False`):
            fill texts for the text encoder up to `max_text_length`, and lower their case, as SigLIP was trained.
        generator_processor (*optional*):
            the processor of an image-text-to-text generator, which then writes the prompts in its own chat template;
            `tokenizer` is its tokenizer.

    Example:

    >>> inputs = processor(images=image, text="What is this?", evidence=[["A red kite."]])  # doctest: +SKIP
    >>> model.generate(**inputs)  # doctest: +SKIP
    """

    _published_as = "processor"
    valid_processor_kwargs = RavlmProcessorKwargs
    get_attributes = PresentParts()

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        text_tokenizer=None,
        chat_template=None,
        fusion="in_context",
        num_image_tokens=4,
        num_memory_tokens=8,
        layout=None,
        question_first=False,
        passage_prompts=False,
        passage_images=False,
        max_length=1024,
        max_passage_length=256,
        max_text_length=256,
        system_message=None,
        number_passages=False,
        passage_titles=None,
        passage_order="best_last",
        max_image_pixels=None,
        max_passage_image_pixels=None,
        drop_duplicates=False,
        enable_thinking=None,
        cite=False,
        trim_image_margins=False,
        pad_text=False,
        lower_case_text=False,
        generator_processor=None,
    ):
        layout = layout or ("marks" if generator_processor is None else "chat")
        check_parts(image_processor, text_tokenizer, generator_processor, fusion, passage_images, layout)
        prepare_tokenizer(tokenizer, layout, generator_processor)
        self.fusion = fusion
        self.num_image_tokens, self.num_memory_tokens = num_image_tokens, num_memory_tokens
        self.layout = layout
        self.question_first = question_first
        self.passage_prompts, self.passage_images = passage_prompts, passage_images
        self.max_length, self.max_text_length = max_length, max_text_length
        self.max_passage_length = max_passage_length
        self.system_message = system_message
        self.number_passages = number_passages
        self.passage_titles = layout != "marks" if passage_titles is None else passage_titles
        self.passage_order = passage_order
        sees = generator_processor is not None
        self.max_image_pixels = max_image_pixels or (MAX_IMAGE_PIXELS if sees else None)
        self.max_passage_image_pixels = max_passage_image_pixels or (MAX_PASSAGE_IMAGE_PIXELS if sees else None)
        self.drop_duplicates = drop_duplicates
        self.enable_thinking = enable_thinking
        self.cite = cite
        self.trim_image_margins = trim_image_margins
        self.pad_text, self.lower_case_text = pad_text, lower_case_text
        self.generator_processor = generator_processor
        self.image_token = SPECIAL_TOKENS["image"]
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        if layout != "marks" and not sees:
            chat_template = own_template(chat_template, tokenizer, layout)
        super().__init__(image_processor, tokenizer, text_tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        note_states([getattr(self, name) for name in PROCESSORS])
        check_settings(self.prompt_settings, layout, fusion)

    def check_argument_for_proper_class(self, argument_name, argument):
        """As in transformers, but that the parts of the towers may be missing."""
        if argument is not None or argument_name == "tokenizer":
            return super().check_argument_for_proper_class(argument_name, argument)

    def write_to(self, folder, base, **kwargs):
        """As in `PublishMixin`; by reference, the names of tokenizers and processors that are as they were loaded."""
        light, references = copy.copy(self), {}
        for name in PROCESSORS if base == "reference" else ():
            reference = unchanged_reference(getattr(self, name))
            if reference is not None and not (name == "tokenizer" and self.generator_processor is not None):
                kind = {"kind": type(self.generator_processor).__name__} if name == "generator_processor" else {}
                references[name] = {**reference, **kind}
                setattr(light, name, None)
        if "generator_processor" in references:  # its tokenizer is ours
            light.tokenizer = None
        saved = super(RavlmProcessor, light).write_to(folder, base, **kwargs)
        if references:
            path = Path(folder, PROCESSOR_NAME)
            settings = json.loads(path.read_text(encoding="utf-8")) | {"references": references}
            path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return saved

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        """The saved settings, with the parts that they refer to."""
        settings, rest = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if settings.get("references"):
            access = {name: kwargs[name] for name in HUB_ACCESS if kwargs.get(name) is not None}
            settings["references"] = found = load_processors(settings["references"], access)
            settings |= {name: found[name] for name in ("generator_processor",) if name in found}
        return settings, rest

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        """The parts in their order: those that were referred to, those in the folder, `None` for what is not there."""
        settings, source = processor_dict or {}, pretrained_model_name_or_path
        given = settings.pop("references", None) or {}
        if "generator_processor" in given:
            given["tokenizer"] = given["generator_processor"].tokenizer
        names = ["tokenizer"] if settings.get("image_processor", {}) is None else ["tokenizer", "text_tokenizer"]
        for name in names:
            if name not in given:
                given[name] = cls._load_tokenizer_from_pretrained(name, source, **kwargs)
        if "text_tokenizer" in given:
            given["image_processor"] = AutoImageProcessor.from_pretrained(source, **kwargs)
        return [given.get("image_processor"), given["tokenizer"], given.get("text_tokenizer")]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        evidence: Sequence[Sequence[Any]] | None = None,
        answers: str | Sequence[str] | None = None,
        **kwargs: Unpack[RavlmProcessorKwargs],
    ) -> BatchFeature:
        """Inputs of the reader.

        Args:
            images: one image or a list, each a PIL image, path, bytes or array: one of each question. `None` or an
                empty list in a place is a question without an image; a list of several is for readers that see
                images by themselves: `images=[[a, b], [c], []]`.
            text (`str` or `list[str]`, *optional*): the questions; `None` asks for a description.
            evidence (`list[list]`, *optional*):
                per question its passages, best first: strings, dicts with `text` (and `title`, `score`, `image`), or
                objects with these attributes, as a retriever returns. `None` or an empty list is closed-book.
            answers (`list[str]`, *optional*): adds the answers and `labels` (-100 on the prompt), for training.
            answer_on_top (`bool`, *optional*, defaults to `False`):
                prompts are as they are read without an answer, which `max_length` then does not count.
            passage_prompts (`bool`, *optional*): one prompt per passage; defaults to the processor's own setting.
            padding_side (`str`, *optional*): defaults to `"left"`, and to `"right"` with answers.
            padding (*optional*): `"max_length"` pads to `max_length`; all else to the longest row.
            pad_to_multiple_of (`int`, *optional*): rounds the padded length up.
            kwargs: settings of [`PromptSettings`] for this call (`max_length`, `cite`, `system_message`, ...),
                directly or in `prompt={...}`; arguments of the image processor (`size`, `do_rescale`, `max_pixels`,
                ...) for the images of this call; in `images_kwargs` and `text_kwargs` where a name is not clear.
                Tensors are always PyTorch's.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask` `(B, L)`; `pixel_values` `(B, 3, height, width)`; with
            answers `labels` `(B, L)`. With evidence `evidence_scores` and `evidence_mask` `(B, K)`, true for what
            stands in the prompt, and `token_passages` `(B, L)`, the passage that a token of the prompt belongs to
            (-1 for none). With one prompt per passage, `L`-wide rows are `B * K`, passage by passage. With a fusion
            that reads evidence also `evidence_input_ids` and `evidence_attention_mask` `(B, K, T)`,
            `question_input_ids` and `question_attention_mask` `(B, Lq)`; with images of passages
            `evidence_pixel_values` `(B, K, 3, height, width)` and `evidence_image_mask` `(B, K)`. A reader that sees
            images by itself gets what its own processor returns, `evidence_scores` and `evidence_mask`.

        Raises:
            `InvalidInputError`: empty question, lists of different lengths, a question longer than `max_length`, a
                keyword that nobody takes or that has no effect.
            `UnsafeInputError`: an image that cannot be used.
        """
        if images is None and text is None:
            raise InvalidInputError("nothing to ask: expected images, text or both, got neither")
        prompt, kwargs = split_settings(kwargs)
        settings = self.prompt_settings.changed(prompt)
        check_settings(settings, self.layout, self.fusion)
        passage_prompts, on_top = kwargs.pop("passage_prompts", None), bool(kwargs.pop("answer_on_top", None))
        padding, image_settings = sorted_keywords(self, kwargs)
        settings = settings.changed({"max_length": padding.get("max_length")})
        images = self._opened_images(images, text, _pixel_limit(settings, prompt, image_settings))
        questions = read_questions(text, images, self.image_token)
        passages, answers = read_evidence(evidence, len(questions)), read_answers(answers, len(questions))
        each = any(passages) and (self.passage_prompts if passage_prompts is None else passage_prompts)
        asked = Asked(questions, images, passages, answers, on_top)
        side = padding.get("padding_side") or ("right" if answers is not None else "left")
        if self.generator_processor is not None:
            if each:
                raise InvalidInputError(
                    "passage_prompts=True with an image-text-to-text generator: it reads all passages in one prompt; "
                    "pass passage_prompts=False, or choose a causal language model as the generator"
                )
            writer = MultimodalPrompt(self.generator_processor, settings, image_settings, self.with_slots)

            def load(image: Any) -> Image.Image:
                return self._load_image(image, settings.max_passage_image_pixels)

            return BatchFeature(multimodal_inputs(writer, asked, side, load), tensor_type=None)
        if self.layout == "marks":
            prompts, tower = marked_prompts(self, asked, settings, each)
        else:
            prompts, tower = chat_prompts(self.prompt_writer(settings), asked, each)
        width = settings.max_length if padding.get("padding") == "max_length" else 0
        multiple = padding.get("pad_to_multiple_of") or 1
        data = pad_prompts(prompts, self.tokenizer.pad_token_id, side, each, width, multiple)
        if not any(passages):
            del data["token_passages"]
        if self.image_processor is not None and any(images):  # without a tower they are for the search alone
            data["pixel_values"] = self._pixels_of_rows(images, image_settings)
        return BatchFeature({**data, **tower}, tensor_type=None)

    @property
    def prompt_settings(self) -> PromptSettings:
        """How prompts are written, unless a call says otherwise."""
        settings = {name: getattr(self, name) for name in SETTINGS if name != "chat_template"}
        if self.layout != "marks" and self.chat_template != CHAT_TEMPLATE:
            settings["chat_template"] = self.chat_template
        return PromptSettings(**settings)

    @cached_property
    def with_slots(self) -> Any:
        """What writes prompts of chat templates: a copy of the generator's processor that knows our slot."""
        return slotted(self._prompt_processor())

    def prompt_writer(self, settings: PromptSettings | None = None) -> MultimodalPrompt:
        """What writes the prompts of a reader in a chat template or in plain words."""
        return MultimodalPrompt(self._prompt_processor(), settings or self.prompt_settings, with_slots=self.with_slots)

    def _prompt_processor(self) -> Any:
        if self.generator_processor is not None:
            return self.generator_processor
        return WordsProcessor(self.tokenizer, plain=self.layout == "plain")

    def answer_ids(self, answers: Sequence[str], prompt: Mapping[str, Any] | None = None) -> list[list[int]]:
        """The ids by which answers are compared, as `__call__` writes them behind a prompt.

        With `"marks"` the one that closes an answer is among them: such a reader was trained to end there. Others
        would go on with a sentence, and how unlikely they are to stop says nothing about an answer.
        """
        if self.layout == "marks" and self.generator_processor is None:
            return [[*ids, self.markers.eos] for ids in self.encode_text(list(answers))]
        writer = self.prompt_writer(self.prompt_settings.changed(prompt or {}))
        return literal_ids(writer.processor.tokenizer, list(answers), lead=writer.answer_frame[0])

    def decode_answers(self, sequences: Any, prompt: Mapping[str, Any] | None = None) -> list[tuple[str, str | None]]:
        """Generated tokens, without their prompts, as answers and the thoughts before them (`None` for none).

        Args:
            sequences (`(B, T)`): token ids.
            prompt (`dict`, *optional*): the settings of the call that wrote the prompts.
        """
        if self.layout != "chat":
            texts = self.tokenizer.batch_decode(sequences, skip_special_tokens=True)
            ends = _PLAIN_END if self.layout == "plain" else None
            return [((ends.split(text, 1)[0] if ends else text).strip(), None) for text in texts]
        writer = self.prompt_writer(self.prompt_settings.changed(prompt or {}))
        return [split_thinking(self.tokenizer, ids, writer.template, writer.opens_thinking) for ids in sequences]

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """A conversation as the text that `__call__` takes, or as its inputs; see `ProcessorMixin`."""
        if chat_template is None and self.layout != "marks":
            chat_template = CHAT_TEMPLATE
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    def for_retrieval(self, images: Sequence[Any] | None = None, texts: Sequence[str | None] | None = None):
        """Inputs of the dual encoder, for queries and passages alike.

        Args:
            images (`list`, *optional*), texts (`list[str]`, *optional*): of one length; single entries may be `None`.

        Returns:
            `BatchFeature`: `pixel_values` `(n, 3, height, width)` and `image_mask` `(n,)` if there is an image;
            `input_ids`, `attention_mask` `(n, L)` and `text_mask` `(n,)` if there is a text.

        Raises:
            `InvalidInputError`: if there is neither image nor text, or the lists differ in length.
        """
        if images is None and texts is None:
            raise InvalidInputError("nothing to embed: expected images, texts or both, got neither")
        if images is not None and texts is not None and len(images) != len(texts):
            raise InvalidInputError(f"got {len(images)} images and {len(texts)} texts; give lists of one length")
        self._check_towers()
        data = {}
        if images is not None and any(image is not None for image in images):
            present = []
            for place, image in enumerate(images):
                with naming(f"image {place}"):
                    present += [] if image is None else [self._load_image(image)]
            pixels = self._pixels(present)
            mask = torch.tensor([image is not None for image in images])
            data["pixel_values"] = pixels.new_zeros(len(images), *pixels.shape[1:])
            data["pixel_values"][mask] = pixels
            data["image_mask"] = mask
        if texts is not None and any(texts):
            data.update(tower_texts(self, [text or "" for text in texts]))
            data["text_mask"] = torch.tensor([bool(text) for text in texts])
        return BatchFeature(data)

    @property
    def markers(self) -> PromptMarkers:
        """Ids of the marks in a prompt, for programs that lay out their own training sequences."""
        ids = {name: self.tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL_TOKENS.items()}
        return PromptMarkers(bos=self.tokenizer.bos_token_id, eos=self.tokenizer.eos_token_id, **ids)

    def encode_text(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts, each as literal text: cleaned, no special tokens added, none produced."""
        return literal_ids(self.tokenizer, texts)

    def retrieval_fingerprint(self) -> dict[str, Any]:
        """What, beside the weights, decides an embedding: image processing and the text tokenizer."""
        self._check_towers()
        backend = getattr(self.text_tokenizer, "backend_tokenizer", None)
        vocabulary = self.text_tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
        for state in ("truncation", "padding"):  # of the last call, not of the tokenizer
            vocabulary.pop(state, None)
        settings = {key: value for key, value in self.image_processor.to_dict().items() if not key.startswith("_")}
        found = {
            "image_processor": settings,
            "trim_image_margins": self.trim_image_margins,
            "text_tokenizer": hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest(),
            "max_text_length": self.max_text_length,
        }
        return {**found, "text": [self.pad_text, self.lower_case_text]} if self.pad_text else found

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the reader takes."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def _check_towers(self) -> None:
        if self.image_processor is None or self.text_tokenizer is None:
            raise InvalidInputError(
                "this processor is of a reader without towers, which cannot embed images and texts for a search: load "
                "the encoder that stands beside it (`hf_ravlm.load_encoder(name)`)"
            )

    def _opened_images(self, images: Any, text: Any, limit: int | None) -> list[list[Image.Image]]:
        """The images of every question, made safe and small."""
        rows = rows_of_images(images, text)
        if self.image_processor is not None and self.generator_processor is None:
            check_one_image_each(rows, self.fusion)
        opened: list[list[Image.Image]] = []
        for place, row in enumerate(rows):
            with naming(f"the image of question {place}"):
                opened.append([self._load_image(image, limit) for image in row])
        return opened

    def _load_image(self, image: Any, limit: int | None = None) -> Image.Image:
        return once((id(self), limit), image, lambda image: self._opened(image, limit))

    def _opened(self, image: Any, limit: int | None) -> Image.Image:
        image = safe_image(image)
        return shrunk(trim_margins(image) if self.trim_image_margins else image, limit)

    def _pixels(self, images: list[Image.Image], **settings: Any) -> torch.Tensor:
        prepare = partial(self.image_processor, **{**settings, "return_tensors": "pt"})
        way = (id(self), "pixels", repr(settings))
        return rows_once(way, images, lambda images: prepare(images=images)["pixel_values"])

    def _pixels_of_rows(self, rows: list[list[Image.Image]], settings: dict[str, Any]) -> torch.Tensor:
        """Images `(B, 3, height, width)`, with zeros for a question that has none."""
        there = torch.tensor([bool(row) for row in rows])
        pixels = self._pixels([row[0] for row in rows if row], **settings)
        if bool(there.all()):
            return pixels
        return pixels.new_zeros(len(rows), *pixels.shape[1:]).index_copy_(0, there.nonzero().flatten(), pixels)


def _pixel_limit(settings: PromptSettings, prompt: Mapping[str, Any], images: Mapping[str, Any]) -> int | None:
    """Pixels of a question's image; a call that says how large the image processor makes them is left its way."""
    sized = "size" in images and "max_image_pixels" not in prompt
    return None if sized else settings.max_image_pixels


__all__ = ["RavlmProcessor"]
