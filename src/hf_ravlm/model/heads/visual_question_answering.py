"""Answers of a closed set: by a head over what the reader has read, or by what the reader holds of each answer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from ...errors import InvalidInputError
from ..configuration_ravlm import RavlmConfig
from ..loading import initialize_new
from ..modeling_ravlm import HEAD_KEYS
from ..parts.quantized import carry_quantizer
from ..reader.reader import RavlmForConditionalGeneration
from .image_classification import check_labels


def _signed_as_the_reader(forward: Any) -> Any:
    """Lets generation and trainers find the arguments of the reader."""
    forward.__signature__ = signature(RavlmForConditionalGeneration.forward, eval_str=True)
    return forward


@dataclass
class RavlmAnswerClassifierOutput(SequenceClassifierOutput):
    """What [`RavlmForVisualQuestionAnswering`] returns.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): present when `labels` are given.
        logits (`torch.FloatTensor` of shape `(B, C)`): scores of the answers before the softmax.
        hidden_states, attentions (`tuple`, *optional*): none are kept.
    """


class RavlmForVisualQuestionAnswering(RavlmForConditionalGeneration):
    """The reader, which chooses among the answers of `config.id2label`.

    With `config.answer_head` a linear head sees the last state of the prompt, in which image, question and passages
    are joined, and `forward` returns scores of the answers. Without, it is the reader itself, and its weights are
    those of [`RavlmForConditionalGeneration`]: `pipeline("visual-question-answering", allowed_answers=...)` compares
    what it holds of each answer, and an answer is added by naming it.

    Raises:
        `InvalidInputError`: for a head, and a reader with a prompt for each passage.

    Example:

    >>> import torch
    >>> from hf_ravlm import RavlmConfig, RavlmForVisualQuestionAnswering
    >>> tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    >>> config = RavlmConfig(
    ...     vision_config={"model_type": "vit", "image_size": 8, "patch_size": 4, **tiny},
    ...     text_config={"model_type": "bert", "vocab_size": 50, **tiny},
    ...     generator_config={"model_type": "llama", "vocab_size": 50, **tiny},
    ...     id2label={0: "Oslo", 1: "Bergen", 2: "Narvik"}, answer_head=True,
    ... )
    >>> model = RavlmForVisualQuestionAnswering(config).eval()
    >>> model(input_ids=torch.tensor([[7, 8, 9]]), labels=torch.tensor([2])).logits.shape
    torch.Size([1, 3])
    """

    _keys_to_ignore_on_load_unexpected = HEAD_KEYS

    def __init__(self, config: RavlmConfig):
        if config.answer_head and config.marginalization != "none":
            raise InvalidInputError(
                f"answer_head=True with marginalization={config.marginalization!r}: a head sees one prompt with all "
                "passages; choose marginalization='none', or compare answers without a head"
            )
        super().__init__(config)
        width = config.get_text_config().hidden_size
        self.answer_head = nn.Linear(width, config.num_labels) if config.answer_head else None
        self.post_init()

    @classmethod
    def from_reader(
        cls, reader: RavlmForConditionalGeneration, answers: Sequence[str], head: bool = False
    ) -> RavlmForVisualQuestionAnswering:
        """Gives a reader a closed set of answers; its parts stay the same objects.

        Args:
            reader ([`RavlmForConditionalGeneration`]): of `from_backbones` or a folder.
            answers (`list[str]`): the set, kept as `config.id2label`.
            head (`bool`, *optional*, defaults to `False`): whether to put a new head on it, which is to be trained.

        Raises:
            `InvalidInputError`: if there is no answer, or one occurs twice.
        """
        names = check_labels(answers)
        config = copy.deepcopy(reader.config)
        config.id2label, config.label2id = dict(enumerate(names)), {name: id for id, name in enumerate(names)}
        config.answer_head, config.architectures, config.name_or_path = head, [cls.__name__], ""
        with torch.device("meta"):
            model = cls(config)
        parts = [name for name, _ in reader.named_children()]
        for name in parts:
            setattr(model, name, getattr(reader, name))
        initialize_new(model, [getattr(reader, name) for name in parts], reader.device, reader.dtype)
        carry_quantizer(model, reader.language_model)
        model.generation_config = copy.deepcopy(reader.generation_config)
        return model.train(reader.training)

    @can_return_tuple
    @_signed_as_the_reader
    def forward(self, input_ids=None, attention_mask=None, labels=None, **inputs):
        r"""
        With a head, scores of the answers; without, what the reader returns, see there.

        Args:
            input_ids, attention_mask (`(B, L)`), and all that `RavlmForConditionalGeneration.forward` takes.
            labels (`torch.Tensor`, *optional*): with a head, the right answers `(B,)`, -100 for none, or how right
                each is, from 0 to 1, `(B, C)`; without, the labels of tokens.
        """
        if self.answer_head is None:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **inputs)
        items = inputs.pop("num_items_in_batch", None)
        states = self.base_model(input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        logits = self.answer_head(last_states(states, attention_mask).to(self.answer_head.weight.dtype)).float()
        loss = None
        if labels is not None and labels.is_floating_point():
            loss = F.binary_cross_entropy_with_logits(logits, labels) * labels.shape[1]
        elif labels is not None:
            total = F.cross_entropy(logits, labels, reduction="sum")
            loss = total / ((labels != -100).sum().clamp(min=1) if items is None else items)
        return RavlmAnswerClassifierOutput(loss=loss, logits=logits)

    def generate(self, *args, **kwargs):
        """As of the reader; one with a head does not write.

        Raises:
            `InvalidInputError`: for a model with a head.
        """
        if self.answer_head is not None:
            raise InvalidInputError(
                "this model chooses among the answers of its head and writes none: call it, or its pipeline"
            )
        return super().generate(*args, **kwargs)


def last_states(states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The states `(B, H)` of the last tokens that a mask `(B, L)` keeps, on whichever side it pads.

    >>> last_states(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[1, 1, 0]])).tolist()
    [[2.0]]
    """
    if attention_mask is None:
        return states[:, -1]
    places = torch.arange(states.shape[1], device=states.device)
    last = (attention_mask.long() * places).argmax(dim=1)
    return states[torch.arange(len(states), device=states.device), last]


__all__ = ["RavlmAnswerClassifierOutput", "RavlmForVisualQuestionAnswering"]
