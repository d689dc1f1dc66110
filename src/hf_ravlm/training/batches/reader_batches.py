"""From rows of training data to the inputs of a reader: what is found for them, what of it is read, and as tensors.

Everything random is drawn from the seed, the step and the number of the row, never from a generator with a state of
its own: a run that resumes draws what it would have drawn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature

from ...errors import InvalidInputError, UnsafeInputError
from ...images import safe_image
from ...model.configuration_ravlm import DESCRIBE_PROMPT
from ...model.processing_ravlm import RavlmProcessor
from ...retrieval import RavlmRetriever
from ...retrieval.ranking.channels import encode_queries
from .broken_images import OnBroken, blank_picture, check_on_broken
from .evidence_mixing import EvidenceMix, mix_evidence
from .passage_view import PassageView
from .rows import ROW_NUMBER, answer_of, check_gold_ids, check_row, ids_of, name_of


logger = logging.getLogger(__name__)

ROW_NAMES = "row_names"  # in a batch, for messages; never given to the model
_SPARE = 8  # passages found beyond those that are read, as some are excluded
_UNSEEN = "-"  # some text, for encoders that cannot read none


class ReaderBatches:
    """Makes batches for a reader.

    Args:
        processor: Of the model.
        retriever: Finds passages; `None` for rows that bring their `evidence`, or none at all.
        mix: What is read in training.
        is_latent: Whether each passage has a prompt of its own.
        seed: Of all draws.
        on_broken: What happens to a picture that cannot be used: `"raise"`, `"blank"` for a grey one in its place,
            `"skip"` for a batch without its row.
        max_broken: More broken pictures than this stop the training, as the data set must be at fault.
    """

    def __init__(
        self,
        processor: RavlmProcessor,
        retriever: RavlmRetriever | None,
        mix: EvidenceMix,
        is_latent: Callable[[], bool],
        seed: int = 0,
        on_broken: OnBroken = "raise",
        max_broken: int = 100,
    ) -> None:
        check_on_broken(on_broken)
        self.processor, self.mix, self.is_latent, self.seed = processor, mix, is_latent, seed
        self.on_broken, self.max_broken, self.num_broken = on_broken, max_broken, 0
        self.view = None if retriever is None else PassageView(retriever)

    @property
    def retriever(self) -> RavlmRetriever | None:
        """What finds the passages now; another one takes its place in one step."""
        return None if self.view is None else self.view.retriever

    @retriever.setter
    def retriever(self, retriever: RavlmRetriever) -> None:
        self.view = PassageView(retriever)

    def for_training(self, rows: Sequence[Mapping[str, Any]], step: int, progress: float) -> BatchFeature:
        """Inputs with labels and mixed evidence.

        Args:
            rows: See `hf_ravlm.training.batches.rows`.
            step: The optimizer step that they belong to.
            progress: 0 at the start of the training, 1 at its end.
        """
        mix, rows = self.mix.at(progress), self.opened(rows)
        return self.with_answers(rows, self._chosen(rows, mix, step))

    def for_evaluation(self, rows: Sequence[Mapping[str, Any]]) -> BatchFeature:
        """Inputs with labels, and the evidence that the retriever finds, as it is."""
        plain, rows = EvidenceMix(self.mix.num_passages), self.opened(rows)
        return self.with_answers(rows, self._chosen(rows, plain, 0))

    def with_answers(
        self, rows: Sequence[Mapping[str, Any]], evidence: Sequence[Sequence[Mapping[str, Any]]]
    ) -> BatchFeature:
        """Inputs with labels, of opened rows with given evidence."""
        return self._inputs(rows, evidence, answers=[answer_of(row) for row in rows])

    def for_generation(
        self, rows: Sequence[Mapping[str, Any]], evidence: Sequence[Sequence[Mapping[str, Any]]]
    ) -> BatchFeature:
        """Prompts without answers, of opened rows with given evidence."""
        return self._inputs(rows, evidence, answers=None)

    def find(self, rows: Sequence[Mapping[str, Any]], k: int) -> tuple[list[list[int]], np.ndarray]:
        """The best `k` passages of each opened row, and the vectors `(n, D)` of the queries."""
        view = self.require_view()
        pictures, questions = ([row.get(key) for row in rows] for key in ("image", "question"))
        queries = encode_queries(view.retriever.encoder, pictures, questions)
        return view.retriever.search_vectors(queries, k)[1].tolist(), queries

    def evidence_of(self, chosen: Sequence[Sequence[int]], queries: np.ndarray) -> list[list[dict[str, Any]]]:
        """Passages with scores, best first, as the processor takes them, from rows of the knowledge base."""
        view = self.require_view()
        needed = sorted({place for places in chosen for place in places})
        passages = dict(zip(needed, view.passages(needed), strict=True))
        with_images = self.processor.passage_images
        evidence = []
        for places, query in zip(chosen, queries, strict=True):
            scores = view.vectors[list(places)] @ query if places else np.zeros(0)
            order = np.argsort(-scores, kind="stable").tolist()
            evidence.append(
                [
                    {
                        "row": places[best],
                        "text": passages[places[best]].text,
                        "title": passages[places[best]].title,
                        "score": float(scores[best]),
                        "image": passages[places[best]].image if with_images else None,
                    }
                    for best in order
                ]
            )
        return evidence

    def require_view(self) -> PassageView:
        """The passages, of which there must be some."""
        if self.view is None:
            raise InvalidInputError("There is no retriever to find evidence with: pass `retriever` to the trainer.")
        return self.view

    def opened(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows with their pictures decoded, safe and upright; those of broken ones as `on_broken` says, and counted.

        Raises:
            InvalidInputError: If a row asks nothing, or none can be used.
            UnsafeInputError: If a picture is refused.
        """
        opened = []
        for row in rows:
            check_row(row)
            if row.get("image") is None:
                opened.append({**row, "image": None})
            elif (picture := self._picture(row)) is not None:
                opened.append({**row, "image": picture})
        if rows and not opened:
            raise InvalidInputError(
                f"None of the {len(rows)} rows of a batch has a picture that can be used ({name_of(rows[0])} and "
                'others): look at the data, take larger batches, or pass on_broken="blank".'
            )
        return opened

    def _picture(self, row: Mapping[str, Any]) -> Image.Image | None:
        """`None` for a row to leave out."""
        try:
            return safe_image(row["image"])
        except UnsafeInputError as error:
            self.num_broken += 1
            if self.on_broken == "raise" or self.num_broken > self.max_broken:
                raise UnsafeInputError(
                    f"The picture of {name_of(row)} cannot be used ({self.num_broken} broken so far): {error} "
                    'on_broken="blank" puts a grey one in its place, "skip" leaves out the row, up to `max_broken` '
                    "of them."
                ) from error
            done = "a grey one takes its place" if self.on_broken == "blank" else "the row is left out"
            logger.warning("The picture of %s cannot be used; %s: %s", name_of(row), done, error)
            return blank_picture() if self.on_broken == "blank" else None

    def _chosen(self, rows: Sequence[Mapping[str, Any]], mix: EvidenceMix, step: int) -> list[list[Mapping[str, Any]]]:
        """The evidence of every row: its own, or what is found and mixed."""
        own = [row.get("evidence") for row in rows]
        if self.view is None or not mix.num_passages or all(evidence is not None for evidence in own):
            return [list(evidence or ()) for evidence in own]
        check_gold_ids([ids_of(row) for row in rows], self.view.knowledge_base)
        found, queries = self.find(rows, mix.num_passages + _SPARE)
        draws = [np.random.default_rng([self.seed, step, row.get(ROW_NUMBER, at)]) for at, row in enumerate(rows)]
        mixed = [
            mix_evidence(mix, row, places, self.view, rng) for row, places, rng in zip(rows, found, draws, strict=True)
        ]
        evidence = [
            [items[place] for place in rng.permutation(len(items))] if rng.random() < mix.shuffled else items
            for items, rng in zip(self.evidence_of(mixed, queries), draws, strict=True)
        ]
        return [list(given) if given is not None else new for given, new in zip(own, evidence, strict=True)]

    def _inputs(
        self, rows: Sequence[Mapping[str, Any]], evidence: Sequence[Sequence[Any]], answers: list[str] | None
    ) -> BatchFeature:
        questions = [row.get("question") for row in rows]
        pictures = [row["image"] for row in rows]
        lacking = [name_of(row) for row, picture in zip(rows, pictures, strict=True) if picture is None]
        if lacking and len(lacking) < len(rows):
            raise InvalidInputError(
                f"{lacking[0]} has no image and others of its batch have: give all rows one, or none."
            )
        # A batch in which nothing is to be read still shows the fusion a passage, hidden: on several processes every
        # parameter then takes part in every step.
        hidden = not any(evidence) and (self.is_latent() or self.processor.fusion != "in_context")
        inputs = self.processor(
            images=None if lacking else pictures,
            text=[question or DESCRIBE_PROMPT for question in questions],
            evidence=[[_UNSEEN] for _ in rows] if hidden else evidence,
            answers=answers,
            passage_prompts=self.is_latent(),
        )
        if hidden:
            inputs["evidence_mask"] &= False
        inputs[ROW_NAMES] = [name_of(row) for row in rows]
        return inputs
