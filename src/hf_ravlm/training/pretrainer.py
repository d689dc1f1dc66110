"""The trainer that aligns the two towers: contrast, triplets, matching, hidden words, over the batch of all processes.

A step: (1) this process's rows get their place in the joined batch; (2) words are hidden and pairs drawn; (3) the
model reads its rows, chunk by chunk if there is a `grad_cache_chunk_size`, and the objectives are added up.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import InvalidInputError
from ..model.heads.matching import SIDE
from ..model.modeling_ravlm import RavlmModel, belong_together
from .applied_arguments import check_alignment
from .arguments import RavlmPreTrainingArguments
from .losses.grad_cache import Chunk, RandomState, split_batch
from .losses.joined_batch import (
    BatchLayout,
    average_gradients,
    gather_inputs,
    gather_rows,
    in_order,
    process_rank,
    read_layout,
    world_size,
)
from .losses.masking import hide_words, masking_tokenizer
from .losses.objectives import Labels, contrast, hidden_words, matching, weighted_sum
from .losses.pairs import Pairs, draw_pairs, no_pairs, pair_inputs
from .measures import corpus_recall
from .trainers import RavlmTrainer


logger = logging.getLogger(__name__)

INPUTS = tuple(prefix + name for prefix in ("", "passage_") for name in SIDE)
BLOCK = 64  # rows of the joined batch that are contrasted at once
HEADS = {"itm": "match_head", "mlm": "mlm_transform"}  # what a model must have for an objective


@dataclass
class Step:
    """A batch of this process and its place in the joined batch.

    Attributes:
        inputs: What the model reads of this process's rows.
        words: What `hide_words` makes of them.
        layout: Of the joined batch.
        labels: Of its queries `(B,)` and passages `(N,)`.
        ids: Names of this process's rows, for messages.
        num_words: Hidden words of all processes.
    """

    inputs: dict[str, torch.Tensor]
    words: dict[str, torch.Tensor]
    layout: BatchLayout
    labels: Labels | None
    ids: list[Any]
    num_words: int = 0

    def join(self, query_embeds: torch.Tensor, passage_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors of the joined batch."""
        queries = gather_rows(query_embeds, self.layout.num_queries)
        passages = gather_rows(passage_embeds, self.layout.num_passages)
        return queries, in_order(passages, self.layout)

    def pool(self, pairs: Pairs | None) -> dict[str, torch.Tensor]:
        """The inputs of the joined batch, if there are pairs to read."""
        return {} if pairs is None else gather_inputs(self.inputs, self.layout)


class RavlmPreTrainer(RavlmTrainer):
    """Aligns the towers of a [`RavlmModel`], or of a head on it, for retrieval.

    Batches are as [`RetrievalCollator`] makes them: queries and passages under the names of `RavlmModel.forward`,
    passage `i` positive for query `i`, hard negatives behind the positives, and equal `query_labels` and
    `passage_labels` where a passage belongs to a query. The gradient of many processes is that of one process with the
    joined batch, also if they have different numbers of rows.

    Evaluation ranks the passages of the evaluation set for each query (`eval_recall@1`, ..., `eval_mrr`), of which
    there are `eval_num_passages`: among all passages of a knowledge base the right one is harder to find.

    Args:
        model: A [`RavlmModel`] for `itc` and `triplet`, [`RavlmForImageTextRetrieval`] also for `itm`,
            [`RavlmForPreTraining`] for all objectives.
        args: The objectives.
        kwargs: As of `transformers.Trainer`; `data_collator` is required.

    Raises:
        InvalidInputError: If the model has no head for an objective, the tokenizer no mask token, or a batch fewer
            passages than queries.
        FloatingPointError: In training, if the loss is NaN or infinite; names the step and the rows.
    """

    loss_is_scaled_for_ga = False  # a mean over the batch
    args: RavlmPreTrainingArguments

    def __init__(self, model: nn.Module | None = None, args: RavlmPreTrainingArguments | None = None, **kwargs: Any):
        if not isinstance(args, RavlmPreTrainingArguments):
            raise InvalidInputError(
                f"args are {type(args).__name__}: expected RavlmPreTrainingArguments, which name the objectives"
            )
        if kwargs.get("data_collator") is None:
            raise InvalidInputError(
                "data_collator is missing: give one that names the columns of queries and passages, as "
                'RetrievalCollator(processor=processor, query_image="image", passage_text="caption")'
            )
        check_alignment(args)
        kwargs.setdefault("compute_metrics", corpus_recall)
        super().__init__(model=model, args=args, **kwargs)
        self.can_return_loss = True
        self._sums: dict[str, torch.Tensor] = {}
        self._num_losses = 0
        self._place = (-1, 0)  # the step, and the batch within it
        for objective, head in HEADS.items():
            if objective in args.objectives and not hasattr(self.model, head):
                raise InvalidInputError(
                    f"{objective}_weight={args.objectives[objective]}, but {type(self.model).__name__} has no head "
                    "for it: use RavlmForPreTraining.from_dual_encoder(model)"
                )
        if "mlm" in args.objectives:
            masking_tokenizer(self._processor)

    def _loss_of_its_own(self) -> str:
        return "that of the objectives, over pairs"

    def _track_num_input_tokens(self, inputs):
        """Counts the tokens of queries and of passages, which may have none."""
        for prefix in ("", "passage_"):
            if f"{prefix}input_ids" in inputs:
                side = {name: inputs.get(f"{prefix}{name}") for name in ("input_ids", "attention_mask")}
                super()._track_num_input_tokens({name: value for name, value in side.items() if value is not None})

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the objectives on a batch; its mean over the processes is the loss of the joined one."""
        step = self._open(inputs)
        pairs = None
        if "itm" in self.args.objectives:
            with torch.no_grad():
                first = model(**step.inputs, **no_pairs(step.inputs))
            pairs = self._draw(step, *step.join(first.query_embeds, first.passage_embeds), first.logit_scale)
        numbers = step.layout.own_numbers
        whole = Chunk(step.inputs, range(numbers[0]), list(range(numbers[1])))
        outputs, losses = self._read(model, step, whole, pairs, step.pool(pairs))
        queries, passages = step.join(outputs.query_embeds, outputs.passage_embeds)
        losses.update(contrast(queries, passages, outputs.logit_scale, step.labels, self.args))
        self._note(model, step, losses, (outputs.query_embeds, outputs.passage_embeds))
        loss = weighted_sum(losses, self.args)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One forward and backward pass, or with `grad_cache_chunk_size` as many as there are chunks."""
        with torch.no_grad():  # the forward pass clamps it, too, but beyond the limits it would get no gradient
            dual_encoder(self.model).clamp_logit_scale()
        if self.args.grad_cache_chunk_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        loss = self._cached_step(model, self._prepare_inputs(inputs))
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return loss

    def _cached_step(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        with self.compute_loss_context_manager():  # puts frozen parts into eval mode
            step = self._open(inputs)
        chunks = split_batch(step.inputs, *step.layout.own_numbers, self.args.grad_cache_chunk_size or 1)
        states, embeds = [], []
        for chunk in chunks:
            states.append(RandomState(*chunk.inputs.values()))
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = model(**chunk.inputs, **no_pairs(chunk.inputs))
            embeds.append((outputs.query_embeds, outputs.passage_embeds))
        queries, passages = (torch.cat(parts).float() for parts in zip(*embeds, strict=True))
        order = torch.tensor([row for chunk in chunks for row in chunk.passages], device=passages.device)
        passages = passages[order.argsort()]
        losses, gradients, pairs = self._contrast_in_blocks(step, queries, passages, outputs.logit_scale)
        pool = step.pool(pairs)
        words_and_pairs: dict[str, torch.Tensor] = {}
        distributed = isinstance(model, DistributedDataParallel)
        for chunk, state in zip(chunks, states, strict=True):
            with self.accelerator.no_sync(model) if distributed else nullcontext(), state.replayed():
                with self.compute_loss_context_manager():
                    outputs, read = self._read(model, step, chunk, pairs, pool)
                    # Its gradients in the vectors and the temperature are those of the contrast.
                    surrogate = (
                        (outputs.query_embeds.float() * gradients[0][chunk.queries.start : chunk.queries.stop]).sum()
                        + (outputs.passage_embeds.float() * gradients[1][chunk.passages]).sum()
                        + outputs.logit_scale * gradients[2] / len(chunks)
                    )
                    own = weighted_sum(read, self.args) + surrogate
                self.accelerator.backward(own / self.current_gradient_accumulation_steps)
            for name, loss in read.items():
                words_and_pairs[name] = words_and_pairs.get(name, torch.zeros_like(loss)) + loss.detach()
        if distributed and self.accelerator.sync_gradients:
            average_gradients(list(model.parameters()))
        losses.update(words_and_pairs)
        self._note(model, step, losses, (queries, passages))
        return weighted_sum(losses, self.args).detach() / self.current_gradient_accumulation_steps

    def _contrast_in_blocks(
        self, step: Step, queries: torch.Tensor, passages: torch.Tensor, logit_scale: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], list[torch.Tensor], Pairs | None]:
        """The contrast of finished vectors, a few rows of the joined batch at a time.

        Returns:
            Losses; gradients in this process's queries and passages and in the temperature; pairs for matching.
        """
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (queries, passages, logit_scale.float())]
        joined = step.join(*leaves[:2])
        pairs = self._draw(step, *joined, leaves[2]) if "itm" in self.args.objectives else None
        cut = [tensor.detach().requires_grad_() for tensor in joined]
        losses: dict[str, torch.Tensor] = {}
        for start in range(0, len(joined[0]), BLOCK):
            shares = contrast(cut[0], cut[1], leaves[2], step.labels, self.args, slice(start, start + BLOCK))
            if shares:
                weighted_sum(shares, self.args).backward()
            for name, share in shares.items():
                losses[name] = losses.get(name, torch.zeros_like(share)) + share.detach()
        if losses:
            torch.autograd.backward(joined, [tensor.grad for tensor in cut])
        return losses, [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves], pairs

    def _open(self, inputs: dict[str, Any]) -> Step:
        """A batch with its layout, labels and hidden words.

        Raises:
            InvalidInputError: If there are fewer passages than queries, or a training batch can hold no negative.
        """
        own = {name: inputs[name] for name in INPUTS if inputs.get(name) is not None}
        queries, passages = (
            max((len(own[prefix + name]) for name in SIDE if prefix + name in own), default=0)
            for prefix in ("", "passage_")
        )
        if not 0 < queries <= passages:
            raise InvalidInputError(
                f"the batch has {queries} queries and {passages} passages: expected a positive passage for each "
                f"query, in the same order, and hard negatives behind them; its keys are {sorted(inputs)}"
            )
        device = next(iter(own.values())).device
        layout = read_layout(queries, passages, device)
        labels = None
        if (own_labels := labels_of(inputs)) is not None:
            whole = gather_rows(own_labels[1], layout.num_passages)
            labels = (gather_rows(own_labels[0], layout.num_queries), in_order(whole, layout))
        if self.model.training:
            number = self._place[1] + 1 if self._place[0] == self.state.global_step else 0
            self._place = (self.state.global_step, number)
        self._check_negatives(labels, layout)
        step = Step(own, {}, layout, labels, ids=list(inputs.get("batch_ids", ())))
        if "mlm" in self.args.objectives:
            seed = self._seed(f"words{process_rank()}")
            step.words = hide_words(inputs, queries, self._processor, self.args.mlm_probability, seed)
            hidden = int((step.words["mlm_labels"] != -100).sum()) if step.words else 0
            step.num_words = int(self.accelerator.reduce(torch.tensor(hidden, device=device), "sum"))
        return step

    def _read(
        self, model: nn.Module, step: Step, chunk: Chunk, pairs: Pairs | None, pool: dict[str, torch.Tensor]
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        """The model's outputs on some rows, and the objectives that are sums over single rows."""
        rows = slice(chunk.queries.start, chunk.queries.stop)
        words = {name: tensor[rows] for name, tensor in step.words.items()}
        extra, own_pairs = no_pairs(chunk.inputs), None
        if pairs is not None:
            places, passages = step.layout.own_queries, step.layout.own_passages()
            own_pairs = pairs.of_rows(places[rows])
            extra = pair_inputs(own_pairs, places[rows], [passages[row] for row in chunk.passages], pool)
        outputs = model(**chunk.inputs, **words, **extra)
        losses = {}
        if pairs is not None and own_pairs is not None and len(own_pairs):
            losses["itm"] = matching(outputs.match_logits, own_pairs.labels, len(pairs))
        if words:
            losses["mlm"] = hidden_words(outputs.mlm_logits, words["mlm_labels"], step.num_words)
        return outputs, losses

    def _draw(self, step: Step, queries: torch.Tensor, passages: torch.Tensor, logit_scale: torch.Tensor) -> Pairs:
        generator = torch.Generator(device=queries.device).manual_seed(self._seed("pairs"))
        return draw_pairs(queries, passages, logit_scale, step.labels, self.args.false_negative_ratio, generator)

    @property
    def _processor(self):
        return self.processing_class or getattr(self.data_collator, "processor", None)

    def _seed(self, purpose: str) -> int:
        """A seed for this batch, also after an interruption; one for all batches of an evaluation."""
        place = self._place if self.model.training else (-1, 0)
        entropy = [self.args.seed, place[0] + 1, place[1], *purpose.encode()]
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)

    def _check_negatives(self, labels: Labels | None, layout: BatchLayout) -> None:
        num_queries, num_passages = sum(layout.num_queries), sum(layout.num_passages)
        some = num_passages > 1 if labels is None else bool((~belong_together(*labels)).any())
        if some or not self.model.training:
            return
        if self.args.train_batch_size * world_size() == 1:
            raise InvalidInputError(
                "a batch of one row without hard negatives has no contrast: set "
                "per_device_train_batch_size to 2 or more"
            )
        logger.warning(
            "step %d: the batch of %d rows holds no negative (one row, or one label): it teaches no contrast",
            self.state.global_step + 1,
            num_queries,
        )

    def _note(
        self, model: nn.Module, step: Step, losses: dict[str, torch.Tensor], vectors: Sequence[torch.Tensor]
    ) -> None:
        """Adds the losses to the log, or raises if one is not finite."""
        if not model.training:
            return
        numbers = {name: loss.detach().float() for name, loss in losses.items()}
        if not all(torch.isfinite(number) for number in numbers.values()):
            raise FloatingPointError(_not_finite(numbers, self.state.global_step, step, vectors))
        for name, number in numbers.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(number)) + number
        self._num_losses += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Also logs each objective and the temperature."""
        if "loss" in logs and self._num_losses:
            for name in self.args.objectives:
                mean = self._sums.get(name, torch.zeros((), device=self.args.device)) / self._num_losses
                logs[f"{name}_loss"] = self.accelerator.gather(mean.reshape(1)).mean().item()
            logs["temperature"] = 1 / dual_encoder(self.model).get_logit_scale().item()
            self._sums, self._num_losses = {}, 0
        super().log(logs, start_time)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss, and vectors and labels of queries and positives, for `corpus_recall`."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        labels = labels_of(inputs)
        if prediction_loss_only or labels is None:
            return loss.detach(), None, None
        queries = outputs.query_embeds.float()
        positives = slice(len(queries))
        vectors = (queries, outputs.passage_embeds[positives].float())
        return loss.detach(), vectors, (labels[0], labels[1][positives])


def labels_of(inputs: dict[str, Any]) -> Labels | None:
    """What says which queries and passages of a batch belong together: its marks, or else its labels."""
    for kind in ("marks", "labels"):
        queries, passages = inputs.get(f"query_{kind}"), inputs.get(f"passage_{kind}")
        if queries is not None and passages is not None:
            return queries, passages
    return None


def dual_encoder(model: nn.Module) -> RavlmModel:
    """The [`RavlmModel`] in a model, or the model itself."""
    return next(module for module in model.modules() if isinstance(module, RavlmModel))


def _not_finite(losses: dict[str, torch.Tensor], global_step: int, step: Step, vectors: Sequence[torch.Tensor]) -> str:
    size = len(vectors[0])
    rows = torch.stack([~torch.isfinite(side[:size]).all(dim=1) for side in vectors]).any(dim=0).nonzero().flatten()
    ids = step.ids or list(range(size))
    named = ", ".join(f"{name}={loss.item()}" for name, loss in losses.items())
    where = f"; the vectors of {[ids[row] for row in rows.tolist()]} are not finite" if len(rows) else ""
    return (
        f"the loss is not finite at step {global_step + 1} ({named}) on the batch {ids}{where}: expected numbers. "
        "Look at these rows; if they are sound, lower the learning rate or train in float32 or bfloat16. The weights "
        "are as they were before this step"
    )
