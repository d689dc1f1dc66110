"""One answer and where it comes from: evidence, maps of the image, attention over passages, words that matched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..errors import InvalidInputError
from ..images import first_of, safe_image, several, shrunk
from ..model.loading import without_adapters
from ..model.prompts.settings import split_settings
from ..pipelines.answer import Answer
from ..pipelines.answering import add_attributions, answer_questions, prior_scale_of, was_read
from ..pipelines.searching import find_evidence
from .attention import PassageAttention, passage_attention
from .gradcam import Method, answer_grad_cam, find_layer, image_worth, retrieval_grad_cam
from .maxsim import TokenMatch, cosine_match, maxsim_match
from .overlay import SHOWN_PIXELS, box_overlay, seen_image


if TYPE_CHECKING:
    from ..model import RavlmForConditionalGeneration, RavlmProcessor
    from ..retrieval import Passage, RavlmRetriever


@dataclass
class Explanation:
    """An answer with its reasons.

    Args:
        question (`str`), answer ([`Answer`]): with `evidence`, `posterior` and `leave_one_out`.
        image (`PIL.Image.Image`, *optional*): what the maps lie on: the first image of the question.
        answer_map (`np.ndarray` of shape `(height, width)`, *optional*):
            where the image speaks for the answer, from 0 to 1.
        image_worth (`float`, *optional*): what the image gives to the answer, in nats.
        passage_maps (`list[np.ndarray]`): where it speaks for the retrieval score of each passage.
        attention ([`PassageAttention`], *optional*): over the passages, for a batch of one.
        matches (`list[TokenMatch]`): of each passage with the query.
        missing (`list[str]`): what this model cannot show, and why.
        passage_images (`list[PIL.Image.Image]`): what is shown of each passage, see `shown_image`.
    """

    question: str
    answer: Answer
    image: Image.Image | None
    answer_map: np.ndarray | None = None
    image_worth: float | None = None
    passage_maps: list[np.ndarray] = field(default_factory=list)
    attention: PassageAttention | None = None
    matches: list[TokenMatch] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    passage_images: list[Image.Image | None] = field(default_factory=list, repr=False)

    def to_record(self) -> dict[str, Any]:
        """JSON values: the answer, each passage with what it gave to it, and what is missing; no images."""
        passages = [
            {
                **{name: getattr(passage, name) for name in ("id", "text", "score", "source", "licence", "url")},
                "posterior": self.answer.posterior[place],
                "leave_one_out": self.answer.leave_one_out[place],
                "attention": None if self.attention is None else float(self.attention.passages[0, place]),
                **{name: passage.metadata[name] for name in ("page", "box") if name in passage.metadata},
            }
            for place, passage in enumerate(self.answer.evidence)
        ]
        elsewhere = None if self.attention is None else self.attention.elsewhere[0].tolist()
        said = {"thinking": self.answer.thinking, "citations": self.answer.citations}
        return {
            "question": self.question,
            "answer": self.answer.text,
            "image_worth": self.image_worth,
            "passages": passages,
            "unread": [{"id": passage.id, "text": passage.text} for passage in self.answer.unread],
            "attention_elsewhere": elsewhere,
            "missing": self.missing,
            **{name: value for name, value in said.items() if value is not None},
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
    """Answers a question about an image and finds out where the answer comes from.

    Args:
        model, processor, retriever: as a pipeline holds them; `retriever=None` is closed-book.
        image: anything that the processor takes; several in a list, of which the first is searched with and shown, or
            `None`.
        question (`str`, *optional*): `config.default_prompt` by default.
        k (`int`, *optional*): passages; `config.num_passages` by default, 0 is closed-book.
        answer (`str`, *optional*): explain this answer instead of the one that the model gives.
        token (`int`, *optional*): explain this token of the answer alone, see `answer_grad_cam`.
        layer (`str`, *optional*): of the dual encoder, such as `"vision_tower.encoder.stages.1"`; the last one of the
            vision tower by default.
        method (`str`): how maps are made, `"grad_cam"` or `"hires_cam"`, see `layer_grad_cam`.
        generate_kwargs: passed to `model.generate`; settings of the prompt as of `answer_questions`.

    Raises:
        `InvalidInputError`: for a layer or token that is not there, an empty question or answer.
        `UnsafeInputError`: for an image that cannot be used.
    """
    question = model.config.default_prompt if question is None else question
    prompt, generate_kwargs = split_settings(generate_kwargs, not_direct=("max_length",))
    prior_scale = prior_scale_of(retriever)
    images = [safe_image(one) for one in several(image)]  # decoded once
    image, given = first_of(images), [images or None]
    seen = None if image is None else seen_image(processor, image)
    if answer is None:
        asked = {"prompt": prompt, **generate_kwargs}
        found = answer_questions(
            model, processor, retriever, given, [question], k=k, with_leave_one_out=True, **asked
        )[0][0]
    else:
        k = model.config.num_passages if k is None else k
        evidence = find_evidence(retriever, given, [question], k)[0] if retriever is not None and k > 0 else []
        read = was_read(processor(images=given, text=[question], evidence=[evidence], prompt=prompt), [evidence])[0]
        seen_by_reader = [passage for passage, kept in zip(evidence, read, strict=True) if kept]
        unread = [passage for passage, kept in zip(evidence, read, strict=True) if not kept]
        found = Answer(answer.strip(), seen_by_reader, unread=unread, found=evidence)
        add_attributions(model, processor, given, [question], [found], prompt=prompt, prior_scale=prior_scale)
    explanation = Explanation(question, found, seen)
    explanation.passage_images = [shown_image(passage, retriever) for passage in found.evidence]
    reader = without_adapters(model)
    shown = (reader, processor, given, [question], [found.text], [found.evidence])
    if image is None:
        explanation.missing.append("where the image speaks for the answer: the question has none")
    elif reader.reads_images or reader.model is None:
        sees = "sees images through a vision tower of its own" if reader.reads_images else "reads words alone"
        explanation.missing.append(f"where the image speaks for the answer: the reader {sees}")
    else:
        part = None if layer is None else find_layer(reader.model, layer)
        maps = answer_grad_cam(*shown, token, part, method, prompt, prior_scale)
        explanation.answer_map = maps[0].float().cpu().numpy()
        explanation.image_worth = float(image_worth(*shown, prompt, prior_scale))
    if found.evidence:
        try:
            explanation.attention = passage_attention(*shown, prompt)
        except InvalidInputError as error:
            explanation.missing.append(f"attention over passages: {error}")
        _look_at_search(explanation, retriever, image, layer, method)
    return explanation


def shown_image(passage: Passage, retriever: Any = None) -> Image.Image | None:
    """What is shown of a passage: its own image, or the page that its text stands on, with a box around the place.

    Args:
        passage: of a PDF file, `metadata["document"]` names the page, and `metadata["box"]` the place on it.
        retriever: holds the page, unless pages were left out; `None` where it cannot be asked.
    """
    if passage.image is not None or retriever is None:
        return passage.image
    page_id, box = passage.metadata.get("document"), passage.metadata.get("box", ())
    knowledge_base = getattr(retriever, "knowledge_base", None)
    if knowledge_base is None or not _is_box(box) or page_id not in knowledge_base:
        return None
    page = knowledge_base[page_id].image
    return None if page is None else box_overlay(shrunk(page, SHOWN_PIXELS), box)


def _is_box(box: Any) -> bool:
    is_four = isinstance(box, (list, tuple)) and len(box) == 4
    return is_four and all(isinstance(side, (int, float)) and 0 <= side <= 1 for side in box)


def _look_at_search(explanation: Explanation, retriever: Any, image: Any, layer: str | None, method: Method) -> None:
    from ..retrieval import RavlmEncoder
    from ..retrieval.encoding.encoders import TokenEncoder

    encoder, passages, question = retriever.encoder, explanation.answer.evidence, explanation.question
    texts, images = [item.text for item in passages], [item.image for item in passages]
    if isinstance(encoder, RavlmEncoder):
        model, processor = encoder.model, encoder.processor
        vectors = torch.from_numpy(encoder.encode_passages(texts, images))
        part = None if layer is None else find_layer(model, layer)
        if image is not None:
            queries = ([image] * len(passages), [question] * len(passages))
            maps = retrieval_grad_cam(model, processor, *queries, vectors, part, method)
            explanation.passage_maps = list(maps.cpu().numpy())
        explanation.matches = [
            cosine_match(model, processor, image, question, item.text, item.image) for item in passages
        ]
    elif isinstance(encoder, TokenEncoder):
        query = encoder.encode_queries_tokens([image], [question])[0]
        explanation.matches = [maxsim_match(query, tokens) for tokens in encoder.encode_passages_tokens(texts, images)]
        explanation.missing.append("where the image found the passages: the encoder is not one of ours")
    else:
        explanation.missing.append("where image and words found the passages: the encoder is not one of ours")
