"""`pipeline("image-text-to-text")` for our models: the built-in chat pipeline, with evidence.

Other models get the built-in class itself, untouched.
"""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig, ImageTextToTextPipeline
from transformers.utils.chat_template_utils import Chat

from .conversations import read_conversation
from .image_to_text import ANSWER_KEYS, RavlmPipelineMixin, opened
from .parts import is_ours


class RavlmImageTextToTextPipeline(RavlmPipelineMixin, ImageTextToTextPipeline):
    """
    Answers chat messages, or `images=` with `text=`, as the built-in pipeline does; adds `evidence` and `posterior`.

    Takes the arguments of [`~transformers.ImageTextToTextPipeline`] and `k`, `retriever`, `with_posterior`,
    `with_leave_one_out` and `policy` of [`RavlmImageToTextPipeline`]. The last user message of a conversation is the
    question, and its last image the image.
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
            asked = read_conversation(inputs.messages)
            images, questions = [asked.images[-1] if asked.images else None], asked.question
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


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
