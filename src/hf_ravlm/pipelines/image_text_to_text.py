"""`pipeline("image-text-to-text")` for our models: the built-in chat pipeline, with evidence.

Other models get the built-in class itself, untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

from transformers import GenerationConfig, ImageTextToTextPipeline
from transformers.utils.chat_template_utils import Chat

from ..errors import InvalidInputError
from ..sequences import is_column, listed
from .asked import Asked, opened
from .conversations import read_conversation
from .image_to_text import ANSWER_KEYS, RavlmPipelineMixin
from .numbered_inputs import check_on_error
from .parts import brings_evidence


# Of the built-in pipeline, and what would have to be applied for each.
_NOT_APPLIED = {
    "continue_final_message": "an answer is begun anew, for a question with its evidence",
    "return_tensors": "answers are texts with evidence",
    "clean_up_tokenization_spaces": "the processor decodes answers",
    "skip_special_tokens": "answers hold no special tokens",
    "processor_kwargs": "settings of the prompt are given directly, or in prompt={...}",
    "tools": "readers call no tools",
}


class RavlmImageTextToTextPipeline(RavlmPipelineMixin, ImageTextToTextPipeline):
    """
    Answers chat messages, or `images=` with `text=`, as the built-in pipeline does; adds `evidence` and `posterior`.

    Takes messages, or `images=` with `text=`, `return_full_text`, `stop_sequence`, and all that
    [`RavlmImageToTextPipeline`] takes in a call: `k`, `query`, `where`, `channels`, `weights`, `retriever`, `policy`,
    `on_error`, settings of the prompt, ...; everything else goes to `model.generate`. Of a conversation, the last user
    message is the question, with all its images (of one that has none, those of the last message before it that has),
    and system messages are told to the reader. Of several texts, each has the image in its place, or a list of
    several; one text has all.
    """

    _load_processor = None  # a model object brings its folder's own
    _default_generation_config = GenerationConfig(max_new_tokens=256, do_sample=False)

    def __new__(cls, model=None, *args, encoder=None, knowledge=None, retriever=None, **kwargs):
        if model is None or brings_evidence(model, encoder, knowledge, retriever):
            return super().__new__(cls)
        return ImageTextToTextPipeline(model, *args, **kwargs)

    def _sanitize_parameters(
        self, query=None, return_full_text=None, return_type=None, timeout=None, on_error=None, **kwargs
    ):
        if on_error is not None:
            check_on_error(on_error)
        for name, reason in _NOT_APPLIED.items():
            if kwargs.pop(name, None) not in (None, False):
                raise InvalidInputError(f"{name}= is not applied by this pipeline: {reason}; leave it out")
        if getattr(return_type, "name", None) == "TENSORS":
            raise InvalidInputError(f"return_type={return_type}: answers are texts with evidence; leave it out")
        if not isinstance(query, (str, NoneType)):
            raise InvalidInputError(f"query= came as {type(query).__name__}: expected words to search with")
        forward = {key: kwargs.pop(key) for key in ANSWER_KEYS if key in kwargs}
        builtin = {key: kwargs.pop(key) for key in ("max_new_tokens", "stop_sequence") if key in kwargs}
        generating = {**(kwargs.pop("generate_kwargs", None) or {}), **kwargs}
        full = {"return_full_text": return_full_text, "return_type": return_type}
        _, more, postprocess = super()._sanitize_parameters(generate_kwargs=generating, **builtin, **full)
        asking = {"query": query, "timeout": timeout, "on_error": on_error}
        return {key: value for key, value in asking.items() if value is not None}, {**forward, **more}, postprocess

    def read_input(self, inputs, query=None, timeout=None):
        """The questions of one input, with their images decoded."""
        if isinstance(inputs, Chat):
            told = read_conversation(inputs.messages)
            asked = [Asked(told.question, opened(told.images or None, timeout), query, told.system)]
        elif isinstance(inputs, Mapping):
            images, texts = inputs.get("images", inputs.get("image")), inputs.get("text", inputs.get("question"))
            if texts is None:
                raise InvalidInputError(f"a question came as {sorted(map(str, inputs))}: expected 'images' and 'text'")
            rows = _images_of(images, len(texts)) if is_column(texts) else [images]
            words = inputs.get("query", query)
            asked = [Asked(text, opened(row, timeout), words) for text, row in zip(listed(texts), rows, strict=True)]
        else:
            asked = [Asked(text, None, query) for text in listed(inputs)]
        if wrong := [one.question for one in asked if not isinstance(one.question, str)]:
            raise InvalidInputError(f"a text came as {type(wrong[0]).__name__}: expected a string")
        return {"asked": asked, "text": inputs}

    def unread_input(self, inputs, error):
        """Stands for an input that cannot be used."""
        texts = inputs.get("text") if isinstance(inputs, Mapping) else "" if isinstance(inputs, Chat) else inputs
        return {"asked": [Asked(text, error=error) for text in listed(texts)], "text": inputs}

    def _forward(self, model_inputs, **options):
        asked, texts = model_inputs["asked"], model_inputs["text"]
        if not asked or not isinstance(asked[0], list):
            return {"answers": self._answer(asked, **options), "asked": asked, "text": texts}
        together = iter(self._answer([one for row in asked for one in row], **options))  # with `batch_size`
        return {"answers": [[next(together) for _ in row] for row in asked], "asked": asked, "text": texts}

    def postprocess(self, model_outputs, return_type=None, **kwargs):
        new_text_only = getattr(return_type, "name", "FULL_TEXT") == "NEW_TEXT"
        given, records = model_outputs["text"], []
        for asked, answers in zip(model_outputs["asked"], model_outputs["answers"], strict=True):
            for answer in answers:
                record = answer.to_record()
                prompt = given.messages if isinstance(given, Chat) else asked.question
                if not new_text_only:
                    said = {"role": "assistant", "content": answer.text}
                    record["generated_text"] = (
                        f"{prompt} {answer.text}" if isinstance(prompt, str) else [*prompt, said]
                    )
                records.append({"input_text": prompt, **record})
        return records


def _images_of(images: Any, number: int) -> list[Any]:
    """Of each of several texts its image, a list of several, or `None`."""
    rows = [None] * number if images is None else listed(images)
    if len(rows) != number:
        raise InvalidInputError(
            f"{len(rows)} images came with {number} texts: give each text one, a list of several, or None"
        )
    return rows
