"""What transformers' Trainer does outside of a model's loss: applied rightly by our trainers, or refused at the start.

The Trainer shifts labels, counts tokens and picks lengths for models that it knows by name. Ours are not among them,
so that some of its arguments would teach something else, or nothing, and say no word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.debug_utils import DebugOption
from transformers.training_args import OptimizerNames

from ..errors import InvalidInputError


NO_INPUTS = "have no one input that metrics could be given. Leave out 'inputs'."


def smoothed_answer_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None, *, epsilon: float
) -> torch.Tensor:
    """Cross-entropy of the answer tokens with smoothed labels, as a `compute_loss_func` of the Trainer.

    `L = -(1 - epsilon) log p(y_t) - epsilon / V sum_v log p(v)`, summed over the tokens and divided by their number;
    position `t - 1` of the logits is judged by label `t`.

    Args:
        outputs: With `logits (N, L, V)`.
        labels (`(N, L)`): Aligned with the inputs; -100 is ignored.
        num_items_in_batch: Divides the sum; `None` for the number of labelled tokens.
        epsilon: From 0 to 1.

    >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
    >>> labels = torch.tensor([[-100, 0]])
    >>> round(smoothed_answer_loss({"logits": logits}, labels, epsilon=0.0).item(), 4)  # log(1 + exp(-2))
    0.1269
    >>> round(smoothed_answer_loss({"logits": logits}, labels, epsilon=1.0).item(), 4)  # (0.1269 + 2.1269) / 2
    1.1269
    """
    logits, targets = outputs["logits"][:, :-1], labels[:, 1:].to(outputs["logits"].device)
    kept = targets != -100
    log_probs = logits[kept].float().log_softmax(dim=-1)  # (answer tokens, V)
    chosen = log_probs.gather(1, targets[kept].unsqueeze(1)).sum()
    total = (1 - epsilon) * chosen + epsilon * log_probs.mean(dim=-1).sum()
    return -total / (kept.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)


def loss_outside(args: TrainingArguments | None, given: Callable | None, own_loss: str | None) -> Callable | None:
    """The loss that a trainer computes outside of the model: the one given, or that of smoothed labels, or none.

    Args:
        args: Of the trainer.
        given: Its `compute_loss_func`.
        own_loss: What the model computes that no loss of single tokens can stand for, in words; else `None`.

    Raises:
        InvalidInputError: If `own_loss` would get lost, both are asked for, or the factor is no share.
    """
    epsilon = 0.0 if args is None else args.label_smoothing_factor
    asked = {"label_smoothing_factor": epsilon or None, "compute_loss_func": given}
    if named := [name for name, value in asked.items() if value is not None]:
        if own_loss is not None:
            raise InvalidInputError(f"{named[0]} has no meaning here: the loss is {own_loss}. Leave it out.")
        if len(named) > 1:
            raise InvalidInputError(
                "label_smoothing_factor and compute_loss_func exclude each other: smooth in your function, or leave "
                "it out."
            )
    if not 0 <= epsilon <= 1:
        raise InvalidInputError(f"label_smoothing_factor={epsilon}: expected a share from 0 to 1.")
    return partial(smoothed_answer_loss, epsilon=epsilon) if epsilon else given


def check_arguments(args: TrainingArguments | None, reads_rows: bool, datasets: Iterable[Any] = ()) -> None:
    """Refuses arguments of the Trainer that have no effect on our trainers, or another one than they say.

    Args:
        args: Of the trainer.
        reads_rows: Whether it makes batches of rows itself.
        datasets: What it trains and measures on.

    Raises:
        InvalidInputError: With what to do instead.
    """
    if args is None:
        return
    for name, fault in _faults(args, reads_rows):
        raise InvalidInputError(f"{name}={getattr(args, name)!r}: {fault}")
    strategy, column = args.train_sampling_strategy, args.length_column_name
    if strategy in ("group_by_length", "batch_rebalance"):
        for dataset in datasets:
            columns = getattr(dataset, "column_names", None) or ()
            if dataset is not None and (column not in columns or not hasattr(dataset, "__len__")):
                raise InvalidInputError(
                    f"train_sampling_strategy={strategy!r} needs lengths of rows: expected a `datasets.Dataset` "
                    f"with a column {column!r} (length_column_name), got a {type(dataset).__name__}"
                    + (f" with the columns {list(columns)}." if columns else ".")
                )


def _faults(args: TrainingArguments, reads_rows: bool) -> Iterable[tuple[str, str]]:
    """Names of arguments with what is wrong with them."""
    if args.use_liger_kernel:
        yield (
            "use_liger_kernel",
            (
                "Liger patches models that it knows by name, and a reader with its parts is none. Patch the language "
                "model before it becomes a part (liger_kernel.transformers), or leave it out."
            ),
        )
    if args.label_names not in (None, ["labels"]):
        yield "label_names", "the labels of these batches have their name from us, 'labels'. Leave it out."
    if reads_rows and "inputs" in args.include_for_metrics:
        yield "include_for_metrics", f"rows {NO_INPUTS}"
    parallel = args.parallelism_config
    if parallel is not None and any(getattr(parallel, f"{kind}_enabled", False) for kind in ("cp", "sp")):
        yield (
            "parallelism_config",
            ("context and sequence parallelism cut prompts apart from the passages they belong to. Use DDP or FSDP."),
        )
    if reads_rows and args.accelerator_config.dispatch_batches:
        yield (
            "accelerator_config",
            (
                "rows hold images and words, which cannot be dispatched: every process reads its own. Leave out "
                "dispatch_batches."
            ),
        )


def read_in_every_process(args: TrainingArguments) -> None:
    """Has every process read its rows of a stream itself, where the default is that the first dispatches tensors."""
    args.accelerator_config.dispatch_batches = False


def check_alignment(args: TrainingArguments) -> None:
    """Refuses what a step of the alignment cannot do, which may read no pairs, and in chunks has many backward passes.

    Raises:
        InvalidInputError: With the argument.
    """
    if args.label_names is not None:
        raise InvalidInputError(f"label_names={args.label_names!r}: pairs have their labels from us. Leave it out.")
    if "inputs" in args.include_for_metrics:
        raise InvalidInputError(f"include_for_metrics={args.include_for_metrics!r}: pairs {NO_INPUTS}")
    if DebugOption.UNDERFLOW_OVERFLOW in args.debug:
        raise InvalidInputError(
            f"debug={[str(option.value) for option in args.debug]}: it looks for the largest number in every tensor, "
            "and batches of the alignment hold empty ones. Leave it out; losses that are no numbers are told with "
            "their rows."
        )
    chunk_size = getattr(args, "grad_cache_chunk_size", None)
    if chunk_size is not None and args.optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO):
        raise InvalidInputError(
            f"optim={str(args.optim.value)!r} with grad_cache_chunk_size={chunk_size}: it steps within each of the "
            "backward passes of a step. Choose another optimizer, or leave the chunks out."
        )
