"""Every metric by its name: `ANSWER_METRICS` judge answers, `retrieval_scores` the evidence that they were given.

Beside the official metrics stand those for all scripts, with `_unicode` behind their names: another normaliser, and a
word for every character of a script without spaces; and, for captions, with `_zh` and `_th` those over the words of
Chinese and Thai.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError
from ..metrics import (
    CaptionScore,
    anls,
    aokvqa_accuracy,
    average_precision,
    bleu,
    caption_tokens,
    cider_d,
    encyclopedic_match,
    exact_match,
    hit_at_k,
    infoseek_score,
    ndcg_at_k,
    recall_at_k,
    reciprocal_rank,
    relevance_from_answers,
    relevance_from_ids,
    rouge_l,
    token_f1,
    vqa_accuracy,
)
from ..metrics.captions import References, Tokens
from .questions import Question, Reply


_SECTION = re.compile(r"#\d+(-\d+)*$")  # of an article, perhaps cut into pieces


@dataclass(frozen=True)
class Scores:
    """A metric over a data set.

    Attributes:
        value: The figure for all.
        per_question: One per question, of shape `(Q,)`.
        is_mean: Whether `value` is the mean of `per_question`; only BLEU's is not.
    """

    value: float
    per_question: npt.NDArray[np.float64] = field(repr=False)
    is_mean: bool = True


# One prediction and the question that it answers.
AnswerMetric = Callable[[str, Question], float]
Scorer = Callable[[Sequence[str], Sequence[Question]], Scores]


def score_answers(
    name: str, predictions: Sequence[str], questions: Sequence[Question], metric: AnswerMetric | None = None
) -> Scores:
    """Scores predictions by a metric of `ANSWER_METRICS`, or by a function of one's own.

    Args:
        name (`str`): The metric.
        predictions (`list[str]`): In the order of the questions.
        questions (`list[Question]`): With the accepted answers.
        metric (callable, *optional*): `(prediction, question) -> score`, for a name that is not known here.

    Raises:
        InvalidInputError: The name is not known, a prediction is missing, or the metric does not fit the questions
            (VQA accuracy with one accepted answer, say), naming the question.

    Example:

    >>> question = Question("1", "Which colour?", ("red", "crimson"))
    >>> score_answers("exact_match", ["Red!"], [question]).value
    1.0
    """
    if len(predictions) != len(questions):
        raise InvalidInputError(
            f"{len(predictions)} predictions came for {len(questions)} questions; pass one for each."
        )
    for prediction, question in zip(predictions, questions, strict=True):
        if not isinstance(prediction, str):
            raise InvalidInputError(
                f"The prediction for question {question.id!r} is {prediction!r}; expected a string, maybe empty."
            )
    if metric is None and name not in ANSWER_METRICS:
        raise InvalidInputError(
            f"The metric {name!r} is not known. Choose of {', '.join(ANSWER_METRICS)}, or pass a function."
        )
    return (ANSWER_METRICS[name] if metric is None else _per_answer(metric))(predictions, questions)


def retrieval_scores(
    replies: Sequence[Reply], questions: Sequence[Question], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, npt.NDArray[np.float64]]:
    """How good the evidence of the replies was, as far as the data can tell; per figure one value per question.

    With `gold_ids` for every question: `hit@k`, `recall@k`, `mrr@k`, `map@k` and `ndcg@k`, with k up to the longest
    list of evidence. With texts of the evidence: `pseudo_recall@k`, which asks whether any accepted answer stands in
    them. Where gold ids name sections (`ARTICLE#3`, as those of Encyclopedic-VQA), also `article_hit@k` and
    `article_recall@k`, as published figures count.

    Example:

    >>> questions = [Question("1", "Which colour?", ("red",), gold_ids=("a",))]
    >>> replies = [Reply("red", evidence_ids=("b", "a"), evidence_texts=("Blue.", "It is red."))]
    >>> {name: values.tolist() for name, values in retrieval_scores(replies, questions, ks=(2,)).items()}
    {'hit@2': [1.0], 'recall@2': [1.0], 'mrr@2': [0.5], 'map@2': [0.5], 'ndcg@2': [0.6309297535714575],
        'pseudo_recall@2': [1.0]}
    """
    longest = max((len(reply.evidence_ids) for reply in replies), default=0)
    found: dict[str, npt.NDArray[np.float64]] = {}
    if longest == 0:
        return found
    depths = sorted({k for k in ks if k < longest} | {longest})
    if all(question.gold_ids for question in questions):
        gold = [set(question.gold_ids) for question in questions]
        relevant = relevance_from_ids([list(dict.fromkeys(reply.evidence_ids)) for reply in replies], gold)
        found = ranking_figures(relevant, [len(ids) for ids in gold], depths)
        if any(_SECTION.search(wanted) for ids in gold for wanted in ids):
            found |= _article_figures(replies, gold, depths)
    if any(reply.evidence_texts for reply in replies):
        relevant = relevance_from_answers(
            [reply.evidence_texts for reply in replies], [question.answers for question in questions]
        )
        found |= {f"pseudo_recall@{k}": hit_at_k(relevant, k) for k in depths}
    return found


def _article_figures(
    replies: Sequence[Reply], gold: Sequence[set[str]], ks: Sequence[int]
) -> dict[str, npt.NDArray[np.float64]]:
    """Hit and recall among the first k articles, each counted once, whichever of their sections were found."""
    articles = [list(dict.fromkeys(map(_article_of, reply.evidence_ids))) for reply in replies]
    wanted = [set(map(_article_of, ids)) for ids in gold]
    relevant = relevance_from_ids(articles, wanted)
    found = {f"article_hit@{k}": hit_at_k(relevant, k) for k in ks}
    return found | {f"article_recall@{k}": recall_at_k(relevant, list(map(len, wanted)), k) for k in ks}


def _article_of(passage_id: str) -> str:
    """The article of a section, or of a piece of one.

    >>> _article_of("https://en.wikipedia.org/wiki/Wren#3-1"), _article_of("manual.pdf#page=12-0")
    ('https://en.wikipedia.org/wiki/Wren', 'manual.pdf#page=12-0')
    """
    return _SECTION.sub("", passage_id)


def ranking_figures(
    relevant: npt.NDArray[np.bool_], num_gold: Sequence[int], ks: Sequence[int]
) -> dict[str, npt.NDArray[np.float64]]:
    """Hit, recall, MRR, mAP and nDCG at each k, by names such as `"hit@5"`, one value per question; see `ranking`."""
    found = {}
    for k in ks:
        found[f"hit@{k}"] = hit_at_k(relevant, k)
        found[f"recall@{k}"] = recall_at_k(relevant, num_gold, k)
        found[f"mrr@{k}"] = reciprocal_rank(relevant, k)
        found[f"map@{k}"] = average_precision(relevant, num_gold, k)
        found[f"ndcg@{k}"] = ndcg_at_k(relevant, num_gold, k)
    return found


def _per_answer(metric: AnswerMetric) -> Scorer:
    def score(predictions: Sequence[str], questions: Sequence[Question]) -> Scores:
        values = []
        for prediction, question in zip(predictions, questions, strict=True):
            try:
                values.append(float(metric(prediction, question)))
            except InvalidInputError as error:
                raise InvalidInputError(f"Question {question.id!r}: {error}") from None
        array = np.array(values)
        return Scores(float(array.mean()) if values else float("nan"), array)

    return score


def _per_caption(
    metric: Callable[[Sequence[Tokens], References], CaptionScore], is_mean: bool = True, language: str = "en"
) -> Scorer:
    def score(predictions: Sequence[str], questions: Sequence[Question]) -> Scores:
        candidates = [caption_tokens(prediction, language=language) for prediction in predictions]
        accepted = [
            [caption_tokens(answer, language=language) for answer in question.answers] for question in questions
        ]
        found = metric(candidates, accepted)
        return Scores(found.corpus, found.per_image, is_mean)

    return score


ANSWER_METRICS: Mapping[str, Scorer] = {
    "exact_match": _per_answer(lambda said, question: exact_match(said, question.answers)),
    "token_f1": _per_answer(lambda said, question: token_f1(said, question.answers)),
    "vqa_accuracy": _per_answer(lambda said, question: vqa_accuracy(said, question.answers)),
    "aokvqa": _per_answer(lambda said, question: aokvqa_accuracy(said, question.answers)),
    "anls": _per_answer(lambda said, question: anls(said, question.answers)),
    "infoseek": _per_answer(lambda said, question: infoseek_score(said, question.answers, question.kind or "string")),
    "encyclopedic_vqa": _per_answer(
        lambda said, question: encyclopedic_match(
            said, question.answers, question.kind or "automatic", question.question
        )
    ),
    **{
        f"{name}{suffix}": _per_caption(metric, metric is not bleu, language)
        for suffix, language in (("", "en"), ("_unicode", "characters"), ("_zh", "zh"), ("_th", "th"))
        for name, metric in (("bleu_4", bleu), ("rouge_l", rouge_l), ("cider_d", cider_d))
    },
    "exact_match_unicode": _per_answer(lambda said, question: exact_match(said, question.answers, "unicode")),
    "token_f1_unicode": _per_answer(lambda said, question: token_f1(said, question.answers, "unicode")),
    "vqa_accuracy_unicode": _per_answer(
        lambda said, question: vqa_accuracy(said, question.answers, normalizer="unicode")
    ),
}
