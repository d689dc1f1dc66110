"""What evidence did to the answers: how often it rescued one and how often it harmed one.

The same gain in accuracy may be many rescued answers and few harmed ones, or many of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError


@dataclass(frozen=True)
class RetrievalEffect:
    """What became of answers when evidence was added; rates are shares of all questions.

    Attributes:
        rescue_rate: Wrong without evidence, right with it.
        harm_rate: Right without evidence, wrong with it.
        net_gain: Their difference, which is the difference of the two accuracies.
        rescued_of_wrong, harmed_of_right: Of those that were wrong, or right, without evidence; `None` if none was.
    """

    rescue_rate: float
    harm_rate: float
    net_gain: float
    rescued_of_wrong: float | None
    harmed_of_right: float | None


def retrieval_effect(without: npt.ArrayLike, with_evidence: npt.ArrayLike) -> RetrievalEffect:
    """Compares right and wrong of the same questions without and with evidence: two bool arrays of shape `(Q,)`.

    Raises:
        InvalidInputError: The two differ in shape, are not bool, or hold no question.

    Example: of the two wrong ones one was rescued, of the two right ones one was harmed.

    >>> retrieval_effect([True, True, False, False], [True, False, True, False])
    RetrievalEffect(rescue_rate=0.25, harm_rate=0.25, net_gain=0.0, rescued_of_wrong=0.5, harmed_of_right=0.5)
    """
    before, after = _checked(without=without, with_evidence=with_evidence)
    rescued, harmed = after & ~before, before & ~after
    num_right, num_wrong = int(before.sum()), int((~before).sum())
    return RetrievalEffect(
        rescue_rate=float(rescued.mean()),
        harm_rate=float(harmed.mean()),
        net_gain=float((rescued.sum() - harmed.sum()) / len(before)),
        rescued_of_wrong=float(rescued.sum() / num_wrong) if num_wrong else None,
        harmed_of_right=float(harmed.sum() / num_right) if num_right else None,
    )


def reader_given_retrieval(correct: npt.ArrayLike, hit: npt.ArrayLike) -> dict[str, float]:
    """The four ways in which reader and retriever succeed or fail together, as shares that sum to 1.

    The names are those of RA-VQA (Lin, Byrne 2022, https://huggingface.co/papers/2210.03809), which counts passages,
    each read alone: pass arrays of one entry per passage and question for that, or of one entry per question.

    Args:
        correct (`np.ndarray`, bool): Was the answer right?
        hit (`np.ndarray` of the same shape, bool): Did the evidence hold the answer? RA-VQA asks whether the predicted
            words are in the passage, so that a "hit" of a wrong answer is one that was copied.

    Raises:
        InvalidInputError: The two differ in shape, are not bool, or are empty.

    Example:

    >>> reader_given_retrieval([True, True, False, False], [True, False, True, True])
    {'successful_hit': 0.25, 'successful_no_hit': 0.25, 'failed_hit': 0.5, 'failed_no_hit': 0.0}
    """
    right, found = _checked(correct=correct, hit=hit)
    answers, evidence = {"successful": right, "failed": ~right}, {"hit": found, "no_hit": ~found}
    return {f"{a}_{e}": float((answers[a] & evidence[e]).mean()) for a in answers for e in evidence}


def _checked(**arrays: npt.ArrayLike) -> list[npt.NDArray[np.bool_]]:
    marks = {name: np.asarray(array) for name, array in arrays.items()}
    if len({array.shape for array in marks.values()}) > 1 or any(
        array.dtype != np.bool_ or array.size == 0 for array in marks.values()
    ):
        came = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in marks.items())
        raise InvalidInputError(f"Expected bool arrays of one shape that are not empty; came: {came}.")
    return list(marks.values())
