"""One answer and everything that can be told about where it comes from.

The path of a question once more, with the light on: evidence and answer as the pipeline gives them, then the part of
the picture that speaks for the answer, the part that found each passage, the attention over passages, and which words
matched. What a model cannot tell is left out and named in `missing`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..errors import InvalidInputError
from ..model.loading import without_adapters
from ..pipelines.answer import Answer
from ..pipelines.answering import add_attributions, answer_questions
from .attention import PassageAttention, passage_attention
from .gradcam import Method, answer_grad_cam, find_layer, picture_worth, retrieval_grad_cam
from .maxsim import TokenMatch, cosine_match, maxsim_match
from .overlay import seen_picture


if TYPE_CHECKING:
    from ..model import RavlmForConditionalGeneration, RavlmProcessor
    from ..retrieval import Evidence, RavlmRetriever


@dataclass
class Explanation:
    """An answer with its reasons.

    Args:
        question (`str`), answer ([`Answer`]): with `evidence`, `posterior` and `leave_one_out`.
        picture (`PIL.Image.Image`): what the maps lie on.
        answer_map (`np.ndarray` of shape `(height, width)`, *optional*):
            where the picture speaks for the answer, from 0 to 1.
        picture_worth (`float`, *optional*): what the answer loses when the picture is covered, in nats.
        passage_maps (`list[np.ndarray]`): where it speaks for the retrieval score of each passage.
        attention ([`PassageAttention`], *optional*): over the passages, for a batch of one.
        matches (`list[TokenMatch]`): of each passage with the query.
        missing (`list[str]`): what this model cannot tell, and why.
    """

    question: str
    answer: Answer
    picture: Image.Image
    answer_map: np.ndarray | None = None
    picture_worth: float | None = None
    passage_maps: list[np.ndarray] = field(default_factory=list)
    attention: PassageAttention | None = None
    matches: list[TokenMatch] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def to_record(self) -> dict[str, Any]:
        """JSON values: the answer, each passage with what it gave to it, and what is missing; no pictures."""
        passages = []
        for place, passage in enumerate(self.answer.evidence):
            shares = None if self.attention is None else float(self.attention.passages[0, place])
            passages.append(
                {
                    **{name: getattr(passage, name) for name in ("id", "text", "score", "source", "licence", "url")},
                    "posterior": self.answer.posterior[place],
                    "leave_one_out": self.answer.leave_one_out[place],
                    "attention": shares,
                }
            )
        elsewhere = None if self.attention is None else self.attention.elsewhere[0].tolist()
        return {
            "question": self.question,
            "answer": self.answer.text,
            "picture_worth": self.picture_worth,
            "passages": passages,
            "attention_elsewhere": elsewhere,
            "missing": self.missing,
        }


def explain_answer(
    model: RavlmForConditionalGeneration,
    processor: RavlmProcessor,
    retriever: RavlmRetriever | None,
    image: Any,
    question: str | None = None,
    k: int | None = None,
    answer: str | None = None,
    token: int | None = None,
    layer: str | None = None,
    method: Method = "grad_cam",
    **generate_kwargs: Any,
) -> Explanation:
    """Answers a question about a picture and tells where the answer comes from.

    Args:
        model, processor, retriever: as a pipeline holds them; `retriever=None` is closed-book.
        image: anything that the processor takes.
        question (`str`, *optional*): `config.default_prompt` by default.
        k (`int`, *optional*): passages; `config.num_passages` by default, 0 is closed-book.
        answer (`str`, *optional*): explain this answer instead of the one that the model gives.
        token (`int`, *optional*): explain this token of the answer alone, see `answer_grad_cam`.
        layer (`str`, *optional*): of the dual encoder, such as `"vision_tower.encoder.stages.1"`; the last one of the
            vision tower by default.
        method (`str`): how maps are made, `"grad_cam"` or `"hires_cam"`, see `layer_grad_cam`.
        generate_kwargs: passed to `model.generate`.

    Raises:
        `InvalidInputError`: for a layer or token that is not there, an empty question or answer.
        `UnsafeInputError`: for a picture that cannot be used.
    """
    question = model.config.default_prompt if question is None else question
    picture = seen_picture(processor, image)
    if answer is None:
        found = answer_questions(model, processor, retriever, [image], [question], k=k, **generate_kwargs)[0][0]
    else:
        k = model.config.num_passages if k is None else k
        evidence = retriever.retrieve([image], [question], k=k)[0] if retriever is not None and k > 0 else []
        found = Answer(answer.strip(), evidence)
        add_attributions(model, processor, [image], [question], [found])
    told = Explanation(question, found, picture)
    reader = without_adapters(model)
    _look_at_answer(told, reader, processor, image, layer, token=token, method=method)
    if found.evidence:
        _look_at_reading(told, reader, processor, image)
        _look_at_search(told, retriever, image, layer, method)
    return told


def _look_at_answer(
    told: Explanation, model: Any, processor: Any, image: Any, layer: str | None, **settings: Any
) -> None:
    if model.reads_images:
        told.missing.append(
            "where the picture speaks for the answer: the reader sees pictures through a vision tower of its own"
        )
        return
    part = None if layer is None else find_layer(model.model, layer)
    evidence = [told.answer.evidence]
    asked = ([image], [told.question], [told.answer.text])
    told.answer_map = _array(answer_grad_cam(model, processor, *asked, evidence=evidence, layer=part, **settings))
    told.picture_worth = float(picture_worth(model, processor, *asked, evidence=evidence))


def _look_at_reading(told: Explanation, model: Any, processor: Any, image: Any) -> None:
    asked = ([image], [told.question], [told.answer.text], [told.answer.evidence])
    try:
        told.attention = passage_attention(model, processor, *asked)
    except InvalidInputError as error:
        told.missing.append(f"attention over passages: {error}")


def _look_at_search(told: Explanation, retriever: Any, image: Any, layer: str | None, method: Method) -> None:
    from ..retrieval import RavlmEncoder
    from ..retrieval.encoding.encoders import TokenEncoder

    encoder, passages = retriever.encoder, told.answer.evidence
    if isinstance(encoder, RavlmEncoder):
        model, processor = encoder.model, encoder.processor
        vectors = encoder.encode_passages([item.text for item in passages], [item.image for item in passages])
        part = None if layer is None else find_layer(model, layer)
        number = len(passages)
        query = ([image] * number, [told.question] * number, torch.from_numpy(vectors))
        told.passage_maps = list(retrieval_grad_cam(model, processor, *query, layer=part, method=method).cpu().numpy())
        told.matches = [
            cosine_match(model, processor, image, told.question, item.text, item.image) for item in passages
        ]
    elif isinstance(encoder, TokenEncoder):
        told.matches = [_token_match(encoder, image, told.question, item) for item in passages]
        told.missing.append("where the picture found the passages: the encoder is not one of ours")
    else:
        told.missing.append("where picture and words found the passages: the encoder is not one of ours")


def _token_match(encoder: Any, image: Any, question: str, passage: Evidence) -> TokenMatch:
    query = encoder.encode_queries_tokens([image], [question])[0]
    return maxsim_match(query, encoder.encode_passages_tokens([passage.text], [passage.image])[0])


def _array(maps: torch.Tensor) -> np.ndarray:
    return maps[0].float().cpu().numpy()
