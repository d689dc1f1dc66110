"""When an answer counts as right in a benchmark: VQA accuracy, InfoSeek, Encyclopedic-VQA, ANLS of DocVQA.

Every function judges one prediction, as the official script of its benchmark does: `vqaEval.py` of
https://github.com/GT-Vision-Lab/VQA, `infoseek_eval.py` of https://github.com/edchengg/infoseek_eval,
`evaluation_utils.py` of `encyclopedic_vqa` in https://github.com/google-research/google-research. Where a script does
something else than it says, `official_quirks=True` does what it does, since that is what published figures are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import InvalidInputError
from .answers import answer_texts, normalize_answer, normalize_encyclopedic_answer, normalize_vqa_answer
from .multilingual import normalize_unicode_answer


INFOSEEK_KINDS = ("string", "time", "numerical")
ENCYCLOPEDIC_KINDS = ("templated", "automatic", "multi_answer", "2_hop")

# (question, reference, prediction) -> how likely it is, 0..1, that the two are the same answer.
Equivalence = Callable[[str, str, str], float]

_NUMBER = re.compile(r"[-+]?[.]?\d+(?:,\d\d\d)*[.]?\d*(?:[eE][-+]?\d+)?")
_HYPHEN_AFTER_DIGIT = re.compile(r"(?<=\d)-")
_YEAR = re.compile(r"\b\d{4}\b")
_INTERVAL_OVERLAP = _ENCYCLOPEDIC_OVERLAP = 0.5
_EQUIVALENT = 0.5


def vqa_accuracy(
    prediction: str, answers: Sequence[Any], official_quirks: bool = True, normalizer: str = "vqa"
) -> float:
    """The accuracy of VQAv2, OK-VQA and A-OKVQA (direct answers) of one prediction, 0..1.

    An answer is right to the degree in which people agree with it: `min(1, number of others who said so / 3)`,
    averaged over leaving out each person in turn (Antol et al. 2015, https://huggingface.co/papers/1505.00468).

    Args:
        prediction (`str`): What the model said.
        answers (sequence of `str`): What the people said, each one once, ten as a rule; the dictionaries of the
            official file (`{"answer": "net", ...}`) as well. The five of OK-VQA are counted twice there; do the same.
        official_quirks (`bool`): With the slips of the official script. When all people gave one answer, neither it
            nor the prediction is normalised, so "Yes" misses ten times "yes". Of the full stops without a digit
            behind, only the first 32 are dropped. "somebody'd" loses its apostrophe.
        normalizer (`str`): `"vqa"`, the official one, or `"unicode"` for answers in all scripts, without the slips.

    Raises:
        InvalidInputError: Fewer than four answers came, with which nothing could be fully right.

    Example: three of ten people said "grey". Leaving out one of them, two others remain; leaving out one of the seven,
    three: `(3 * 2 / 3 + 7 * 1) / 10`.

    >>> round(vqa_accuracy("Grey.", ["grey"] * 3 + ["blue"] * 7), 6)
    0.9
    """
    if isinstance(answers, str) or len(answers) < 4:
        raise InvalidInputError(
            f"VQA accuracy needs the answers of at least four people, ten as a rule; came: {answers!r}. With one "
            "accepted answer, use `exact_match`."
        )
    said, given = _one_line(prediction), [_one_line(answer) for answer in answer_texts(answers)]
    if _choice(normalizer, ("vqa", "unicode"), "normalizer") == "unicode":
        said, given = normalize_unicode_answer(said), list(map(normalize_unicode_answer, given))
    elif not official_quirks or len(set(given)) > 1:
        said = normalize_vqa_answer(said, official_quirks)
        given = [normalize_vqa_answer(answer, official_quirks) for answer in given]
    num_agreeing = given.count(said)
    without_one_of_them = num_agreeing * min(1.0, (num_agreeing - 1) / 3)
    without_another = (len(given) - num_agreeing) * min(1.0, num_agreeing / 3)
    return (without_one_of_them + without_another) / len(given)


def aokvqa_accuracy(prediction: str, answers: Sequence[Any], official_quirks: bool = True) -> float:
    """The accuracy of A-OKVQA (direct answers) of one prediction, 0..1: `min(1, number of people who said so / 3)`.

    Args:
        prediction (`str`): What the model said.
        answers (sequence of `str`): What ten people said.
        official_quirks (`bool`): The official script compares letter by letter, so "Net." misses "net". `False`
            normalises both as VQA accuracy does.

    Raises:
        InvalidInputError: No answer came, or one string instead of several.

    Example:

    >>> aokvqa_accuracy("net", ["net", "net", "racket"]), aokvqa_accuracy("Net.", ["net"] * 10)
    (0.6666666666666666, 0.0)
    >>> aokvqa_accuracy("Net.", ["net"] * 10, official_quirks=False)
    1.0
    """
    if isinstance(answers, str) or len(answers) == 0:
        raise InvalidInputError(f"A-OKVQA needs the answers of several people, ten as a rule; came: {answers!r}.")
    said, given = prediction, answer_texts(answers)
    if not official_quirks:
        said, given = normalize_vqa_answer(said), list(map(normalize_vqa_answer, given))
    return min(1.0, given.count(said) / 3)


def infoseek_score(
    prediction: str, answers: Sequence[Any], kind: str = "string", official_quirks: bool = True
) -> float:
    """1.0 if a prediction counts as right in InfoSeek, else 0.0 (Chen et al. 2023, https://huggingface.co/papers/2302.11713).

    Strings and times are compared as in SQuAD. A number is right within the range of the answer; a range of numbers,
    if it lies within that range or overlaps it by half of their union.

    Args:
        prediction (`str`): What the model said.
        answers (sequence): The `answer_eval` of the question. For numbers: the two ends of its `range`, or one number,
            around which 10 % are accepted.
        kind (`str`): The question type, one of `INFOSEEK_KINDS`.
        official_quirks (`bool`): The script reads the first two numbers as a range, or only the first if they descend;
            ".5" as 5; and a prediction without a number as the range 0..0, which is right where 0 is. Its promise of
            one year of tolerance is not kept. `False`: no number is wrong, ".5" is a half, and a year may be off by
            one.

    Raises:
        InvalidInputError: Another kind, no answer, or ends of a range that are no numbers.

    Example:

    >>> infoseek_score("about 9-10 metres", [9.5, 11.5], kind="numerical")
    0.0
    >>> infoseek_score("10-11 metres", [9.5, 11.5], kind="numerical")
    1.0
    >>> infoseek_score("in 1889", ["1889"], kind="time"), infoseek_score("1889.", ["1889"], kind="time")
    (0.0, 1.0)
    """
    kind = _choice(kind.lower(), INFOSEEK_KINDS, "kind")
    answers = answers if isinstance(answers, str) else answer_texts(answers)  # `{"range": [low, high]}` becomes two
    if isinstance(answers, str) or len(answers) == 0:
        raise InvalidInputError(f"InfoSeek needs a list with one or more accepted answers; came: {answers!r}.")
    if kind == "numerical":
        return float(_within(_numbers(prediction, official_quirks), _answer_range(answers)))
    said = normalize_answer(prediction)
    if any(said == normalize_answer(str(answer)) for answer in answers):
        return 1.0
    if kind == "time" and not official_quirks:
        years = [int(year) for answer in answers for year in _YEAR.findall(str(answer))]
        return float(any(abs(int(year) - right) <= 1 for year in _YEAR.findall(prediction)[:1] for right in years))
    return 0.0


def infoseek_final(unseen_question: float, unseen_entity: float) -> float:
    """The figure that InfoSeek ranks by: the harmonic mean of the accuracies of its two splits.

    Example:

    >>> round(infoseek_final(0.2, 0.3), 4), round(infoseek_final(0.0, 0.3), 4)
    (0.24, 0.0)
    """
    first, second = max(unseen_question, 1e-12), max(unseen_entity, 1e-12)
    return 2 / (1 / first + 1 / second)


def encyclopedic_match(
    prediction: str,
    answers: str | Sequence[str],
    kind: str = "automatic",
    question: str = "",
    equivalence: Equivalence | None = None,
) -> float:
    """1.0 if a prediction counts as right in Encyclopedic-VQA, else 0.0 (Mensink et al. 2023,
    https://huggingface.co/papers/2306.09224).

    Exact match decides first. Where it fails, the official script asks a BERT for answer equivalence (BEM, on
    TensorFlow Hub): pass any judge as `equivalence`. Without one this is below all published accuracies.

    Args:
        prediction (`str`): What the model said.
        answers (`str` or sequence of `str`): The references; one is enough. In one string, as in the official file,
            they are parted by "|". The parts of a `multi_answer` are joined by "&&".
        kind (`str`): The question type, one of `ENCYCLOPEDIC_KINDS`. For `multi_answer` half of the union of the
            parts must be common; the prediction is split at commas and "and".
        question (`str`): For the judge.
        equivalence (callable, *optional*): `(question, reference, prediction) -> 0..1`; right from 0.5 on.

    Raises:
        InvalidInputError: Another kind, no reference, or one that is empty after normalisation.

    Example:

    >>> encyclopedic_match("red and white", ["white && red && green"], kind="multi_answer")
    1.0
    >>> encyclopedic_match("the Alps mountains", ["Alps"])
    0.0
    >>> encyclopedic_match("the Alps mountains", ["Alps"], equivalence=lambda question, right, said: right in said)
    1.0
    """
    has_parts = _choice(kind, ENCYCLOPEDIC_KINDS, "kind") == "multi_answer"
    answers = answers.split("|") if isinstance(answers, str) else answers
    if len(answers) == 0:
        raise InvalidInputError(f"Encyclopedic-VQA needs a list of one or more references; came: {answers!r}.")
    listed = prediction.replace(" and ", ",").replace(" & ", ",").split(",") if has_parts else [prediction]
    said = set(map(normalize_encyclopedic_answer, listed)) - {""}
    for reference in answers:
        parts = set(map(normalize_encyclopedic_answer, reference.split("&&") if has_parts else [reference])) - {""}
        if not parts:
            raise InvalidInputError(
                f"The reference {reference!r} is empty after normalisation; nothing could match it."
            )
        if len(said & parts) / len(said | parts) >= (_ENCYCLOPEDIC_OVERLAP if has_parts else 1.0):
            return 1.0
    if equivalence is None:
        return 0.0
    references = [reference.replace("&&", ",") if has_parts else reference for reference in answers]
    return float(any(equivalence(question, reference, prediction) >= _EQUIVALENT for reference in references))


def anls(prediction: str, answers: str | Sequence[str], threshold: float = 0.5) -> float:
    """Normalised Levenshtein similarity of one prediction to the nearest accepted answer, 0..1; its mean is ANLS.

    With the edit distance `d` of the two lower-cased texts, white space made one space, it is
    `1 - d / max(length of each)`, and 0 below the threshold, where another answer was meant: slips of reading cost
    little, other answers all. The measure of ST-VQA, DocVQA and InfographicVQA (Biten et al. 2019,
    https://huggingface.co/papers/1905.13648).

    Args:
        prediction (`str`): What the model said.
        answers (`str` or sequence of `str`): The accepted answers.
        threshold (`float`): The paper counts what lies above it, the official script also what equals it, as here.

    Raises:
        InvalidInputError: There is no accepted answer.

    Example: one letter of eleven is missing.

    >>> anls("Invoice  42", ["invoice 142", "bill"]), anls("Total", "invoice 142")
    (0.9090909090909091, 0.0)
    """
    accepted = [answers] if isinstance(answers, str) else list(answers)
    if not accepted:
        raise InvalidInputError("No accepted answer was given (answers=[]); pass at least one string.")
    said = " ".join(prediction.lower().split())
    best = max(_similarity(said, " ".join(answer.lower().split())) for answer in accepted)
    return best if best >= threshold else 0.0


def _similarity(said: str, answer: str) -> float:
    """One minus the edit distance over the length of the longer text; 1 for two empty ones."""
    row = list(range(len(answer) + 1))  # distances of what is read of `said` to every beginning of `answer`
    for place, letter in enumerate(said, start=1):
        before, row[0] = row[0], place
        for end, other in enumerate(answer, start=1):
            before, row[end] = row[end], min(row[end] + 1, row[end - 1] + 1, before + (letter != other))
    return 1 - row[-1] / max(len(said), len(answer), 1)


def _numbers(text: str, official_quirks: bool) -> tuple[float, float] | None:
    """What a prediction says: a range, with equal ends for a single number; `None` without a number."""
    found = _NUMBER.findall(_HYPHEN_AFTER_DIGIT.sub(" - ", text))
    stripped = "." if official_quirks else ""
    values = [float(number.replace(",", "").strip(stripped)) for number in found[:2]]
    if not values:
        return (0.0, 0.0) if official_quirks else None
    return (values[0], values[-1]) if values[0] <= values[-1] else (values[0], values[0])


def _answer_range(answers: Sequence[str]) -> tuple[float, float]:
    try:
        ends = [float(answer) for answer in answers[:2]]
    except ValueError:
        raise InvalidInputError(
            f"The answer to a numerical question of InfoSeek is a range of two numbers; came: {answers!r}. "
            'Pass `answer_eval[0]["range"]`.'
        ) from None
    return (ends[0], ends[1]) if len(ends) == 2 else (ends[0] * 0.9, ends[0] * 1.1)


def _within(said: tuple[float, float] | None, answer: tuple[float, float]) -> bool:
    if said is None:
        return False
    if all(answer[0] <= end <= answer[1] for end in said):
        return True
    if said[0] == said[1]:
        return False
    overlap = max(0.0, min(said[1], answer[1]) - max(said[0], answer[0]))
    union = (said[1] - said[0]) + (answer[1] - answer[0]) - overlap
    return union > 0 and overlap / union >= _INTERVAL_OVERLAP - 1e-12


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _choice(value: str, choices: tuple[str, ...], name: str) -> str:
    if value not in choices:
        raise InvalidInputError(f"{name}={value!r} is not known. Choose one of {', '.join(choices)}.")
    return value
