"""Rewards for reinforcement, as trl's GRPO and RLOO trainers call them.

A reward function gets `prompts`, `completions` (texts, or messages of a conversation) and every column of the data
set, each a list with one entry per completion, and gives a number for each:

```python
GRPOTrainer(model, [exact_match_reward, SearchCost(0.1)], args=GRPOConfig(reward_weights=[1.0, 1.0]), ...)
```

| | in plain terms | columns |
|---|---|---|
| `exact_match_reward` | 1 for an accepted answer, else 0 | `answers` |
| `vqa_accuracy_reward` | as many of ten people agree, 0 to 1 | `answers` |
| `citation_reward` | share of citations that the cited passage supports | `evidence` |
| `FormatReward` | 1 for a text of the form that is asked for | |
| `SearchCost` | minus so much for each search | `num_searches`, or calls in the text |
| `AbstentionReward` | right 1, nothing said a little, wrong a loss | `answers` |

An answer is what stands behind thoughts (`</think>`), without calls for a search.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ..errors import InvalidInputError
from ..metrics.answers import NO_ANSWERS, answer_texts, check_no_answers, exact_match, is_no_answer
from ..metrics.benchmarks import vqa_accuracy
from ..pipelines.citations import check_citations


SEARCH_CALL = r"<search>.*?</search>"  # also one that was cut off, and counts
_OPEN_CALL = re.compile(rf"{SEARCH_CALL}|<search>.*$", re.DOTALL)


def exact_match_reward(completions: Sequence[Any], answers: Sequence[Any], **_: Any) -> list[float]:
    """1.0 where the answer equals an accepted one, case, punctuation and articles apart, else 0.0.

    Args:
        completions: Texts, or lists of messages.
        answers: Per completion an accepted answer, or a list of them.

    Raises:
        InvalidInputError: A completion has no accepted answer.

    >>> exact_match_reward(["The Oslo.", "Bergen"], [["Oslo"], "Oslo"])
    [1.0, 0.0]
    """
    return [exact_match(said, accepted) for said, accepted in _paired(completions, answers)]


def vqa_accuracy_reward(completions: Sequence[Any], answers: Sequence[Any], **_: Any) -> list[float]:
    """As VQAv2 counts: how many of ten people said so, a third each, at most 1, without the slips of its script.

    Arguments and errors are those of `exact_match_reward`; `answers` holds what ten people said, each one once.

    >>> vqa_accuracy_reward(["red"], [["red"] * 2 + ["blue"] * 8])
    [0.6]
    """
    return [
        round(vqa_accuracy(said, accepted, official_quirks=False), 6)
        for said, accepted in _paired(completions, answers)
    ]


def citation_reward(
    completions: Sequence[Any], evidence: Sequence[Any], question: Sequence[str] | None = None, **_: Any
) -> list[float]:
    """Share of the citations, `[1]`, that the cited passage supports; 0.0 where nothing is cited.

    Args:
        completions: Texts, or lists of messages.
        evidence: Per completion the passages of its prompt, the first of which is number 1: texts, dictionaries with
            `text` and `title`, or objects.
        question (*optional*): What was asked; its words alone support nothing.

    >>> citation_reward(["It is Oslo [1].", "It is Oslo [2].", "Oslo"], [["Norway's capital is Oslo."]] * 3)
    [1.0, 0.0, 0.0]
    """
    rewards = []
    asked = question or [""] * len(completions)
    _check_length("evidence", evidence, completions)
    for completion, passages, words in zip(completions, evidence, asked, strict=True):
        found = check_citations(answer_in(completion), [_passage(passage) for passage in passages or []], words)
        rewards.append(sum(citation["supported"] for citation in found) / len(found) if found else 0.0)
    return rewards


class FormatReward:
    r"""1.0 where the whole text is of a form, else 0.0.

    Args:
        pattern (`str`): A regular expression; by default some answer, behind closed thoughts if there are any.

    Raises:
        InvalidInputError: It is no regular expression.

    >>> FormatReward()(["Oslo", "<think>hm</think> Oslo", "<think>hm", " "])
    [1.0, 1.0, 0.0, 0.0]
    >>> FormatReward(r"Answer: \w+")(["Answer: Oslo", "Oslo"])
    [1.0, 0.0]
    """

    __name__ = "format_reward"

    def __init__(self, pattern: str = r"\s*(<think>((?!</?think>).)*</think>)?((?!</?think>).)*\S\s*") -> None:
        try:
            self._pattern = re.compile(pattern, re.DOTALL)
        except (re.error, TypeError) as error:
            raise InvalidInputError(f"pattern={pattern!r}: expected a regular expression ({error})") from error

    def __call__(self, completions: Sequence[Any], **_: Any) -> list[float]:
        return [float(self._pattern.fullmatch(text_of(completion)) is not None) for completion in completions]


class SearchCost:
    """Minus `cost` for each search: those of a column `num_searches`, else the calls in the text.

    Args:
        cost (`float`): What one search takes from the reward.
        call (`str`): A regular expression of one call in a text.

    Raises:
        InvalidInputError: `cost` is negative, or `call` is no regular expression.

    >>> SearchCost(0.5)(["<search>kite</search> Oslo", "Oslo"]), SearchCost(0.5)(["Oslo"], num_searches=[2])
    ([-0.5, 0.0], [-1.0])
    """

    __name__ = "search_cost"

    def __init__(self, cost: float = 0.1, call: str = SEARCH_CALL) -> None:
        if isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0 <= cost < float("inf"):
            raise InvalidInputError(f"cost={cost!r}: expected a number from 0, which one search takes from the reward")
        try:
            self.cost, self._call = float(cost), re.compile(call, re.DOTALL)
        except (re.error, TypeError) as error:
            raise InvalidInputError(f"call={call!r}: expected a regular expression ({error})") from error

    def __call__(
        self, completions: Sequence[Any], num_searches: Sequence[float] | None = None, **_: Any
    ) -> list[float]:
        if num_searches is None:
            num_searches = [len(self._call.findall(text_of(completion))) for completion in completions]
        _check_length("num_searches", num_searches, completions)
        return [0.0 - self.cost * number for number in num_searches]


class AbstentionReward:
    """1.0 for a right answer, `silence` for none, `-loss` for a wrong one: guessing pays from a chance of success on.

    Saying nothing pays where the chance of being right is below `(silence + loss) / (1 + loss)`.

    Args:
        silence (`float`): For an empty answer, or one that says that it is not known.
        loss (`float`): What a wrong answer costs.
        no_answers (`list[str]`): What counts as no answer, as `is_no_answer` compares.

    Raises:
        InvalidInputError: `-loss <= silence <= 1` does not hold, or `no_answers` is no list of texts.

    >>> AbstentionReward(silence=0.2, loss=1.0)(["Oslo", "I do not know.", "Bergen"], answers=["Oslo"] * 3)
    [1.0, 0.2, -1.0]
    """

    __name__ = "abstention_reward"

    def __init__(self, silence: float = 0.0, loss: float = 1.0, no_answers: Sequence[str] = NO_ANSWERS) -> None:
        if not (loss >= 0 and -loss <= silence <= 1):
            raise InvalidInputError(f"silence={silence!r}, loss={loss!r}: expected -loss <= silence <= 1, loss from 0")
        self.silence, self.loss, self._no_answers = float(silence), float(loss), check_no_answers(no_answers)

    def __call__(self, completions: Sequence[Any], answers: Sequence[Any], **_: Any) -> list[float]:
        return [self._worth(said, accepted) for said, accepted in _paired(completions, answers)]

    def _worth(self, said: str, accepted: Sequence[str]) -> float:
        if is_no_answer(said, self._no_answers):
            return self.silence
        return 1.0 if exact_match(said, accepted) else -self.loss


def text_of(completion: Any) -> str:
    """The words of a completion: a text, or the last message of a list of them.

    Raises:
        InvalidInputError: It is neither.

    >>> text_of([{"role": "assistant", "content": [{"type": "text", "text": "Oslo"}]}])
    'Oslo'
    """
    if isinstance(completion, str):
        return completion
    message = completion[-1] if isinstance(completion, Sequence) and completion else completion
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(isinstance(part, Mapping) for part in content):
        return "".join(part.get("text") or "" for part in content)
    raise InvalidInputError(
        f"a completion came as {type(completion).__name__}: expected a text, or messages with role and content"
    )


def answer_in(completion: Any) -> str:
    """The answer in a completion: what stands behind thoughts, without calls for a search.

    >>> answer_in("<think>hm</think> <search>kite</search> Oslo ")
    'Oslo'
    """
    return _OPEN_CALL.sub("", text_of(completion).rpartition("</think>")[2]).strip()


def _paired(completions: Sequence[Any], answers: Sequence[Any]) -> list[tuple[str, list[str]]]:
    """Each answer that was given, with those that are accepted."""
    _check_length("answers", answers, completions)
    pairs = [(answer_in(said), answer_texts(accepted)) for said, accepted in zip(completions, answers, strict=True)]
    for place, (_, accepted) in enumerate(pairs):
        if not accepted:
            raise InvalidInputError(f"completion {place} has no accepted answer in the column `answers`")
    return pairs


def _check_length(name: str, column: Sequence[Any], completions: Sequence[Any]) -> None:
    if len(column) != len(completions):
        raise InvalidInputError(f"{name} has {len(column)} entries and there are {len(completions)} completions")


def _passage(passage: Any) -> Any:
    if isinstance(passage, str):
        return SimpleNamespace(id=None, text=passage, title="")
    if isinstance(passage, Mapping):
        return SimpleNamespace(id=passage.get("id"), text=passage.get("text"), title=passage.get("title"))
    return passage


__all__ = [
    "AbstentionReward",
    "FormatReward",
    "SearchCost",
    "answer_in",
    "citation_reward",
    "exact_match_reward",
    "text_of",
    "vqa_accuracy_reward",
]
