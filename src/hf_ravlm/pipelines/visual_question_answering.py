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
from ..model import RavlmForVisualQuestionAnswering
from ..model.loading import without_adapters
from ..model.reader.candidates import AnswerSet
from ..sequences import is_column
from .closed_answers import Choice, choose_answers
from .image_to_text import PROMPT_KEYS, RavlmImageToTextPipeline
from .numbered_inputs import still_encoded
from .parts import brings_evidence


CHOICE_KEYS = ("allowed_answers", "top_k", "threshold", "length_normalized", "content_free_weight", "calibrator")
_SEARCH = ("k", "where", "channels", "weights", "group_by", "group_query", "region", "crops")
OF_A_CHOICE = (*_SEARCH, "retriever", "prompt", "choice")  # of what `_forward` takes


class RavlmVisualQuestionAnsweringPipeline(RavlmImageToTextPipeline):
    """
    Answers questions about images with evidence from a knowledge base.

    `pipeline("visual-question-answering", model=FOLDER_OR_MODEL)` after `import hf_ravlm`, or `"vqa"`. Calls:

    - `pipe(image=..., question="...")`; several images (a list, a generator, a dataset) with one question; several
      questions about one image.
    - `pipe({"image": ..., "question": ...})`, or many of these.

    Everything else is as in [`RavlmImageToTextPipeline`], with `answer` in place of `generated_text`.

    Of a closed set the reader chooses instead of writing: the answers of a [`RavlmForVisualQuestionAnswering`], or

    - **allowed_answers** (`list[str]`, *optional*) -- those that may be given, from two to tens of thousands; any can
      be added, but to a head only what it was trained for.
    - **top_k** (`int`, *optional*, defaults to 1) -- so many answers, best first.
    - **threshold** (`float`, *optional*, defaults to 0) -- answers with a lower score are left out.
    - **length_normalized** (`bool`, *optional*, defaults to `True`), **content_free_weight** (`float`, *optional*),
      **calibrator** (*optional*) -- see [`hf_ravlm.pipelines.closed_answers.Choice`].

    Each question then gives a list of dictionaries with `answer`, `score` (from 0 to 1), `evidence` and `unread`.
    """

    _non_generation_params = ("top_k",)  # beside a closed set it is a number of answers, else it goes to `generate`

    def __new__(cls, model=None, *args, encoder=None, knowledge=None, retriever=None, **kwargs):
        if not (model is None or brings_evidence(model, encoder, knowledge, retriever)):
            raise InvalidInputError(
                f'"visual-question-answering" answers by models of hf_ravlm; this one is {model.config.model_type!r}. '
                "Give it knowledge= and encoder=, which makes it one; or, for answers without evidence, use "
                'pipeline("image-text-to-text"): transformers 5 removed this task.'
            )
        return Pipeline.__new__(cls)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if "choice" in self._forward_params and (idle := [*getattr(self, "_generate_kwargs", {})]):
            raise InvalidInputError(f"{idle[0]}= is of answers that are written, and these are chosen of a closed set")

    def __call__(self, image=None, question=None, **kwargs):
        """See the class."""
        if "_kept_set" in vars(self):
            self._kept_set[1].priors.clear()  # the reader may have learned, or wear another adapter
        return super().__call__(with_questions(image, question), **kwargs)

    @property
    def own_answers(self) -> list[str] | None:
        """The closed set that the model was made for, if it was."""
        model = without_adapters(self.model)
        if not isinstance(model, RavlmForVisualQuestionAnswering):
            return None
        return [model.config.id2label[place] for place in range(model.config.num_labels)]

    def _sanitize_parameters(self, **kwargs):
        names = [name for name in CHOICE_KEYS if kwargs.get(name) is not None]
        set_before = "choice" in getattr(self, "_forward_params", {})
        if kwargs.get("allowed_answers") is None and self.own_answers is None and not set_before:
            if wrong := [name for name in names if name != "top_k"]:  # which is of sampling, too
                raise InvalidInputError(f"{wrong[0]}= is of a closed set of answers: give allowed_answers=, a list")
            return super()._sanitize_parameters(**kwargs)
        given = {name: kwargs.pop(name) for name in CHOICE_KEYS if name in kwargs}
        before, forward, after = super()._sanitize_parameters(**kwargs)
        direct = {name: forward.pop(name) for name in PROMPT_KEYS if name in forward and name != "prompt"}
        if direct:
            forward["prompt"] = {**(forward.get("prompt") or {}), **direct}
        idle = [*forward.pop("generate_kwargs", {}), *(name for name in forward if name not in OF_A_CHOICE)]
        if idle:
            raise InvalidInputError(f"{idle[0]}= is of answers that are written, and these are chosen of a closed set")
        earlier = getattr(self, "_forward_params", {}).get("choice", {})
        return before, {**forward, "choice": {**earlier, **{n: v for n, v in given.items() if v is not None}}}, after

    def _answer_rows(self, images, questions, queries=None, choice=None, retriever=None, **options):
        if choice is None:
            return super()._answer_rows(images, questions, queries=queries, retriever=retriever, **options)
        given = dict(choice)
        answers = given.pop("allowed_answers", None)
        chosen = Choice(self.own_answers if answers is None else answers, **given)
        return choose_answers(
            self.model,
            self.processor,
            retriever if retriever is not None else self.retriever,
            images,
            questions,
            chosen,
            queries=queries,
            candidates=self._answer_set(chosen.answers, options.get("prompt")),
            **options,
        )

    def _answer_set(self, answers: Sequence[str], prompt: Any) -> AnswerSet | None:
        """The tokens of a closed set, which are kept for the next question."""
        if getattr(without_adapters(self.model), "answer_head", None) is not None:
            return None
        key = (tuple(answers), repr(prompt))
        if getattr(self, "_kept_set", (None, None))[0] != key:
            self._kept_set = (key, AnswerSet.of(self.processor, answers, prompt))
        return self._kept_set[1]

    def read_input(self, inputs, question=None, query=None, timeout=None):
        """As of its base, but that a question is not optional."""
        if not isinstance(inputs, dict) or inputs.get("question") is None:
            raise InvalidInputError(
                "an image came without a question: expected `image=` and `question=`, or dictionaries "
                "{'image': ..., 'question': ...}"
            )
        return super().read_input(inputs, query=query, timeout=timeout)

    def postprocess(self, model_outputs):
        answers = model_outputs["answers"]
        while answers and isinstance(answers[0], list):  # a batch of one comes back nested
            answers = answers[0]
        if not answers or isinstance(answers[0], dict):  # of a closed set
            return answers
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
    several = isinstance(images, (Iterator, Dataset)) or is_column(images)
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
    if not is_column(questions):
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
