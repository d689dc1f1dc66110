"""How image-text-to-text models that were taught no chat are asked, by their documentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import InvalidInputError


_TEMPLATE = (
    "{% for message in messages %}{% set parts = message['content'] %}"
    "{% if message['role'] == 'user' %}BEFORE{% elif message['role'] == 'assistant' %}LEAD{% endif %}"
    "{% if parts is string %}{{ parts }}{% else %}{% for part in parts %}{% if part['type'] == 'image' %}IMAGE"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'system' %}{{ '\\n\\n' }}{% elif message['role'] == 'user' %}AFTER"
    "{% else %}{{ eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class PlainFormat:
    """A prompt without a chat.

    Attributes:
        before, image, after, lead: what stands before the words of a question, in the place of an image, behind the
            words, and before an answer.
        images: the fewest and the most images of a prompt; `None` for any number.
        labels_questions: whether a question is `Question: ...`, also without passages.
    """

    before: str = ""
    image: str = ""
    after: str = ""
    lead: str = ""
    images: tuple[int, int | None] = (1, 1)
    labels_questions: bool = False

    @property
    def template(self) -> str:
        """The prompt as a chat template."""
        written = _TEMPLATE
        for name in ("before", "image", "after", "lead"):
            written = written.replace(name.upper(), getattr(self, name))
        return written

    def fitting(self, processor: Any, rows: list[list[Any]]) -> list[Any]:
        """The images of every prompt, in one list where each has one at most.

        Raises:
            `InvalidInputError`: if a prompt has too few or too many.
        """
        fewest, most = self.images
        numbers = [len(row) for row in rows]
        if most is not None and (min(numbers) < fewest or max(numbers) > most or len(set(numbers)) > 1):
            raise InvalidInputError(
                f"a reader with a {type(processor).__name__} takes {'one image' if fewest else 'one image, or none,'} "
                f"in every prompt of a batch, and these have {numbers}: ask about one image each, and leave out "
                "passage_images"
            )
        return rows if most is None else [image for row in rows for image in row]


NOT_MIXED = ("MllamaProcessor",)  # whose models look at the images of other prompts where a prompt has none
_ANSWER: dict[str, Any] = {"after": " Answer:", "lead": " ", "labels_questions": True}
PLAIN_FORMATS = {
    "Blip2Processor": PlainFormat(**_ANSWER),
    "BlipProcessor": PlainFormat(),
    "ChameleonProcessor": PlainFormat(image="<image>", images=(0, None)),
    "FuyuProcessor": PlainFormat(after="\n"),
    "GitProcessor": PlainFormat(images=(0, 1)),
    "InstructBlipProcessor": PlainFormat(),
    "Kosmos2Processor": PlainFormat(before="<grounding>", **_ANSWER),
    "PaliGemmaProcessor": PlainFormat(image="<image>"),
}
