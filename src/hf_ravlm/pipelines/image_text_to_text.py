"""`pipeline("image-text-to-text")` for our models: the built-in chat pipeline, with evidence.

Other models get the built-in class itself, untouched.
"""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig, ImageTextToTextPipeline
from transformers.utils.chat_template_utils import Chat

from ..errors import InvalidInputError
from .image_to_text import ANSWER_KEYS, RavlmPipelineMixin, opened
from .parts import is_ours


class RavlmImageTextToTextPipeline(RavlmPipelineMixin, ImageTextToTextPipeline):
    """
    Answers chat messages, or `images=` with `text=`, as the built-in pipeline does; adds `evidence` and `posterior`.

    Takes the arguments of [`~transformers.ImageTextToTextPipeline`] and `k`, `retriever`, `with_posterior` and
    `policy` of [`RavlmImageToTextPipeline`]. The last user message of a conversation is the question, and its
    last image the image.
    """

    _load_processor = None  # a model object brings its folder's own
    _default_generation_config = GenerationConfig(max_new_tokens=256, do_sample=False)

    def __new__(cls, model=None, *args, encoder=None, knowledge=None, retriever=None, **kwargs):
        if model is None or is_ours(model) or any(part is not None for part in (encoder, knowledge, retriever)):
            return super().__new__(cls)
        return ImageTextToTextPipeline(model, *args, **kwargs)

    def _sanitize_parameters(self, **kwargs):
        extra = {key: kwargs.pop(key) for key in ANSWER_KEYS if key in kwargs}
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess, {**forward, **extra}, postprocess

    def preprocess(self, inputs=None, timeout=None, **kwargs):
        images, questions = [None], inputs
        if isinstance(inputs, Chat):
            image, questions = question_of_chat(inputs.messages)
            images = [image]
        elif isinstance(inputs, dict):
            images, questions = _listed(inputs["images"]), inputs["text"]
        none = all(image is None for image in images)
        shown = None if none else [opened(image, timeout) for image in images]
        return {"images": shown, "questions": _listed(questions), "text": inputs}

    def _forward(self, model_inputs, **options):
        images, questions = model_inputs["images"], model_inputs["questions"]
        batched = isinstance(questions[0], list)  # with `batch_size`: one list of questions per input
        if not batched:
            images, questions = [images], [questions]
        with_images = {row is not None for row in images}
        if len(with_images) > 1:  # the reader takes batches with an image everywhere, or nowhere
            answers = [self._answer(shown, asked, **options) for shown, asked in zip(images, questions, strict=True)]
        else:
            flat = [image for row in images for image in row] if True in with_images else None
            together = iter(self._answer(flat, [question for row in questions for question in row], **options))
            answers = [[next(together) for _ in row] for row in questions]
        asked = {name: model_inputs[name] for name in ("text", "questions")}
        return {"answers": answers if batched else answers[0], **asked}

    def postprocess(self, model_outputs, return_type=None, **kwargs):
        new_text_only = getattr(return_type, "name", "FULL_TEXT") == "NEW_TEXT"
        given, records = model_outputs["text"], []
        for question, answers in zip(model_outputs["questions"], model_outputs["answers"], strict=True):
            for answer in answers:
                record = answer.to_record()
                prompt = given.messages if isinstance(given, Chat) else question
                if not new_text_only:
                    said = {"role": "assistant", "content": answer.text}
                    record["generated_text"] = (
                        f"{prompt} {answer.text}" if isinstance(prompt, str) else [*prompt, said]
                    )
                records.append({"input_text": prompt, **record})
        return records


def question_of_chat(messages: list[dict[str, Any]]) -> tuple[Any, str]:
    """The last image and the last user message's words of a conversation.

    Raises:
        InvalidInputError: The user says nothing, or an image part has no image.

    >>> parts = [{"type": "image", "url": "a.png"}, {"type": "text", "text": "Who?"}]
    >>> question_of_chat([{"role": "user", "content": parts}])
    ('a.png', 'Who?')
    """
    image, question = None, None
    for message in messages:
        if message["role"] != "user":
            continue
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        question = " ".join(part["text"] for part in parts if part["type"] == "text")
        for part in parts:
            if part["type"] in ("image", "image_url"):
                image = _image_of_part(part)
    if not question:
        raise InvalidInputError(
            "the conversation has no words from the user; add a text part to the last user message"
        )
    return image, question


def _image_of_part(part: dict[str, Any]) -> Any:
    if "base64" in part:
        return f"data:image/any;base64,{part['base64'].rpartition(',')[2]}"
    for key in ("image", "url", "path", "image_url"):
        if part.get(key) is not None:
            return part[key].get("url") if key == "image_url" and isinstance(part[key], dict) else part[key]
    raise InvalidInputError(
        f"an image part of the conversation has no image: it has the keys {sorted(part)}, expected one of "
        "image, url, path, base64 or image_url"
    )


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
