"""When two answers are the same: the normalisers of SQuAD, VQA and Encyclopedic-VQA, exact match and token F1.

Each normaliser is that of an official evaluation script, whose choices (which marks go, in which order) decide what is
right: `evaluate-v2.0.py` of SQuAD (Rajpurkar et al. 2018, https://huggingface.co/papers/1806.03822), which InfoSeek
shares, and whose exact match and token F1 (Rajpurkar et al. 2016, https://huggingface.co/papers/1606.05250) are here;
`vqaEval.py` of https://github.com/GT-Vision-Lab/VQA; `evaluation_utils.py` of `encyclopedic_vqa` in
https://github.com/google-research/google-research.
"""

from __future__ import annotations

import numbers
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..errors import InvalidInputError
from .multilingual import normalize_unicode_answer, unicode_tokens


Normalizer = Literal["squad", "unicode"]

NO_ANSWERS = ("unknown", "i do not know", "i don't know", "no answer", "not enough information")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)

_ENCYCLOPEDIC_FILLERS = re.compile(r"\b(the answer is|a|an|the)\b")
_ENCYCLOPEDIC_MARKS = str.maketrans("", "", string.punctuation + "‘’´")
_ENCYCLOPEDIC_WORDS = {"entailment": "yes", "true": "yes", "contradiction": "no", "false": "no"}
_T5_PREFIX = "<extra_id_0> "

_VQA_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_OFFICIAL_FULL_STOPS = 32
_VQA_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBER_WORDS)}}

# A contraction is recognised without one or more of its apostrophes, unless that is another word ("were", "we're").
_ONE_APOSTROPHE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd "
    "there're there's  they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've "
    "when's where'd where's  where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all "
    "you'd you'll you're you've"
).split()
_TWO_APOSTROPHES = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've "
    "something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've"
).split()
_OFFICIAL_SLIPS = {"somebody'd": "somebodyd"}


def normalize_answer(text: str) -> str:
    """Lower-case `text`, drop ASCII punctuation and English articles, and make every run of white space one space.

    Punctuation is deleted, not replaced by a space ("well-known" becomes "wellknown"); accents, other scripts and
    their punctuation stay. Nothing is left of a text of articles and punctuation.

    >>> normalize_answer("The  U.S.   dollar!")
    'us dollar'
    >>> normalize_answer("São Tomé and Príncipe")
    'são tomé and príncipe'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def is_no_answer(text: str, phrases: Iterable[str] = NO_ANSWERS) -> bool:
    """Whether a text is one of the phrases that say that there is no answer, or nothing; case and marks do not count.

    >>> [is_no_answer(said) for said in ("Unknown.", "I don’t know!", "…", "A", "unknown to science")]
    [True, True, True, False, False]
    >>> is_no_answer("不知道。", ["不知道"])
    True
    """
    said = _words(text)
    return not said or any(said == _words(phrase) for phrase in phrases)


def _words(text: str) -> list[str]:
    """What is left of a text without marks, in small letters."""
    return re.findall(r"\w+", text.replace("’", "'").replace("'", "").casefold())


def check_no_answers(phrases: Any) -> tuple[str, ...]:
    """What `is_no_answer` is to compare with, or `InvalidInputError` where it is no list of texts.

    >>> check_no_answers(["unknown", "unbekannt"])
    ('unknown', 'unbekannt')
    """
    if not isinstance(phrases, (list, tuple)) or not all(isinstance(phrase, str) for phrase in phrases):
        raise InvalidInputError(f"no_answers={phrases!r}: expected a list of texts, such as {list(NO_ANSWERS[:2])}")
    return tuple(phrases)


def normalize_vqa_answer(text: str, official_quirks: bool = True) -> str:
    """The form in which the VQA script compares answers: no punctuation, articles or number words, in lower case.

    A mark becomes a space, except next to a space, or where the text has a number such as "1,000": there it is
    deleted. `official_quirks` keeps the slips of the script, see `vqa_accuracy`.

    >>> normalize_vqa_answer("The  T-shirt: two dont match")
    "t shirt: 2 don't match"
    >>> normalize_vqa_answer("$1,000.00.")
    '$1000.00'
    """
    delete_marks = _DIGIT_COMMA_DIGIT.search(text) is not None
    kept = text
    for mark in _VQA_MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if delete_marks or beside_space else " ")
    kept = _FULL_STOP.sub("", kept, count=_OFFICIAL_FULL_STOPS if official_quirks else 0)
    words = [_NUMBERS.get(word, word) for word in kept.lower().split()]
    if official_quirks:
        words = [_OFFICIAL_SLIPS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _VQA_ARTICLES)


def normalize_encyclopedic_answer(text: str) -> str:
    """The form in which Encyclopedic-VQA compares answers; also drops "the answer is", and "true" becomes "yes".

    >>> normalize_encyclopedic_answer("The answer is: the two well-known L’Oréals")
    '2 wellknown loréals'
    >>> normalize_encyclopedic_answer("True"), normalize_encyclopedic_answer("they dont")
    ('yes', "they don't")
    """
    text = text.lower().replace("\n", " ").replace("\t", " ").strip()
    if text.startswith(_T5_PREFIX):
        text = text.replace(_T5_PREFIX, "")
    words = _ENCYCLOPEDIC_FILLERS.sub(" ", text.translate(_ENCYCLOPEDIC_MARKS)).split()
    words = [_ENCYCLOPEDIC_WORDS.get(word) or _NUMBERS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in words)


def _contractions() -> dict[str, str]:
    """From what people type to what is meant: all apostrophes but one may be there."""
    table = {word.replace("'", ""): word for word in _ONE_APOSTROPHE}
    for word in _TWO_APOSTROPHES:
        first, second, third = word.split("'")
        table[f"{first}{second}'{third}"] = table[f"{first}'{second}{third}"] = word
    table["y'all'dve"] = table["y'alld've"] = table["yall'd've"] = "y'all'd've"
    table["'ow'sat"] = table["'ows'at"] = table["ow's'at"] = "'ow's'at"
    return table


CONTRACTIONS = _contractions()


def exact_match(prediction: str, answers: str | Sequence[str], normalizer: Normalizer = "squad") -> float:
    """1.0 if the normalised `prediction` equals any of the normalised `answers` (one string or several), else 0.0.

    Args:
        prediction (`str`), answers (`str` or sequence of `str`): What the model said, and what is accepted.
        normalizer (`str`): `"squad"`, the official one (`normalize_answer`), or `"unicode"` for answers in all
            scripts (`normalize_unicode_answer`).

    Raises:
        InvalidInputError: `answers` is empty: nothing can be right; or the normaliser is not known.

    >>> exact_match("the Euro.", ["Euro", "euros"])
    1.0
    >>> exact_match("Euro, Swiss franc", "Euro")
    0.0
    >>> exact_match("北京。", "北京"), exact_match("北京。", "北京", normalizer="unicode")
    (0.0, 1.0)
    """
    normalize = _normalizer(normalizer)
    said = normalize(prediction)
    return float(any(said == normalize(answer) for answer in _accepted(answers)))


def token_f1(
    prediction: str,
    answers: str | Sequence[str],
    normalizer: Normalizer = "squad",
    language: str = "characters",
) -> float:
    """Overlap of words between the normalised `prediction` and the best-matching of the `answers`, in 0..1.

    With the word multisets `p` and `a`, precision is `|p ∩ a| / |p|`, recall is `|p ∩ a| / |a|`, and F1 is their
    harmonic mean. If either side has no words left, F1 is 1 when both are empty and 0 otherwise (the rule of SQuAD 2).

    Args:
        prediction, answers, normalizer: As of `exact_match`.
        language (`str`): With `normalizer="unicode"`, how words are found where no spaces part them, see
            `unicode_tokens`.

    Raises:
        InvalidInputError: `answers` is empty: nothing can be right; or the normaliser or language is not known.

    Example: two of three words predicted are among the four of the answer, so precision 2/3, recall 1/2.

    >>> round(token_f1("red means blood", ["red: blood of heroes"]), 4)
    0.5714
    """
    normalize = _normalizer(normalizer)

    def words(text: str) -> list[str]:
        return unicode_tokens(text, language) if normalizer == "unicode" else normalize(text).split()

    said = words(prediction)
    return max(_f1(said, words(answer)) for answer in _accepted(answers))


def answer_texts(value: Any) -> list[str]:
    """The accepted answers in a cell of any official file: a text, a number, a dictionary, or a list of these.

    Dictionaries are those of VQA (`{"answer": ...}`), SQuAD (`{"text": [...]}`), TriviaQA (`{"aliases": [...]}`) and
    InfoSeek (`{"range": [low, high]}`); with other keys, or for truth values, `InvalidInputError`.

    >>> answer_texts([{"answer": "net", "answer_id": 1}, "nets", 2])
    ['net', 'nets', '2']
    """
    if value is None:
        return []
    if isinstance(value, Mapping):
        for key in ("answer", "text", "range", "aliases", "value"):
            if value.get(key) is not None:
                return answer_texts(value[key])
        raise InvalidInputError(
            f"{str(value)[:200]}; expected a string, a list of strings, or a dictionary with answer, text or aliases"
        )
    if isinstance(value, str):
        return [value]
    if isinstance(value, numbers.Number) and not isinstance(value, (bool, np.bool_)):
        return [str(value)]
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        return [text for item in value for text in answer_texts(item)]
    raise InvalidInputError(f"{str(value)[:200]}; expected a string or a list of strings")


def _f1(said: list[str], accepted: list[str]) -> float:
    if not said or not accepted:
        return float(said == accepted)
    num_common = (Counter(said) & Counter(accepted)).total()
    # 2·P·R / (P + R) with P = common/said and R = common/accepted
    return 2 * num_common / (len(said) + len(accepted))


def _normalizer(name: str) -> Callable[[str], str]:
    if name not in _NORMALIZERS:
        raise InvalidInputError(f"normalizer={name!r} is not known. Choose one of {', '.join(_NORMALIZERS)}.")
    return _NORMALIZERS[name]


_NORMALIZERS: dict[str, Callable[[str], str]] = {"squad": normalize_answer, "unicode": normalize_unicode_answer}


def _accepted(answers: str | Sequence[str]) -> Sequence[str]:
    """A lone string is one answer, not a sequence of letters."""
    if isinstance(answers, str):
        return [answers]
    if len(answers) == 0:
        raise InvalidInputError("No accepted answer was given (answers=[]); pass at least one string.")
    return answers
