"""From image, question and evidence to the tensors of the model: the one place where inputs are made safe.

The processor holds an image processor, the tokenizer of the language model (`tokenizer`) and that of the text encoder
(`text_tokenizer`). It knows no retriever: evidence is whatever has a text and, if it likes, a score.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from ..errors import InvalidInputError
from ..images import safe_image, trim_margins
from .configuration_ravlm import DESCRIBE_PROMPT
from .prompt_ravlm import PromptMarkers, clean_text, layout_prompt
from .publishing_ravlm import PublishMixin


CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
SPECIAL_TOKENS = {
    "image": "<image>",
    "evidence": "<evidence>",
    "passage": "<passage>",
    "question": "<question>",
    "answer": "<answer>",
}


class PublishedProcessor(PublishMixin, ProcessorMixin):
    """`ProcessorMixin` that saves with our shim."""


class RavlmProcessor(PublishedProcessor):
    r"""
    Prepares questions about images, with evidence, for [`RavlmForConditionalGeneration`], and queries and passages for
    [`RavlmModel`].

    Args:
        image_processor: an image processor of transformers (the PIL ones need no torchvision).
        tokenizer: tokenizer of the language model; missing marks (`<image>`, `<evidence>`, `<passage>`, `<question>`,
            `<answer>`) are added to it, so resize the language model's embeddings for a tokenizer that lacks them.
        text_tokenizer: tokenizer of the text encoder.
        chat_template (`str`, *optional*): Jinja template; the default puts `<image>` before the words.
        num_image_tokens (`int`, *optional*, defaults to 4): `P`, as in the model's config.
        num_memory_tokens (`int`, *optional*, defaults to 0):
            `M`, as in the model's config with a fusion that makes memory tokens; 0 writes passages as text.
        max_length (`int`, *optional*, defaults to 1024): tokens of a prompt; what the language model was trained for.
        max_passage_length (`int`, *optional*, defaults to 256): tokens of one passage in a prompt.
        max_text_length (`int`, *optional*, defaults to 256):
            tokens of a question or passage for the text encoder, its own marks included.
        trim_image_margins (`bool`, *optional*, defaults to `False`):
            cut the white margin off drawings first (`hf_ravlm.images.trim_margins`).

    Example:

    >>> inputs = processor(images=image, text="What is this?", evidence=[["A red kite."]])  # doctest: +SKIP
    >>> model.generate(**inputs)  # doctest: +SKIP
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        text_tokenizer=None,
        chat_template=None,
        num_image_tokens=4,
        num_memory_tokens=0,
        max_length=1024,
        max_passage_length=256,
        max_text_length=256,
        trim_image_margins=False,
    ):
        missing = [token for token in SPECIAL_TOKENS.values() if token not in tokenizer.get_vocab()]
        if missing:
            tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.num_image_tokens = num_image_tokens
        self.num_memory_tokens = num_memory_tokens
        self.max_length = max_length
        self.max_passage_length = max_passage_length
        self.max_text_length = max_text_length
        self.trim_image_margins = trim_image_margins
        self.image_token = SPECIAL_TOKENS["image"]
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, text_tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        evidence: Sequence[Sequence[Any]] | None = None,
        answers: str | Sequence[str] | None = None,
        padding_side: str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = "pt",
        **kwargs,
    ) -> BatchFeature:
        """Inputs of the reader.

        Args:
            images: one image or a list, each a PIL image, path, bytes or array; all questions have one, or none has.
            text (`str` or `list[str]`, *optional*): the questions; `None` asks for a description.
            evidence (`list[list]`, *optional*):
                per question its passages, best first: strings, dicts with `text` (and `score`), or objects with these
                attributes, as a retriever returns. `None` or an empty list is closed-book.
            answers (`list[str]`, *optional*): adds the answers and `labels` (-100 on the prompt), for training.
            padding_side (`str`, *optional*): defaults to `"left"`, and to `"right"` with answers.
            max_length (`int`, *optional*): tokens of a prompt with its answer; defaults to the processor's own.
            return_tensors (`str`, *optional*, defaults to `"pt"`): only `"pt"`; other arguments of the chat pipelines
                (`padding`, ...) are accepted and change nothing: batches are always padded to their longest row.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask` `(B, L)`; `pixel_values` `(B, 3, height, width)`; with
            evidence `evidence_scores` and `evidence_mask` `(B, K)`; with memory tokens also `evidence_input_ids` and
            `evidence_attention_mask` `(B, K, L)`, `question_input_ids` and `question_attention_mask` `(B, Lq)`; with
            answers `labels` `(B, L)`.

        Raises:
            `InvalidInputError`: empty question, lists of different lengths, a question longer than `max_length`.
            `UnsafeInputError`: a picture that cannot be used.
        """
        pictures = None if images is None else self._load_images(images)
        questions = self._questions(text, pictures)
        if pictures is not None and len(pictures) != len(questions):
            raise InvalidInputError(
                f"got {len(pictures)} images and {len(questions)} questions; give one image per question, or none"
            )
        passages = self._passages(evidence, len(questions))
        answers = [answers] if isinstance(answers, str) else answers
        rows = self._layout(questions, passages, pictures is not None, answers, max_length or self.max_length)
        side = padding_side or ("right" if answers is not None else "left")
        data = _pad_rows([ids for ids, _ in rows], self.tokenizer.pad_token_id, side)
        if answers is not None:
            labels = [[-100] * start + ids[start:] for ids, start in rows]
            data["labels"] = _pad_rows(labels, -100, side)["input_ids"]
        if pictures is not None:
            data["pixel_values"] = self._pixels(pictures)
        data.update(self._evidence_tensors(questions, passages))
        return BatchFeature(data, tensor_type=None)

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
        data = {}
        if images is not None and any(image is not None for image in images):
            present = [image for image in images if image is not None]
            pixels = self._pixels([self._load_image(image) for image in present])
            mask = torch.tensor([image is not None for image in images])
            data["pixel_values"] = pixels.new_zeros(len(images), *pixels.shape[1:])
            data["pixel_values"][mask] = pixels
            data["image_mask"] = mask
        if texts is not None and any(texts):
            data.update(self._encode_for_tower([text or "" for text in texts]))
            data["text_mask"] = torch.tensor([bool(text) for text in texts])
        return BatchFeature(data)

    @property
    def markers(self) -> PromptMarkers:
        """Ids of the marks in a prompt, for programs that lay out their own training sequences."""
        ids = {name: self.tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL_TOKENS.items()}
        return PromptMarkers(bos=self.tokenizer.bos_token_id, eos=self.tokenizer.eos_token_id, **ids)

    def encode_text(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts, each as literal text: cleaned, no special tokens added, none produced."""
        if not texts:
            return []
        cleaned = [clean_text(text) for text in texts]
        return self.tokenizer(cleaned, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def retrieval_fingerprint(self) -> dict[str, Any]:
        """What, beside the weights, decides an embedding: image processing and the text tokenizer."""
        vocabulary = json.loads(self.text_tokenizer.backend_tokenizer.to_str())
        for state in ("truncation", "padding"):  # of the last call, not of the tokenizer
            vocabulary.pop(state, None)
        settings = {key: value for key, value in self.image_processor.to_dict().items() if not key.startswith("_")}
        return {
            "image_processor": settings,
            "trim_image_margins": self.trim_image_margins,
            "text_tokenizer": hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest(),
            "max_text_length": self.max_text_length,
        }

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the reader takes."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def _load_images(self, images: Any) -> list[Image.Image]:
        if not isinstance(images, (list, tuple)):
            images = [images]
        flat = []
        for image in images:
            if isinstance(image, (list, tuple)):
                if len(image) != 1:
                    raise InvalidInputError(f"got {len(image)} images for one question; give exactly one")
                image = image[0]
            flat.append(self._load_image(image))
        return flat

    def _load_image(self, image: Any) -> Image.Image:
        picture = safe_image(image)
        return trim_margins(picture) if self.trim_image_margins else picture

    def _pixels(self, pictures: list[Image.Image]) -> torch.Tensor:
        return self.image_processor(images=pictures, return_tensors="pt")["pixel_values"]

    def _questions(self, text: str | Sequence[str] | None, pictures: list | None) -> list[str]:
        if text is None:
            text = [DESCRIBE_PROMPT] * (len(pictures) if pictures is not None else 1)
        questions = [text] if isinstance(text, str) else list(text)
        if pictures is not None:  # chat templates and habit put the placeholder before the words
            questions = [str(question).removeprefix(self.image_token) for question in questions]
        for row, question in enumerate(questions):
            if not clean_text(question):
                raise InvalidInputError(f"question {row} is empty; give words, or text=None for a description")
        return [clean_text(question) for question in questions]

    def _passages(self, evidence: Sequence[Sequence[Any]] | None, num_questions: int) -> list[list[tuple[str, float]]]:
        if evidence is None:
            return [[] for _ in range(num_questions)]
        if len(evidence) != num_questions:
            raise InvalidInputError(
                f"got evidence for {len(evidence)} questions and {num_questions} questions; give one list each"
            )
        for row in evidence:
            if isinstance(row, (str, dict)) or hasattr(row, "text"):
                raise InvalidInputError(
                    f"evidence holds a {type(row).__name__} where the passages of one question belong; give a list of "
                    "passages per question, also for a single question: evidence=[[passage, ...]]"
                )
        return [[_text_and_score(item) for item in row] for row in evidence]

    def _layout(
        self, questions: list[str], passages: list[list[tuple[str, float]]], with_image: bool, answers, max_length: int
    ) -> list[tuple[list[int], int]]:
        num_passages = max(len(row) for row in passages)
        targets: list[list[int] | None] = [None] * len(questions)
        if answers is not None:
            if len(answers) != len(questions):
                raise InvalidInputError(f"got {len(answers)} answers and {len(questions)} questions")
            targets = [*self.encode_text(list(answers))]
        in_prompt = [] if self.num_memory_tokens else sorted({text for row in passages for text, _ in row})
        encoded = dict(zip(in_prompt, self.encode_text(in_prompt), strict=True))
        return [
            layout_prompt(
                self.markers,
                question,
                [encoded[text][: self.max_passage_length] for text, _ in row] if not self.num_memory_tokens else [],
                num_image_tokens=self.num_image_tokens if with_image else 0,
                num_evidence_tokens=self.num_memory_tokens * num_passages,
                max_length=max_length,
                answer=target,
            )
            for question, row, target in zip(self.encode_text(questions), passages, targets, strict=True)
        ]

    def _encode_for_tower(self, texts: list[str]) -> dict[str, torch.Tensor]:
        encoded = self.text_tokenizer(
            [clean_text(text) for text in texts],
            split_special_tokens=True,
            truncation=True,
            max_length=self.max_text_length,
        )["input_ids"]
        return _pad_rows(encoded, self.text_tokenizer.pad_token_id or 0, "right")

    def _evidence_tensors(self, questions: list[str], passages: list[list[tuple[str, float]]]) -> dict[str, Any]:
        num_passages = max(len(row) for row in passages)
        if not num_passages:
            return {}
        missing = [[("", 0.0)] * (num_passages - len(row)) for row in passages]
        filled = [row + pad for row, pad in zip(passages, missing, strict=True)]
        data = {
            "evidence_scores": torch.tensor([[score for _, score in row] for row in filled]),
            "evidence_mask": torch.tensor([[k < len(row) for k in range(num_passages)] for row in passages]),
        }
        if self.num_memory_tokens:
            tower = self._encode_for_tower([text for row in filled for text, _ in row])
            data["evidence_input_ids"] = tower["input_ids"].unflatten(0, (len(questions), num_passages))
            data["evidence_attention_mask"] = tower["attention_mask"].unflatten(0, (len(questions), num_passages))
            question = self._encode_for_tower(questions)
            data["question_input_ids"] = question["input_ids"]
            data["question_attention_mask"] = question["attention_mask"]
        return data


def _text_and_score(item: Any) -> tuple[str, float]:
    """Text and score of one piece of evidence: a string, a dict, or an object with these attributes."""
    if isinstance(item, str):
        return item, 0.0
    if isinstance(item, dict):
        return item.get("text") or item.get("title") or "", float(item.get("score") or 0.0)
    if not hasattr(item, "text"):
        raise InvalidInputError(
            f"evidence of type {type(item).__name__}: expected a string, a dict with 'text', or an object with .text"
        )
    return item.text or getattr(item, "title", None) or "", float(getattr(item, "score", None) or 0.0)


def _pad_rows(rows: list[list[int]], value: int, side: str) -> dict[str, torch.Tensor]:
    """Rows of different lengths as one tensor `(n, L)`, with the mask of what is real."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), value, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for i, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[i, span] = torch.tensor(row, dtype=torch.long)
        mask[i, span] = 1
    return {"input_ids": ids, "attention_mask": mask}


__all__ = ["RavlmProcessor"]
