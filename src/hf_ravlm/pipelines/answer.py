"""An answer with its evidence, and what a policy decided about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .citations import Citation, check_citations


if TYPE_CHECKING:
    from ..retrieval import Evidence

_FIELDS = "id text image score rank source licence url revision title metadata".split()


@dataclass
class Answer:
    """One answer and what it rests on.

    Args:
        text (`str`): the generated words.
        evidence (`list[Evidence]`): the passages that the reader read, best first.
        unread (`list[Evidence]`):
            those that were found and did not come into its prompt: they had no room or no words, or were duplicates.
        posterior (`list[float]`):
            `p(passage | question, answer)` of each passage that was read, sums to 1; empty without evidence.
        leave_one_out (`list[float]`):
            by how much the answer's log-probability, in nats, falls without each passage, where it was asked for.
        decision (`Decision`, *optional*): what a policy decided, if there was one.
        thinking (`str`, *optional*): what the reader thought before it answered, if it did.
        citations (`list[Citation]`, *optional*): the numbers in the text, each checked, where `cite` asked for them.
        found (`list[Evidence]`): what was found, read or not, best first.
        error (`str`, *optional*): why there is no answer, where an input that cannot be used was passed over.
        logprobs (`list[float]`, *optional*):
            log-probability, in nats, of each token, where a reader behind a server was asked for it.
        usage (`dict`, *optional*): `prompt_tokens`, `completion_tokens` and `total_tokens`, where it says so.
    """

    text: str
    evidence: list[Evidence] = field(default_factory=list)
    posterior: list[float] = field(default_factory=list)
    leave_one_out: list[float] = field(default_factory=list)
    decision: Decision | None = None
    unread: list[Evidence] = field(default_factory=list)
    thinking: str | None = None
    citations: list[Citation] | None = None
    found: list[Evidence] = field(default_factory=list, repr=False)
    error: str | None = None
    logprobs: list[float] | None = None
    usage: dict[str, int] | None = None

    def __post_init__(self):
        self.found = self.found or [*self.evidence, *self.unread]

    def to_record(self) -> dict[str, Any]:
        """As a pipeline returns it: plain dictionaries, with the fields of the decision if there is one."""
        record = {
            "generated_text": self.text,
            "evidence": list(map(passage_record, self.evidence)),
            "scores": [passage.score for passage in self.evidence],
            "posterior": self.posterior,
            "leave_one_out": self.leave_one_out,
            "unread": list(map(passage_record, self.unread)),
        }
        for name in ("thinking", "citations", "error", "logprobs"):
            if (value := getattr(self, name)) is not None:
                record[name] = value
        if self.decision is not None:
            record |= {**vars(self.decision), "dropped": list(map(passage_record, self.decision.dropped))}
        return record


def parted(found: Sequence[Sequence[Any]], kept: Sequence[Sequence[bool]]) -> tuple[list[list[Any]], list[list[Any]]]:
    """Of each question the passages that are read, and those that are not.

    >>> parted([["a", "b"]], [[True, False]])
    ([['a']], [['b']])
    """
    pairs = [list(zip(*row, strict=True)) for row in zip(found, kept, strict=True)]
    read = [[one for one, was_read in row if was_read] for row in pairs]
    return read, [[one for one, was_read in row if not was_read] for row in pairs]


def answer_of(
    text: str, thinking: str | None, found: Sequence[Any], kept: Sequence[bool], cited: str | None = None
) -> Answer:
    """An answer with what was read of what was found, and its citations checked where it was asked to cite.

    Args:
        kept: Of each passage whether it was read.
        cited: The question, where citations were asked for.
    """
    (read,), (unread,) = parted([found], [kept])
    answer = Answer(text, read, unread=unread, thinking=thinking, found=list(found))
    if cited is not None:
        answer.citations = check_citations(text, read, cited)
    return answer


def passage_record(passage: Evidence) -> dict[str, Any]:
    """A passage as a pipeline returns it."""
    return {name: getattr(passage, name, None) for name in _FIELDS}  # one that was not searched for has no score


@dataclass
class Decision:
    """What a policy decided about one answer.

    Args:
        retrieved (`bool`): whether passages were searched for.
        need (`float`, *optional*): the probability that a search helps, by the gate; `None` without a gate.
        dropped (`list[Evidence]`): the passages that were found and not kept.
        confidence (`float`, *optional*): the probability that the answer is right, calibrated if the policy is.
        abstained (`bool`): whether the answer was withheld; its text is then empty.
        withheld (`str`, *optional*): the answer that was withheld.
        readings (`int`): how often the reader read passages for it; what was read last is its evidence.
    """

    retrieved: bool
    need: float | None = None
    dropped: list[Evidence] = field(default_factory=list)
    confidence: float | None = None
    abstained: bool = False
    withheld: str | None = None
    readings: int = 0
