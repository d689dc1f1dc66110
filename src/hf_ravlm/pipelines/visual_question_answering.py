"""`pipeline("visual-question-answering")`: an image and a question in, an answer with its evidence out.

transformers 5 removed this task; `import hf_ravlm` serves it again for our models (`hub/registration.py`), with the
calls that the removed pipeline took.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset
from transformers import Pipeline

from ..errors import InvalidInputError
from .image_to_text import RavlmImageToTextPipeline
from .numbered_inputs import still_encoded
from .parts import is_ours


class RavlmVisualQuestionAnsweringPipeline(RavlmImageToTextPipeline):
    """
    Answers questions about images with evidence from a knowledge base.

    `pipeline("visual-question-answering", model=FOLDER_OR_MODEL)` after `import hf_ravlm`, or `"vqa"`. Calls:

    - `pipe(image=..., question="...")`; several images (a list, a generator, a dataset) with one question; several
      questions about one image.
    - `pipe({"image": ..., "question": ...})`, or many of these.

    Everything else is as in [`RavlmImageToTextPipeline`], with `answer` in place of `generated_text`.
    """

    def __new__(cls, model=None, *args, encoder=None, knowledge=None, retriever=None, **kwargs):
        if not (model is None or is_ours(model) or any(part is not None for part in (encoder, knowledge, retriever))):
            raise InvalidInputError(
                f'"visual-question-answering" answers by models of hf_ravlm; this one is {model.config.model_type!r}. '
                "Give it knowledge= and encoder=, which makes it one; or, for answers without evidence, use "
                'pipeline("image-text-to-text"): transformers 5 removed this task.'
            )
        return Pipeline.__new__(cls)

    def __call__(self, image=None, question=None, **kwargs):
        """See the class."""
        return super().__call__(with_questions(image, question), **kwargs)

    def read_input(self, inputs, question=None, query=None, timeout=None):
        """As of its base, but that a question is not optional."""
        if not isinstance(inputs, dict) or inputs.get("question") is None:
            raise InvalidInputError(
                "an image came without a question: expected `image=` and `question=`, or dictionaries "
                "{'image': ..., 'question': ...}"
            )
        return super().read_input(inputs, query=query, timeout=timeout)

    def postprocess(self, model_outputs):
        records = super().postprocess(model_outputs)
        return [{"answer": record.pop("generated_text"), **record} for record in records]


def with_questions(images: Any, questions: Any) -> Any:
    """Puts images and questions together into what a pipeline takes.

    Args:
        images: An image, or several in a list, a generator or a dataset.
        questions: A question, or several about one image; `None` if `images` has the questions, too.

    Raises:
        InvalidInputError: There is no image, a question is no text, or several images came with several questions.

    >>> with_questions("a.png", ["Who?", "Where?"])
    [{'image': 'a.png', 'question': 'Who?'}, {'image': 'a.png', 'question': 'Where?'}]
    >>> list(with_questions((name for name in ["a.png", "b.png"]), "Who?"))
    [{'image': 'a.png', 'question': 'Who?'}, {'image': 'b.png', 'question': 'Who?'}]
    """
    if images is None and questions is None:
        raise InvalidInputError("no image given: call the pipeline with `image=` and `question=`")
    if questions is None:
        return images
    several = isinstance(images, (Sequence, Iterator, Dataset)) and not isinstance(images, (str, bytes))
    if isinstance(questions, str):
        if not several:
            return {"image": images, "question": questions}
        if isinstance(images, Dataset):
            return _Asked(still_encoded(images), questions)
        asked = ({"image": image, "question": questions} for image in images)
        return asked if isinstance(images, Iterator) else list(asked)
    if several:
        raise InvalidInputError(
            "several images came with several questions, and which belongs to which is unknown: pass dictionaries "
            "{'image': ..., 'question': ...}, one per answer"
        )
    if not isinstance(questions, Sequence) or isinstance(questions, bytes):
        raise InvalidInputError(f"question= came as {type(questions).__name__}: expected a string, or a list of them")
    return [{"image": images, "question": question} for question in questions]


class _Asked(Dataset):
    """A dataset of images with one question about each, read one by one."""

    def __init__(self, images: Any, question: str):
        self.images, self.question = images, question

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"image": self.images[place], "question": self.question}
