"""From rows of training data to the inputs of a reader: evidence is found, mixed, and made tensors.

Everything random is drawn from the seed, the step and the number of the row, so that a resumed run draws the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature

from ...errors import InvalidInputError, UnsafeInputError
from ...images import safe_image
from ...model.configuration_ravlm import DESCRIBE_PROMPT
from ...model.processing_ravlm import RavlmProcessor
from ...pipelines.answering import prior_scale_of
from ...retrieval import RavlmEncoder, RavlmRetriever
from ...retrieval.ranking.channels import encode_queries
from .broken_images import OnError, blank_image, check_on_error
from .evidence_mixing import EvidenceMix, mix_evidence
from .passage_view import PassageView
from .rows import TrainingRow, check_gold_ids


logger = logging.getLogger(__name__)

ROW_NAMES = "row_names"  # in a batch, for messages; never given to the model
_SPARE = 8  # passages found beyond those that are read, as some are excluded
_UNSEEN = "-"  # some text, for encoders that cannot read none


class ReaderBatches:
    """Makes batches for a reader; `on_error` and `max_broken` as in [`RavlmTrainer`].

    Args:
        processor: Of the model.
        retriever: Finds passages; `None` if rows bring their `evidence`, or are read without.
        mix: What is read in training.
        is_latent: Whether each passage has a prompt of its own.
        seed: Of all draws.
    """

    def __init__(
        self,
        processor: RavlmProcessor,
        retriever: RavlmRetriever | None,
        mix: EvidenceMix,
        is_latent: Callable[[], bool],
        seed: int = 0,
        on_error: OnError = "raise",
        max_broken: int = 100,
    ) -> None:
        check_on_error(on_error)
        self.processor, self.mix, self.is_latent, self.seed = processor, mix, is_latent, seed
        self.on_error, self.max_broken, self.num_broken = on_error, max_broken, 0
        self.view = None if retriever is None else PassageView(retriever)

    @property
    def retriever(self) -> RavlmRetriever | None:
        """What finds the passages; it may be replaced at any step."""
        return None if self.view is None else self.view.retriever

    @retriever.setter
    def retriever(self, retriever: RavlmRetriever) -> None:
        self.view = PassageView(retriever)

    def for_training(self, rows: Sequence[Mapping[str, Any]], step: int, progress: float) -> BatchFeature:
        """Inputs with labels and mixed evidence, at an optimizer step and a `progress` of 0..1 of the training."""
        return self.inputs(*self.read(rows, step, progress))

    def read(
        self, rows: Sequence[Mapping[str, Any]], step: int, progress: float
    ) -> tuple[list[TrainingRow], list[list[Mapping[str, Any]]]]:
        """Opened rows and their mixed evidence."""
        opened = self.opened(rows)
        return opened, self.evidence_for(opened, self.mix.at(progress), step)

    def for_evaluation(self, rows: Sequence[Mapping[str, Any]]) -> BatchFeature:
        """Inputs with labels, and the evidence as the retriever finds it."""
        opened = self.opened(rows)
        return self.inputs(opened, self.evidence_for(opened, EvidenceMix(self.mix.num_passages)))

    def find(self, rows: Sequence[TrainingRow], k: int) -> tuple[list[list[int]], np.ndarray]:
        """The best `k` passages of each opened row, and the vectors `(n, D)` of the queries."""
        view = self.require_view()
        queries = encode_queries(view.retriever.encoder, [row.image for row in rows], [row.question for row in rows])
        return view.retriever.search_vectors(queries, k)[1].tolist(), queries

    def evidence_of(self, chosen: Sequence[Sequence[int]], queries: np.ndarray) -> list[list[dict[str, Any]]]:
        """Passages with scores, best first, as the processor takes them; chosen are rows of the knowledge base."""
        view = self.require_view()
        needed = sorted({place for places in chosen for place in places})
        passages = dict(zip(needed, view.knowledge_base.passages(needed), strict=True))
        with_images = self.processor.passage_images

        def item(place: int, score: float) -> dict[str, Any]:
            passage = passages[place]
            image = passage.image if with_images else None
            return {"row": place, "text": passage.text, "title": passage.title, "score": score, "image": image}

        evidence = []
        for places, query in zip(chosen, queries, strict=True):
            scores = view.vectors[list(places)] @ query if places else np.zeros(0)
            evidence.append([item(places[at], float(scores[at])) for at in np.argsort(-scores, kind="stable")])
        return evidence

    def require_view(self) -> PassageView:
        """The passages.

        Raises:
            InvalidInputError: If there is no retriever.
        """
        if self.view is None:
            raise InvalidInputError("There is no retriever to find evidence with: pass `retriever` to the trainer.")
        return self.view

    def opened(self, rows: Sequence[Mapping[str, Any]]) -> list[TrainingRow]:
        """Parsed rows with decoded images; broken ones are counted, and treated as `on_error` says.

        Raises:
            InvalidInputError: If a row asks nothing, or none can be used.
            UnsafeInputError: If an image cannot be used.
        """
        opened = []
        for row in map(TrainingRow.parse, rows):
            images = [self._image(row, image) for image in row.images]
            if None not in images:
                opened.append(replace(row, images=tuple(images)))
        if rows and not opened:
            raise InvalidInputError(
                f"None of the {len(rows)} rows of a batch has an image that can be used "
                f"({TrainingRow.parse(rows[0]).name} and others): look at the data, take larger batches, or pass "
                'on_error="blank".'
            )
        return opened

    def _image(self, row: TrainingRow, image: Any) -> Image.Image | None:
        """`None` for a row to leave out."""
        try:
            return safe_image(image)
        except UnsafeInputError as error:
            self.num_broken += 1
            if self.on_error == "raise" or self.num_broken > self.max_broken:
                raise UnsafeInputError(
                    f"The image of {row.name} cannot be used ({self.num_broken} broken so far): {error} "
                    'on_error="blank" puts a grey one in its place, "skip" leaves out the row, up to `max_broken` '
                    "of them."
                ) from error
            done = "a grey one takes its place" if self.on_error == "blank" else "the row is left out"
            logger.warning("The image of %s cannot be used; %s: %s", row.name, done, error)
            return blank_image() if self.on_error == "blank" else None

    def evidence_for(
        self, rows: Sequence[TrainingRow], mix: EvidenceMix, step: int = 0
    ) -> list[list[Mapping[str, Any]]]:
        """The evidence of every opened row: its own, or what is found and mixed."""
        own = [row.evidence for row in rows]
        if self.view is None or not mix.num_passages or all(evidence is not None for evidence in own):
            return [list(evidence or ()) for evidence in own]
        check_gold_ids([row.gold_ids for row in rows], self.view.knowledge_base)
        found, queries = self.find(rows, mix.num_passages + _SPARE)
        numbers = [at if row.number is None else row.number for at, row in enumerate(rows)]
        draws = [np.random.default_rng([self.seed, step, number]) for number in numbers]
        mixed = [
            mix_evidence(mix, row, places, self.view, rng) for row, places, rng in zip(rows, found, draws, strict=True)
        ]
        evidence = [
            [items[place] for place in rng.permutation(len(items))] if rng.random() < mix.shuffled else items
            for items, rng in zip(self.evidence_of(mixed, queries), draws, strict=True)
        ]
        return [list(given) if given is not None else new for given, new in zip(own, evidence, strict=True)]

    def inputs(
        self,
        rows: Sequence[TrainingRow],
        evidence: Sequence[Sequence[Any]],
        processor: RavlmProcessor | None = None,
        with_answers: bool = True,
        passage_prompts: bool | None = None,
    ) -> BatchFeature:
        """Inputs of opened rows with given evidence, by this processor or another; prompts alone without answers.

        `passage_prompts` is whether each passage has a prompt of its own, by default as the reader reads.

        Raises:
            InvalidInputError: If a row has no answer, more images than the reader has places for, or none beside
                others, where the fusion cannot read both in one batch.
        """
        processor = self.processor if processor is None else processor
        # Without any evidence the fusion still reads a masked passage, so that all its parameters take part in every
        # step of several processes.
        each = self.is_latent() if passage_prompts is None else passage_prompts
        hidden = not any(evidence) and (each or processor.fusion != "in_context")
        asked = {
            "images": [list(row.images) for row in rows] if any(row.images for row in rows) else None,
            "text": [row.question or DESCRIBE_PROMPT for row in rows],
            "evidence": [[_UNSEEN] for _ in rows] if hidden else evidence,
            "answers": [row.label for row in rows] if with_answers else None,
        }
        if each and processor.generator_processor is not None:
            inputs = _one_by_one(processor, **asked)
        else:
            inputs = processor(**asked, passage_prompts=each)
        if hidden:
            inputs["evidence_mask"] &= False
        if self.view is not None and self.is_latent() and not isinstance(self.view.retriever.encoder, RavlmEncoder):
            inputs["prior_scale"] = torch.full((len(rows),), prior_scale_of(self.view.retriever))
        inputs[ROW_NAMES] = [row.name for row in rows]
        return inputs


def _one_by_one(
    processor: RavlmProcessor,
    images: Sequence[Any] | None,
    text: Sequence[str],
    evidence: Sequence[Sequence[Any]],
    answers: Sequence[str] | None,
) -> BatchFeature:
    """Inputs of a reader that sees images by itself, with one prompt per question and passage, `B * K` rows.

    What says something of each passage is `(B, K)`, as of other readers; a shorter row ends in hidden passages.
    """
    width = max(map(len, evidence))
    inputs = processor(
        images=None if images is None else [shown for shown in images for _ in range(width)],
        text=[question for question in text for _ in range(width)],
        evidence=[passages[place : place + 1] for passages in evidence for place in range(width)],
        answers=None if answers is None else [answer for answer in answers for _ in range(width)],
    )
    for name in ("evidence_scores", "evidence_mask", "evidence_image_mask"):
        if name in inputs:
            inputs[name] = inputs[name].reshape(-1, width)
    return inputs
