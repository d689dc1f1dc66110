"""`hf-ravlm compress`: a saved system in, a smaller one out."""

from __future__ import annotations

import argparse

from ..errors import InvalidInputError
from ..hub.compressing import compress
from .outcome import Outcome, size


def run(arguments: argparse.Namespace) -> Outcome:
    """`compress`: prunes, trains again, quantizes, drops passages that nobody needs.

    Raises:
        InvalidInputError: See `compress`.
    """
    recover = None
    if arguments.recover is not None:
        from ..training.recovering import Recovery

        recover = Recovery(arguments.recover, epochs=arguments.epochs)
    elif arguments.epochs != 1:
        raise InvalidInputError("--epochs is of --recover DATA")
    found = compress(
        arguments.model,
        arguments.out,
        prune=share_or_pattern(arguments.prune),
        quantize=arguments.quantize,
        recover=recover,
        drop_duplicates=arguments.drop_duplicates,
        questions=arguments.questions,
        index=arguments.index,
    )
    lines = [
        f"weights in memory: {size(found.weights[0])} -> {size(found.weights[1])}",
        f"zeros in the reader's linear layers: {found.zeros:.1%}",
        f"passages: {found.passages[0]:,} -> {found.passages[1]:,}",
        f"index in memory: {size(found.index[0])} -> {size(found.index[1])}",
        f"written: {size(found.folder)} to {arguments.out}",
    ]
    return Outcome({"out": str(arguments.out), **found.to_record()}, "\n".join(lines))


def share_or_pattern(text: str | None) -> float | str | None:
    """What `--prune` says: a share, or `2:4` as it is.

    >>> share_or_pattern("0.3"), share_or_pattern("2:4")
    (0.3, '2:4')
    """
    if text is None or ":" in text:
        return text
    try:
        return float(text)
    except ValueError:
        raise InvalidInputError(f"--prune {text}: expected a share such as 0.3, or 2:4") from None
