"""`pipeline("image-text-to-text")` for our models: the built-in chat pipeline, with evidence.

Other models get the built-in class itself, untouched.
"""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig, ImageTextToTextPipeline
from transformers.utils.chat_template_utils import Chat

from .answer import Answer
from .conversations import read_conversation
from .image_to_text import ANSWER_KEYS, RavlmPipelineMixin, opened
from .numbered_inputs import check_on_error
from .parts import is_ours


class RavlmImageTextToTextPipeline(RavlmPipelineMixin, ImageTextToTextPipeline):
    """
    Answers chat messages, or `images=` with `text=`, as the built-in pipeline does; adds `evidence` and `posterior`.

    Takes the arguments of [`~transformers.ImageTextToTextPipeline`] and `k`, `retriever`, `with_posterior`,
    `with_leave_one_out`, `policy` and `on_error` of [`RavlmImageToTextPipeline`]. The last user message of a
    conversation is the question, and its last image the image.
    """

    _load_processor = None  # a model object brings its folder's own
    _default_generation_config = GenerationConfig(max_new_tokens=256, do_sample=False)

    def __new__(cls, model=None, *args, encoder=None, knowledge=None, retriever=None, **kwargs):
        if model is None or is_ours(model) or any(part is not None for part in (encoder, knowledge, retriever)):
            return super().__new__(cls)
        return ImageTextToTextPipeline(model, *args, **kwargs)

    def _sanitize_parameters(self, on_error=None, **kwargs):
        if on_error is not None:
            check_on_error(on_error)
        extra = {key: kwargs.pop(key) for key in ANSWER_KEYS if key in kwargs}
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        reading = {} if on_error is None else {"on_error": on_error}
        return {**preprocess, **reading}, {**forward, **extra}, postprocess

    def read_input(self, inputs, timeout=None, **kwargs):
        """The questions of one input, with their images decoded."""
        images, questions = [None], inputs
        if isinstance(inputs, Chat):
            asked = read_conversation(inputs.messages)
            images, questions = [asked.images[-1] if asked.images else None], asked.question
        elif isinstance(inputs, dict):
            images, questions = _listed(inputs["images"]), inputs["text"]
        none = all(image is None for image in images)
        shown = None if none else [opened(image, timeout) for image in images]
        return {"images": shown, "questions": _listed(questions), "text": inputs}

    def unread_input(self, inputs):
        """Stands for an input that cannot be used."""
        asked = inputs.get("text") if isinstance(inputs, dict) else inputs
        return {"images": None, "questions": _listed(asked), "text": inputs}

    def _forward(self, model_inputs, **options):
        names = ("images", "questions", "error")
        batched = isinstance(model_inputs["questions"][0], list)  # with `batch_size`: one list per input
        rows = list(zip(*(model_inputs[name] if batched else [model_inputs[name]] for name in names), strict=True))
        sound = [row for row in rows if row[-1] is None]
        with_images = {images is not None for images, *_ in sound}
        if len(with_images) > 1:  # the reader takes batches with an image everywhere, or nowhere
            given = [answer for images, asked, _ in sound for answer in self._answer(images, asked, **options)]
        else:
            flat = [image for images, *_ in sound for image in images] if True in with_images else None
            questions = [question for _, asked, _ in sound for question in asked]
            given = self._answer(flat, questions, **options) if questions else []
        together = iter(given)
        answers = [
            [next(together) if error is None else [Answer("", error=error)] for _ in asked] for _, asked, error in rows
        ]
        kept = {name: model_inputs[name] for name in ("text", "questions")}
        return {"answers": answers if batched else answers[0], **kept}

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
