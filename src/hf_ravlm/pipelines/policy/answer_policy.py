"""When to search, which passages to read, and when to say nothing: gate, critic and abstention.

One `AnswerPolicy` goes with one system of model and knowledge base. It is made by hand, of rules that need no
training, or fitted on questions whose answers are known (`hf_ravlm.training.fit_answer_policy`).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...errors import InvalidInputError, UnsafeInputError
from ...metrics.answers import NO_ANSWERS, check_no_answers, is_no_answer
from ...metrics.calibration import Calibrator, IsotonicCalibrator, TemperatureCalibrator
from ...numbers_given import check_between, check_whole
from ...saving.commit import Destination, commit_files
from ...saving.folders import files_in, load_checked, written_whole
from ...saving.safe_paths import at_home
from ..answer import Answer, Decision
from .decision_heads import ANSWER_FEATURES, DRAFT_FEATURES, PASSAGE_FEATURES, DecisionHead, UncertaintyRule
from .features import evidence_features, passage_features


if TYPE_CHECKING:
    from ...retrieval import Evidence

SETTINGS_FILE = "answer_policy.json"
NUMBERS_FILE = "answer_policy.safetensors"
_FORMAT = 1
_MOST_READINGS = 100  # of a question, which a policy from anywhere may ask for
_ABOVE_ALL = 1.1  # of thresholds of probabilities: JSON has no infinity
_HEADS = {"gate": DRAFT_FEATURES, "critic": PASSAGE_FEATURES, "confidence": ANSWER_FEATURES}
_CALIBRATORS: dict[str, Any] = {"temperature": TemperatureCalibrator, "isotonic": IsotonicCalibrator}
_NUMBERS = (
    "gate_threshold",
    "similarity_floor",
    "critic_threshold",
    "answer_threshold",
    "num_candidates",
    "num_readings",
)


@dataclass
class SiftedEvidence:
    """The passages found for one question, judged.

    Args:
        kept, dropped (`list[Evidence]`): in the order in which they were found.
        beliefs (`list[float]`): what the critic said of each passage that was found; 1 without a critic.
        features (`dict[str, float]`): `EVIDENCE_FEATURES`.
    """

    kept: list[Evidence]
    dropped: list[Evidence]
    beliefs: list[float]
    features: dict[str, float]


@dataclass
class AnswerPolicy:
    """When to search, what to read, when to abstain. The default does none of it: it reads what is found and answers.

    Args:
        gate ([`UncertaintyRule`] or [`DecisionHead`], *optional*):
            Says from the closed-book draft whether a search helps. Below `gate_threshold` the draft is the answer; one
            that says that there is none (`no_answers`) always needs a search. `None` always searches, and writes no
            draft.
        num_candidates (`int`, *optional*):
            How many passages are found and judged; the reader gets the best `k` of those that are kept. `None` for as
            many as may be read, and never fewer. More candidates let the critic replace what it drops, and see more of
            what passages agree on.
        similarity_floor (`float`, *optional*): Passages whose cosine is lower are dropped.
        critic ([`DecisionHead`], *optional*): Passages for which it says less than `critic_threshold` are dropped.
            Where nothing is left, the answer is closed-book.
        confidence ([`DecisionHead`], *optional*): The probability that an answer is right; `None` takes the geometric
            mean of its tokens' probabilities, which often is too high.
        calibrator (*optional*): Of `fit_temperature` or `fit_isotonic`, applied to the confidence.
        answer_threshold (`float`): Answers whose confidence is lower are withheld, and those that say that there is
            none (`no_answers`); 0 withholds none.
        num_readings (`int`): How often the reader may read. Where it finds no answer in the best `k` passages that
            are kept, it reads the next `k`, and so on. 1 reads once, 100 is the most.
        no_answers (`list[str]`): What the reader says then, as `hf_ravlm.metrics.is_no_answer` compares.
        common_words (`dict[str, float]`): Of `word_shares`: words that many passages have.

    Example: search where the draft is unsure, read nothing unlike the question, and say nothing below even odds.

    ```python
    >>> policy = AnswerPolicy(gate=UncertaintyRule("margin"), similarity_floor=0.3, answer_threshold=0.5)
    >>> policy.needs_search({"margin": torch.tensor([0.75, 0.25, 0.9]), "says_nothing": torch.tensor([0.0, 0.0, 1.0])})
    [0.25, 0.75, 1.0]

    ```
    """

    gate: UncertaintyRule | DecisionHead | None = None
    gate_threshold: float = 0.5
    num_candidates: int | None = None
    similarity_floor: float | None = None
    critic: DecisionHead | None = None
    critic_threshold: float = 0.5
    confidence: DecisionHead | None = None
    calibrator: Calibrator | None = None
    answer_threshold: float = 0.0
    num_readings: int = 1
    no_answers: Sequence[str] = NO_ANSWERS
    common_words: Mapping[str, float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.num_candidates is not None:
            check_whole("num_candidates", self.num_candidates, lowest=1, meaning=", or None")
        check_whole("num_readings", self.num_readings, lowest=1)
        check_between("num_readings", self.num_readings, 1, _MOST_READINGS)
        self.no_answers = check_no_answers(self.no_answers)
        for name in ("gate_threshold", "critic_threshold", "answer_threshold"):
            check_between(name, getattr(self, name), 0, _ABOVE_ALL)
        if self.similarity_floor is not None:
            check_between("similarity_floor", self.similarity_floor, -1, 1)
        if not isinstance(self.common_words, Mapping):
            raise InvalidInputError(
                f"common_words={self.common_words!r:.60}: expected words with shares, as of word_shares"
            )
        for role, known in _HEADS.items():
            head, kinds = getattr(self, role), (UncertaintyRule, DecisionHead) if role == "gate" else (DecisionHead,)
            if head is not None and not isinstance(head, kinds):
                expected = " or ".join(kind.__name__ for kind in kinds)
                raise InvalidInputError(f"{role}= came as {type(head).__name__}: expected {expected}, or None")
            if head is not None and (unknown := sorted(set(head.features) - set(known))):
                raise InvalidInputError(
                    f"The {role} asks for the features {', '.join(unknown)}, which are not computed for it. There are "
                    f"{', '.join(known)}."
                )

    @torch.no_grad()
    def needs_search(self, draft: Mapping[str, torch.Tensor]) -> list[float]:
        """The probability that a search helps, per question, by `DRAFT_FEATURES`, each `(B,)`.

        It is 1 where a draft says nothing.

        Raises:
            InvalidInputError: There is no gate.
        """
        if self.gate is None:
            raise InvalidInputError("This policy has no gate: it always searches.")
        return torch.where(draft["says_nothing"] > 0, 1.0, self.gate(draft)).tolist()

    @torch.no_grad()
    def sift(self, found: Sequence[Evidence]) -> SiftedEvidence:
        """Judges the passages that were found for one question."""
        features = passage_features(found, self.common_words)
        beliefs = [1.0] * len(found) if self.critic is None else self.critic(features).tolist()
        floor = -1.0 if self.similarity_floor is None else self.similarity_floor
        judged = zip(found, beliefs, strict=True)
        kept = [
            place
            for place, (passage, belief) in enumerate(judged)
            if passage.score >= floor and (self.critic is None or belief >= self.critic_threshold)
        ]
        dropped = [passage for place, passage in enumerate(found) if place not in kept]
        about = evidence_features(features, beliefs, kept)
        return SiftedEvidence([found[place] for place in kept], dropped, beliefs, about)

    @torch.no_grad()
    def judge(self, answer_features: Mapping[str, torch.Tensor]) -> list[float]:
        """The calibrated probability that each answer is right, by `ANSWER_FEATURES`, each `(B,)`."""
        raw = answer_features["mean_probability"] if self.confidence is None else self.confidence(answer_features)
        values = raw.double().clamp(0, 1).numpy()
        return (values if self.calibrator is None else self.calibrator(values)).tolist()

    def decide(
        self, answer: Answer, sifted: SiftedEvidence | None, need: float | None, confidence: float, readings: int
    ) -> None:
        """Writes the decision to an answer.

        Withholds it if the confidence (of `judge`) is too low, or if it says that there is no answer.

        `sifted` is `None` if nothing was searched, `need` (of `needs_search`) without a gate; `readings` counts.
        """
        dropped = sifted.dropped if sifted else []
        answer.decision = Decision(sifted is not None, need, dropped, confidence, readings=readings)
        says_nothing = self.answer_threshold > 0 and is_no_answer(answer.text, self.no_answers)
        if confidence < self.answer_threshold or says_nothing:
            answer.decision.abstained, answer.decision.withheld, answer.text = True, answer.text, ""
            answer.citations = None if answer.citations is None else []

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes `answer_policy.json` and `answer_policy.safetensors` to a folder, that of the model for one."""
        from safetensors.torch import save

        settings, numbers = self._contents()
        text = json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True)
        with written_whole(Path(at_home(save_directory)).absolute(), "policy") as folder:
            (folder / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")
            (folder / NUMBERS_FILE).write_bytes(save(numbers))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
    ) -> Any:
        """Publishes the two files in one commit, to the repository of the model for one; returns its `CommitInfo`."""
        destination = Destination(repo_id, "Upload answer policy", private=private, token=token, revision=revision)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return commit_files(files_in(folder), destination)

    @property
    def fingerprint(self) -> str:
        """Of all settings and numbers: two policies that decide alike have the same."""
        settings, numbers = self._contents()
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in sorted(numbers.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.tolist()}".encode())
        return digest.hexdigest()[:16]

    def _contents(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        settings: dict[str, Any] = {"format": _FORMAT, **{name: getattr(self, name) for name in _NUMBERS}}
        settings |= {**dict.fromkeys((*_HEADS, "calibrator")), "common_words": dict(self.common_words)}
        settings["no_answers"] = list(self.no_answers)
        numbers: dict[str, torch.Tensor] = {}
        for role in _HEADS:
            if (head := getattr(self, role)) is not None:
                names = ("rule",) if isinstance(head, UncertaintyRule) else ("features", "hidden_dim")
                settings[role] = {name: getattr(head, name) for name in names}
                numbers |= {f"{role}.{name}": tensor.contiguous() for name, tensor in head.state_dict().items()}
        if self.calibrator is not None:
            settings["calibrator"] = next(name for name, kind in _CALIBRATORS.items() if kind is type(self.calibrator))
            for name, value in vars(self.calibrator).items():
                numbers[f"calibrator.{name}"] = torch.tensor(value, dtype=torch.float64)
        return settings, numbers

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **hub_kwargs: Any) -> AnswerPolicy:
        """Reads what `save_pretrained` wrote, from a folder or a repository on the Hub (`revision`, `token`, ...).

        Raises:
            InvalidInputError: There is no policy, or it cannot be read.
        """
        from huggingface_hub.errors import HFValidationError
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        source = at_home(source)
        try:
            found = load_checked(source, ("policy",), hub_kwargs, lambda _: find_policy_files(source, **hub_kwargs))
        except UnsafeInputError as error:
            raise InvalidInputError(f"{source} holds a policy that cannot be read: {error}") from error
        except OSError as error:
            if not isinstance(error.__cause__, HFValidationError):
                raise
            raise InvalidInputError(f"{source}: there is no such folder, and this is no name on the Hub.") from error
        settings_file, numbers_file = found or (None, None)
        if settings_file is None:
            raise InvalidInputError(
                f"{source}: there is no {SETTINGS_FILE}; `AnswerPolicy.save_pretrained` writes it."
            )
        try:
            settings = json.loads(Path(settings_file).read_text(encoding="utf-8"))
            if not isinstance(settings, dict):
                raise ValueError(f"it is a {type(settings).__name__} and no object")
            parts: defaultdict[str, dict[str, torch.Tensor]] = defaultdict(dict)
            for name, tensor in load_file(numbers_file).items():
                role, _, name = name.partition(".")
                parts[role][name] = tensor
            if settings.pop("format") != _FORMAT:
                raise ValueError(f"of another format than {_FORMAT}")
            for role in _HEADS:
                if (described := settings[role]) is not None:
                    head = settings[role] = (UncertaintyRule if "rule" in described else DecisionHead)(**described)
                    head.load_state_dict(parts[role])
                    head.eval()
            if (kind := settings["calibrator"]) is not None:
                points = parts["calibrator"].items()
                values = {name: tuple(tensor.tolist()) if tensor.ndim else tensor.item() for name, tensor in points}
                settings["calibrator"] = _CALIBRATORS[kind](**values)
            return cls(**settings)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise InvalidInputError(
                f"{settings_file} and {NUMBERS_FILE} beside it are not a policy that can be read: {reason}"
            ) from error


def find_policy_files(source: str | os.PathLike[str] | None, **hub_kwargs: Any) -> tuple[str, str] | None:
    """The two files of a policy in a folder, or in a repository on the Hub; `None` if there is none."""
    from transformers.utils import cached_file

    if not source:
        return None
    if os.path.isdir(source):
        paths = [os.path.join(source, name) for name in (SETTINGS_FILE, NUMBERS_FILE)]
        return (paths[0], paths[1]) if os.path.isfile(paths[0]) else None
    missing_is_none = {f"_raise_exceptions_for_{case}": False for case in ("missing_entries", "gated_repo")}
    settings = cached_file(str(source), SETTINGS_FILE, **missing_is_none, **hub_kwargs)
    return None if settings is None else (settings, cached_file(str(source), NUMBERS_FILE, **hub_kwargs))
