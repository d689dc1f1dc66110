"""`pipeline("visual-question-answering")`: a picture and a question in, an answer with its evidence out.

transformers 5 removed this task; `import hf_ravlm` serves it again for our models (`hub/registration.py`), with the
calls that the removed pipeline took.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset

from ..errors import InvalidInputError
from ..model import RavlmConfig
from .image_to_text import RavlmImageToTextPipeline


class RavlmVisualQuestionAnsweringPipeline(RavlmImageToTextPipeline):
    """
    Answers questions about pictures with evidence from a knowledge base.

    `pipeline("visual-question-answering", model=FOLDER_OR_MODEL)` after `import hf_ravlm`, or `"vqa"`. Calls:

    - `pipe(image=..., question="...")`; several pictures (a list, a generator, a dataset) with one question; several
      questions about one picture.
    - `pipe({"image": ..., "question": ...})`, or many of these.

    Everything else is as in [`RavlmImageToTextPipeline`], with `answer` in place of `generated_text`.
    """

    def __new__(cls, model=None, *args, **kwargs):
        if model is not None and model.config.model_type != RavlmConfig.model_type:
            raise InvalidInputError(
                f'"visual-question-answering" answers by models of hf_ravlm; this one is {model.config.model_type!r}. '
                'transformers 5 removed the task for others: use pipeline("image-text-to-text").'
            )
        return super().__new__(cls, model, *args, **kwargs)

    def __call__(self, image=None, question=None, **kwargs):
        """See the class."""
        return super().__call__(with_questions(image, question), **kwargs)

    def preprocess(self, inputs, question=None, timeout=None):
        if not isinstance(inputs, dict) or "image" not in inputs or inputs.get("question") is None:
            raise InvalidInputError(
                "a picture came without a question: expected `image=` and `question=`, or dictionaries "
                "{'image': ..., 'question': ...}"
            )
        return super().preprocess(inputs, timeout=timeout)

    def postprocess(self, model_outputs):
        records = super().postprocess(model_outputs)
        return [{"answer": record.pop("generated_text"), **record} for record in records]


def with_questions(images: Any, questions: Any) -> Any:
    """Puts pictures and questions together into what a pipeline takes.

    Args:
        images: A picture, several of them in a list, or whatever can be iterated over.
        questions: A question, or several, about one picture; `None` where `images` has the questions, too.

    Raises:
        InvalidInputError: There are several of both, so that it is not said which belongs to which.

    >>> with_questions("a.png", ["Who?", "Where?"])
    [{'image': 'a.png', 'question': 'Who?'}, {'image': 'a.png', 'question': 'Where?'}]
    >>> list(with_questions((name for name in ["a.png", "b.png"]), "Who?"))
    [{'image': 'a.png', 'question': 'Who?'}, {'image': 'b.png', 'question': 'Who?'}]
    """
    if images is None:
        raise InvalidInputError("no picture given: call the pipeline with `image=` and `question=`")
    if questions is None:
        return images
    several = isinstance(images, (Sequence, Iterator, Dataset)) and not isinstance(images, (str, bytes))
    if isinstance(questions, str):
        if not several:
            return {"image": images, "question": questions}
        if isinstance(images, Dataset):
            return _Asked(images, questions)
        asked = ({"image": image, "question": questions} for image in images)
        return asked if isinstance(images, Iterator) else list(asked)
    if not several and isinstance(questions, Sequence) and not isinstance(questions, bytes):
        return [{"image": images, "question": question} for question in questions]
    if not several:
        raise InvalidInputError(f"question= came as {type(questions).__name__}: expected a string, or a list of them")
    raise InvalidInputError(
        "several pictures came with several questions, and it is not said which belongs to which: pass dictionaries "
        "{'image': ..., 'question': ...}, one per answer"
    )


class _Asked(Dataset):
    """A dataset of pictures with one question about each, read picture by picture."""

    def __init__(self, images: Any, question: str):
        self.images, self.question = images, question

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"image": self.images[place], "question": self.question}
