"""A detector kept whole, whose boxes are also named by the labelled images that look like what is in them.

How much a box is of a class is split in two: how much it is an object at all, which the detector says, and of which
class it then is, which the detector and the neighbours say together. Joined, the two become logits of the detector's
own kind again, so that its family's `post_process_object_detection` reads them.
"""

from __future__ import annotations

import copy
from dataclasses import field, make_dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForObjectDetection
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from ...errors import InvalidInputError
from ..backbones import Backbone, load_detector
from ..configuration_ravlm import RavlmConfig
from ..loading import initialize_new
from ..modeling_ravlm import RavlmPreTrainedModel
from .image_classification import NUM_NEIGHBORS
from .neighbors import NO_NEIGHBOR, NeighborJoin, fit_neighbors, init_neighbor_join, neighbor_votes


NEW_CLASS = -2.0  # a box's belief in a class that its detector does not know, before neighbours speak; its best has 0
_NEW_CLASSES = (0.0, -1.0, -2.0, -4.0, -8.0)
_NEVER = -1e4  # a log-probability of what cannot be, and finite


@cache
def joined_output(kind: type[ModelOutput]) -> type[ModelOutput]:
    """The output class of a family with a field more: `class_logits`, what the detector alone says of the classes."""
    more = [("class_logits", torch.FloatTensor | None, field(default=None))]
    return make_dataclass(f"Ravlm{kind.__name__}", more, bases=(kind,))  # type: ignore[return-value]


class BoxBeliefs(NamedTuple):
    """What a detector says of its boxes, in logarithms.

    Args:
        objectness (`torch.FloatTensor` of shape `(..., Q)`): the probability that there is an object.
        classes (`torch.FloatTensor` of shape `(..., Q, C)`): of which class it then is; the best is near 0.
    """

    objectness: torch.Tensor
    classes: torch.Tensor


def box_beliefs(logits: torch.Tensor, num_labels: int) -> BoxBeliefs:
    """Splits the logits of a detector.

    Args:
        logits (`torch.FloatTensor` of shape `(B, Q, C)` or `(B, Q, C + 1)`):
            of a sigmoid per class, or of a softmax whose last column says that there is nothing.
        num_labels (`int`): `C`.

    >>> beliefs = box_beliefs(torch.tensor([[[0.0, 0.0, 0.6931]]]), 2)  # a quarter, a quarter, a half
    >>> beliefs.objectness.exp().round(decimals=2), beliefs.classes.exp().round(decimals=2)
    (tensor([[0.5000]]), tensor([[[0.5000, 0.5000]]]))
    """
    logits = logits.float()
    if has_background(logits, num_labels):
        told = logits.log_softmax(dim=-1)[..., :-1]
        objectness = told.logsumexp(dim=-1)
    else:
        told = F.logsigmoid(logits)
        objectness = told.amax(dim=-1)
    return BoxBeliefs(objectness, told - objectness.unsqueeze(-1))


def has_background(logits: torch.Tensor, num_labels: int) -> bool:
    """Whether the last column of logits says that there is nothing.

    Raises:
        `ValueError`: if their width fits neither kind of detector.
    """
    if logits.shape[-1] not in (num_labels, num_labels + 1):
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} came with {num_labels} classes: expected {num_labels} columns, or "
            "one more for 'nothing there'"
        )
    return logits.shape[-1] == num_labels + 1


def box_logits(beliefs: BoxBeliefs, with_background: bool) -> torch.Tensor:
    """The way back: logits whose softmax or sigmoid is objectness times class.

    With a background the classes of a box share its objectness; without, the best has all of it, as a sigmoid per
    class has it.

    >>> logits = torch.tensor([[[2.0, -1.0, 0.5]]])
    >>> again = box_logits(box_beliefs(logits, 2), True)
    >>> torch.allclose(again.softmax(-1), logits.softmax(-1), atol=1e-6)
    True
    """
    objectness, classes = beliefs
    if with_background:
        told = classes.log_softmax(dim=-1) + objectness.unsqueeze(-1)
        return torch.cat([told, _log_of_rest(objectness).unsqueeze(-1)], dim=-1)
    told = classes - classes.amax(dim=-1, keepdim=True) + objectness.unsqueeze(-1)
    return told - _log_of_rest(told)


def _log_of_rest(logs: torch.Tensor) -> torch.Tensor:
    """`log(1 - exp(x))` of logarithms of probabilities."""
    return torch.log(-torch.expm1(logs.clamp(max=-1e-6)))


class BoxFit(NamedTuple):
    """What was best on boxes whose classes are known: `α`, `β`, `γ`, the belief in new classes, and the accuracy.

    The accuracy is the mean of two: with all classes of the detector, and with the box's own class taken from it.
    """

    weight: float
    sharpness: float
    balance: float
    new_class: float
    accuracy: float


class RavlmForObjectDetection(RavlmPreTrainedModel):
    """Finds objects: any detector of transformers with queries, and labelled neighbours for its boxes.

    `forward` is the detector's own, loss included, so that it is trained as ever. [`join`] adds what neighbours say
    of its boxes: `log p(c | box, object) + α · Σ_k n_k^-γ · exp(-β (1 - s_k)) · onehot(label_k)`, of which
    `hf_ravlm.model.heads.neighbors` has the numbers. A class that the detector does not know begins at `new_class` and
    counts only where a neighbour is of it. Others look the boxes up (`pipeline("object-detection")`); the encoder that
    does so stands beside the model, with the index.

    Example:

    >>> from hf_ravlm import RavlmForObjectDetection
    >>> RavlmForObjectDetection.from_detector("PekingU/rtdetr_r50vd")  # doctest: +SKIP
    """

    base_model_prefix = "detector"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    accepts_loss_kwargs = False  # the detectors' losses count boxes
    model = None  # no dual encoder is inside

    def __init__(self, config: RavlmConfig):
        if config.detector_config is None:
            raise InvalidInputError(
                "the configuration has no detector_config: make the model of a detector, "
                "`RavlmForObjectDetection.from_detector(name)`"
            )
        super().__init__(config)
        self.detector = AutoModelForObjectDetection.from_config(config.detector_config)
        self.neighbors = NeighborJoin()
        self.register_buffer("new_class", torch.tensor(NEW_CLASS))
        self.post_init()

    @classmethod
    def from_detector(
        cls, detector: Backbone, num_neighbors: int = NUM_NEIGHBORS, **loading: Any
    ) -> RavlmForObjectDetection:
        """Lets a detector ask neighbours; as an object, it stays the same.

        Args:
            detector (`str`, `os.PathLike` or `PreTrainedModel`):
                a model of `AutoModelForObjectDetection` (DETR, RT-DETR, D-FINE, YOLOS, ...): a name, a folder or the
                model. What prepares its images is `AutoImageProcessor.from_pretrained(name)`.
            num_neighbors (`int`, *optional*): `K` for each box, kept as `config.num_passages`.
            loading: of a name: `revision`, `dtype`, `token`, ...

        Raises:
            `InvalidInputError`: if it is no detector with queries, or its checkpoint lacks weights.
        """
        part = load_detector(detector, **loading)
        own = copy.deepcopy(part.config)
        own._name_or_path = ""
        config = RavlmConfig(detector_config=own, num_passages=num_neighbors)
        config.id2label, config.label2id = dict(own.id2label), dict(own.label2id)
        config.architectures, config.dtype = [cls.__name__], part.dtype
        with torch.device("meta"):  # so that the detector is not made a second time
            model = cls(config)
        model.detector = part
        initialize_new(model, [part], part.device, torch.float32)
        return model.train(part.training)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_neighbor_join(module)
        if isinstance(module, RavlmForObjectDetection):
            init.constant_(module.new_class, NEW_CLASS)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        pixel_mask: torch.LongTensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        r"""
        What the detector returns: `logits (B, Q, C)` or `(B, Q, C + 1)`, `pred_boxes (B, Q, 4)`, with labels its loss.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, height, width)`), pixel_mask (`(B, height, width)`,
                *optional*): as the image processor of the detector returns them.
            labels (`list[dict]`, *optional*): per image `class_labels` and `boxes`, as of the detector.
        """
        given = {"pixel_mask": pixel_mask, "labels": labels, **kwargs}
        return self.detector(pixel_values, **{name: one for name, one in given.items() if one is not None})

    def beliefs(self, outputs: ModelOutput) -> BoxBeliefs:
        """What the detector says of its boxes, see [`BoxBeliefs`]."""
        return box_beliefs(outputs.logits, self.config.num_labels)

    def join(
        self,
        outputs: ModelOutput,
        neighbor_scores: torch.Tensor,
        neighbor_labels: torch.Tensor,
        neighbor_counts: torch.Tensor | None = None,
        num_labels: int | None = None,
    ) -> ModelOutput:
        """Adds what neighbours say of the boxes; a box without a neighbour stays as it was.

        Args:
            outputs: of `forward`.
            neighbor_scores (`torch.FloatTensor` of shape `(B, Q, K)`): cosines of the entries found for each box.
            neighbor_labels (`torch.LongTensor` of shape `(B, Q, K)`): their classes; -100 for no entry.
            neighbor_counts (`torch.Tensor` of shape `(B, Q, K)`, *optional*): entries that each such class has.
            num_labels (`int`, *optional*): all classes, those of the detector first; by default its own.

        Returns:
            The output class of the detector's family; `logits` have a column per class, in their kind, and
            `class_logits` are those of the detector.

        Raises:
            `ValueError`: if shapes do not fit, or a label is no class.
        """
        own, known = outputs.logits, self.config.num_labels
        num_labels = known if num_labels is None else num_labels
        if neighbor_scores.shape[:2] != own.shape[:2] or neighbor_scores.shape != neighbor_labels.shape:
            raise ValueError(
                f"neighbours of shapes {tuple(neighbor_scores.shape)} and {tuple(neighbor_labels.shape)} came with "
                f"{own.shape[0]} images of {own.shape[1]} boxes: expected ({own.shape[0]}, {own.shape[1]}, K) each"
            )
        if neighbor_labels.numel() and int(neighbor_labels.max()) >= num_labels:
            raise ValueError(f"a neighbour is of class {int(neighbor_labels.max())}: expected 0 to {num_labels - 1}")
        beliefs = self.beliefs(outputs)
        neighbors = (neighbor_scores, neighbor_labels)
        classes = with_new_classes(beliefs.classes, num_labels - known, self.new_class, neighbor_labels)
        told = BoxBeliefs(beliefs.objectness, self.neighbors(classes, *neighbors, neighbor_counts))
        asked = (neighbor_labels != NO_NEIGHBOR).any(dim=-1, keepdim=True)  # (B, Q, 1)
        never = own.new_full((*own.shape[:2], num_labels - known), _NEVER)
        alone = torch.cat([own[..., :known], never, own[..., known:]], dim=-1).float()
        logits = torch.where(asked, box_logits(told, has_background(own, known)), alone)
        return joined_output(type(outputs))(**{**outputs, "logits": logits, "class_logits": own})

    @torch.no_grad()
    def fit_neighbors(
        self,
        classes: torch.Tensor,
        neighbor_scores: torch.Tensor,
        neighbor_labels: torch.Tensor,
        labels: torch.Tensor,
        neighbor_counts: torch.Tensor | None = None,
    ) -> BoxFit:
        """Sets how much neighbours count, by boxes whose classes are known and that are no entries.

        Each box counts twice: as it is, and as if the detector did not know its class, as it does not know those that
        come with entries later.

        Args:
            classes (`torch.FloatTensor` of shape `(n, C)`): of [`BoxBeliefs`].
            neighbor_scores, neighbor_labels, neighbor_counts (`(n, K)`): as of `join`.
            labels (`torch.LongTensor` of shape `(n,)`): the right classes, also new ones.
        """
        num_labels, known = (
            max(int(labels.max()), int(neighbor_labels.max()), classes.shape[1] - 1) + 1,
            labels[:, None],
        )
        own = F.pad(classes, (0, num_labels - classes.shape[1]), value=_NEVER)
        hidden = own.scatter(-1, known, _NEVER)
        hidden = hidden - hidden.amax(dim=-1, keepdim=True)
        new = torch.cat([torch.arange(num_labels, device=labels.device).expand(len(labels), -1) >= classes.shape[1],
                         F.one_hot(labels, num_labels).bool()])  # fmt: skip
        twice = [tensor if tensor is None else torch.cat([tensor, tensor]) for tensor in (
            neighbor_scores, neighbor_labels, labels, neighbor_counts)]  # fmt: skip
        unspoken = neighbor_votes(torch.zeros_like(twice[0]), twice[1], num_labels, 0.0) == 0
        best = None
        for new_class in _NEW_CLASSES:
            told = torch.cat([own, hidden]).masked_fill(new & ~unspoken, new_class).masked_fill(new & unspoken, _NEVER)
            found = fit_neighbors(told, *twice)
            if best is None or found.accuracy > best.accuracy:
                best = BoxFit(found.weight, found.sharpness, found.balance, new_class, found.accuracy)
        assert best is not None
        self.neighbors.set(best.weight, best.sharpness, best.balance)
        self.new_class.fill_(best.new_class)
        return best


def with_new_classes(
    classes: torch.Tensor, number: int, belief: torch.Tensor | float, neighbor_labels: torch.Tensor
) -> torch.Tensor:
    """Beliefs `(..., C)` with `number` more classes, each at `belief` where a neighbour `(..., K)` is of it.

    >>> with_new_classes(torch.zeros(1, 1), 2, -2.0, torch.tensor([[2, -100]])).tolist()
    [[0.0, -10000.0, -2.0]]
    """
    if number == 0:
        return classes
    total = classes.shape[-1] + number
    votes = neighbor_votes(torch.zeros_like(neighbor_labels, dtype=torch.float32), neighbor_labels, total, 0.0)
    spoken = votes[..., classes.shape[-1] :] > 0
    new = torch.where(spoken, torch.as_tensor(belief, dtype=classes.dtype, device=classes.device), _NEVER)
    return torch.cat([classes, new], dim=-1)


__all__ = ["BoxBeliefs", "RavlmForObjectDetection", "box_beliefs", "box_logits"]
