"""`pipeline("image-classification")`: an image in, classes out, each with the labelled images that it rests on.

Other models get the built-in class itself, untouched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import ImageClassificationPipeline
from transformers.pipelines.image_classification import ClassificationFunction

from ..errors import InvalidInputError
from ..images import safe_image
from ..model import RavlmForImageClassification
from ..model.heads.neighbors import NO_NEIGHBOR, JoinFit
from ..model.loading import without_adapters
from ..numbers_given import check_whole
from .answer import passage_record
from .asked import opened
from .image_to_text import RavlmPipelineMixin
from .looking import images_of_call, is_empty, look_at_sound, read_image, unread_image
from .numbered_inputs import check_on_error
from .parts import is_ours


if TYPE_CHECKING:
    from ..retrieval import Evidence, RavlmRetriever

LABEL_KEY = "label"
SEARCH_KEYS = ("k", "where", "label_key", "retriever")
APPLIED = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: logits.softmax(dim=-1),
    "none": lambda logits: logits,
}


class RavlmImageClassificationPipeline(RavlmPipelineMixin, ImageClassificationPipeline):
    """
    Says of which class an image is, by the head of the model and by labelled images of a knowledge base.

    `pipeline("image-classification", model=FOLDER_OR_MODEL)` after `import hf_ravlm`, with `knowledge=` or
    `retriever=` where no knowledge base lies beside the model: entries with an image, whose metadata name their class
    (`{"id": ..., "image": ..., "label": "wren"}`). A class that the head has not is one as soon as entries of it are
    added, and none when they are removed. Calls take an image (path, URL, PIL image), a list, a generator or a
    dataset, and:

    - **top_k** (`int`, *optional*, defaults to 5), **function_to_apply**, **timeout** -- as in
      [`~transformers.ImageClassificationPipeline`].
    - **k** (`int`, *optional*) -- labelled images to compare with, by default `config.num_passages`; 0 asks the head
      alone.
    - **where** (*optional*) -- which entries may be found, as in `RavlmRetriever.retrieve`.
    - **label_key** (`str`, *optional*, defaults to `"label"`) -- of the metadata.
    - **retriever** (`RavlmRetriever`, *optional*) -- another knowledge base for this call.
    - **on_error** (`str`, *optional*, defaults to `"raise"`) -- what happens to an image that cannot be used: an error
      that names its place; or, with `"skip"`, a record without a label, whose `error` says why.

    Each image gives a list of dictionaries, best first, with `label`, `score` and `evidence`: the entries of this
    class that were found (dictionaries with id, image, score, source, licence, metadata, ...).
    """

    _load_processor = _load_image_processor = None  # a folder of ours has one processor for all

    def __new__(cls, model=None, *args, encoder=None, knowledge=None, retriever=None, **kwargs):
        if model is None or is_ours(model):
            return super().__new__(cls)
        if any(part is not None for part in (encoder, knowledge, retriever)):
            raise InvalidInputError(
                f"knowledge came with a {model.config.model_type!r} classifier, whose scores know no neighbours: make "
                "one that does of a dual encoder, `RavlmForImageClassification.from_dual_encoder(model, labels)`"
            )
        return ImageClassificationPipeline(model, *args, **kwargs)

    def __init__(self, model, *args, **kwargs):
        named = getattr(without_adapters(model).config, "architectures", None) or []
        wanted = RavlmForImageClassification.__name__
        if not isinstance(without_adapters(model), RavlmForImageClassification) or (named and wanted not in named):
            raise InvalidInputError(
                f"{model.name_or_path or 'the model'} is a {', '.join(named) or type(model).__name__}, which has no "
                f"classes: put some on its dual encoder, `{wanted}.from_dual_encoder(model.model, labels, processor)`"
            )
        super().__init__(model, *args, **kwargs)
        self._embeds_of_names: dict[str, torch.Tensor] = {}

    def check_model_type(self, supported_models):
        """Nothing: the class of the model was checked."""

    def _sanitize_parameters(self, top_k=None, function_to_apply=None, timeout=None, on_error=None, **kwargs):
        if on_error is not None:
            check_on_error(on_error)
        forward = {key: kwargs.pop(key) for key in SEARCH_KEYS if key in kwargs}
        if kwargs:
            raise InvalidInputError(
                f"image-classification takes no {next(iter(kwargs))}=; it takes top_k, function_to_apply, timeout, "
                + ", ".join(("on_error", *SEARCH_KEYS))
            )
        if isinstance(function_to_apply, ClassificationFunction):
            function_to_apply = function_to_apply.value
        if function_to_apply is not None and function_to_apply.lower() not in (*APPLIED, "default"):
            raise InvalidInputError(
                f"function_to_apply={function_to_apply!r}: expected one of {', '.join(['default', *APPLIED])}"
            )
        if top_k is not None:
            check_whole("top_k", top_k, lowest=1)
        if forward.get("k") is not None:
            check_whole("k", forward["k"], lowest=0)
        after = {"top_k": top_k, "function_to_apply": function_to_apply}
        before = {"timeout": timeout, "on_error": on_error}
        before = {name: value for name, value in before.items() if value is not None}
        return before, forward, {name: value for name, value in after.items() if value is not None}

    def __call__(self, inputs=None, **kwargs):
        """See the class."""
        inputs = images_of_call(inputs, kwargs, "classify")
        return [] if is_empty(inputs) else super().__call__(inputs, **kwargs)

    read_input = staticmethod(read_image)
    unread_input = staticmethod(unread_image)

    def _forward(self, model_inputs, **search):
        return look_at_sound(model_inputs, partial(self._score, **search), unclassified)

    def _score(
        self,
        images: list,
        k: int | None = None,
        where: Mapping[str, Any] | None = None,
        label_key: str = LABEL_KEY,
        retriever: RavlmRetriever | None = None,
    ) -> list[dict[str, Any]]:
        """Of each image logits of all classes, their names, and what was found."""
        pixels = self.processor.for_retrieval(images=images)["pixel_values"].to(self.device)
        classifier, retriever = without_adapters(self.model), retriever if retriever is not None else self.retriever
        k = classifier.config.num_passages if k is None else k
        names = [classifier.config.id2label[number] for number in range(classifier.config.num_labels)]
        if retriever is None or k == 0:
            if where is not None or (k and retriever is None and k != classifier.config.num_passages):
                raise InvalidInputError(
                    "there is nothing to search: give knowledge=, labelled images, or leave k= and where= out"
                )
            logits = self.model(pixel_values=pixels).logits
            return [{"logits": row, "names": names, "evidence": []} for row in logits]
        embeds = classifier.model.get_image_features(pixels).pooler_output
        names, counts, means = known_classes(retriever, names, label_key, where)
        found = find_labelled(retriever, classifier.model, embeds, images, k, where)
        new = self._embeds_of_new(names[classifier.config.num_labels :], means)
        neighbors = neighbor_tensors(found, names, counts, label_key, embeds.device)
        logits = self.model(image_embeds=embeds, new_class_embeds=new, **neighbors).logits
        rows = zip(logits, labelled(found, label_key), strict=True)
        return [{"logits": row, "names": names, "evidence": evidence} for row, evidence in rows]

    def _embeds_of_new(self, names: list[str], means: dict[str, Any]) -> torch.Tensor | None:
        """Rows of the head for classes that it has not: of their names, if it was made of names, else of images."""
        if not names:
            return None
        classifier = without_adapters(self.model)
        if classifier.config.class_prompt is None:
            return torch.stack([torch.as_tensor(means[name]) for name in names]).to(classifier.device)
        if missing := [name for name in names if name not in self._embeds_of_names]:
            embeds = classifier.embeds_of_names(missing, self.processor)
            self._embeds_of_names |= dict(zip(missing, embeds, strict=True))
        return torch.stack([self._embeds_of_names[name] for name in names])

    @torch.no_grad()
    def fit_neighbors(
        self, images: Sequence[Any], labels: Sequence[str], batch_size: int = 32, **search: Any
    ) -> JoinFit:
        """Sets how much neighbours count (`α`, `β`, `γ`) by images whose classes are known.

        Args:
            images (`list`): not among the entries of the knowledge base, where each would find itself.
            labels (`list[str]`): the names of their classes.
            batch_size (`int`): images that are looked at together.
            search: `k`, `where`, `label_key` and `retriever`, as in a call.

        Returns:
            `JoinFit` with the accuracy on these images.

        Raises:
            `InvalidInputError`: if there is no image, a label is no class, or there is nothing to search.
        """
        if len(images) == 0 or len(images) != len(labels):
            raise InvalidInputError(f"{len(images)} images came with {len(labels)} labels: expected one each")
        retriever = search.get("retriever") or self.retriever
        if retriever is None:
            raise InvalidInputError("there is nothing to search: give knowledge=, labelled images")
        classifier, key, where = without_adapters(self.model), search.get("label_key", LABEL_KEY), search.get("where")
        names = [classifier.config.id2label[number] for number in range(classifier.config.num_labels)]
        names, counts, means = known_classes(retriever, names, key, where)
        if unknown := sorted(set(labels) - set(names)):
            raise InvalidInputError(f"the label {unknown[0]!r} is no class: expected one of {', '.join(names[:10])}")
        new = self._embeds_of_new(names[classifier.config.num_labels :], means)
        k = search.get("k") or classifier.config.num_passages
        logits, found = [], []
        for start in range(0, len(images), batch_size):
            shown = [safe_image(opened(image, None)) for image in images[start : start + batch_size]]
            pixels = self.processor.for_retrieval(images=shown)["pixel_values"].to(classifier.device)
            outputs = classifier(pixel_values=pixels, new_class_embeds=new)
            logits.append(outputs.class_logits)
            found += find_labelled(retriever, classifier.model, outputs.image_embeds, shown, k, where)
        neighbors = neighbor_tensors(found, names, counts, key, classifier.device)
        targets = torch.tensor([names.index(label) for label in labels], device=classifier.device)
        return classifier.neighbors.fit(torch.cat(logits), labels=targets, **neighbors)

    def postprocess(self, model_outputs, function_to_apply=None, top_k=5):
        found = model_outputs["found"]
        found = found[0] if isinstance(found, list) else found  # a batch of one comes back nested
        if "error" in found:
            return [{"label": None, "score": None, "evidence": [], "error": found["error"]}]
        names, scores = found["names"], APPLIED[self._function(function_to_apply)](found["logits"].float())
        best = scores.topk(min(top_k, len(names)))
        return [
            {
                "label": names[place],
                "score": score,
                "evidence": [passage_record(entry) for label, entry in found["evidence"] if label == names[place]],
            }
            for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _function(self, asked: str | None) -> str:
        if asked is not None and asked.lower() != "default":
            return asked.lower()
        kind = without_adapters(self.model).config.problem_type
        return {"regression": "none", "multi_label_classification": "sigmoid"}.get(kind, "softmax")


def unclassified(error: str) -> dict[str, Any]:
    """What is returned of an image that cannot be used."""
    return {"error": error}


def find_labelled(
    retriever: RavlmRetriever, towers: Any, embeds: torch.Tensor, images: list, k: int, where: Any
) -> list[list[Evidence]]:
    """The entries nearest to images; their vectors are looked up where the model's own towers made the index."""
    encoder = retriever.encoder
    if (
        getattr(encoder, "model", None) is towers
        and getattr(encoder, "is_live", False)
        and hasattr(retriever, "nearest")
    ):
        return retriever.nearest(embeds.float().cpu().numpy(), k, where=where)
    return retriever.retrieve(images=images, k=k, where=where)


def known_classes(
    retriever: RavlmRetriever, names: list[str], key: str, where: Any
) -> tuple[list[str], dict[str, int], dict[str, Any]]:
    """All classes, those of the head first; how many entries each has; the mean vectors of those with entries."""
    if not hasattr(retriever, "labels"):
        raise InvalidInputError(
            f"a {type(retriever).__name__} does not list the labels of its entries: expected a RavlmRetriever"
        )
    labels = retriever.labels(key, where=where)
    counts = dict(zip(labels.names, labels.counts.tolist(), strict=True))
    known = set(names)
    new = [name for name in labels.names if name not in known]
    return names + new, counts, dict(zip(labels.names, labels.means, strict=True)) if new else {}


def labelled(found: list[list[Evidence]], key: str) -> list[list[tuple[str, Evidence]]]:
    """Each entry with its label."""
    return [[(str(entry.metadata[key]), entry) for entry in entries] for entries in found]


def neighbor_tensors(
    found: list[list[Evidence]], names: list[str], counts: dict[str, int], key: str, device: torch.device
) -> dict[str, torch.Tensor]:
    """What was found, as the classifier takes it: `(B, K)` each, -100 where a row has fewer entries."""
    number = {name: place for place, name in enumerate(names)}
    shape = (len(found), max(map(len, found), default=0))
    scores, classes = torch.zeros(shape), torch.full(shape, NO_NEIGHBOR)
    sizes = torch.ones(shape)
    for row, entries in enumerate(labelled(found, key)):
        for place, (label, entry) in enumerate(entries):
            scores[row, place], classes[row, place] = entry.score, number.get(label, NO_NEIGHBOR)  # changed meanwhile
            sizes[row, place] = counts.get(label, 1)
    given = {"neighbor_scores": scores, "neighbor_labels": classes, "neighbor_counts": sizes}
    return {name: tensor.to(device) for name, tensor in given.items()}


__all__ = ["RavlmImageClassificationPipeline"]
