"""Search or not? Read this passage? Give this answer? A few named numbers become one probability.

`head(features)` takes a dictionary of tensors of one shape. `UncertaintyRule` needs no training; `DecisionHead` is
fitted on what retrieval did for answers that are known (`hf_ravlm.training.fit_decision_head`).

| decision | features of | one number per | yes means |
|---|---|---|---|
| gate | the closed-book draft (`DRAFT_FEATURES`) | question | search |
| critic | a passage among its rivals (`PASSAGE_FEATURES`) | question and passage, `(B, K)` | read it |
| confidence | the answer and what it was read from (`ANSWER_FEATURES`) | question | give it |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn


# How sure the reader was while it wrote: geometric mean and minimum of the probabilities of its tokens, in 0..1; their
# mean entropy as a share of the highest possible; the lead of the likeliest token over the second, mean and at first.
TOKEN_FEATURES = ("mean_probability", "min_probability", "entropy", "margin", "first_margin")
# These, and whether the text is one of the policy's `no_answers`: readers may be very sure that they do not know.
DRAFT_FEATURES = (*TOKEN_FEATURES, "says_nothing")
# The passage's cosine; how far it is below the best and above the last one; how many of the others share a rare word
# with it, in 0..1, and that as a share of the most that any passage reaches.
PASSAGE_FEATURES = ("score", "below_best", "above_last", "agreement", "relative_agreement")
# Of the passages that were read: the best cosine, what the critic said of the first and at most, the agreement of the
# first. Of all that were found: by how much the last one's cosine is lower than the best, and the second's (which fact
# it is), the widest step between neighbours (which thing it is about), and the share that was kept.
# Whether the answer stands in a passage that was read, and the share of the kept passages in which it stands.
EVIDENCE_FEATURES = (
    *("best_score", "first_critic", "best_critic", "first_agreement"),
    *("score_drop", "score_lead", "widest_step", "share_kept"),
)
ANSWER_FEATURES = (*DRAFT_FEATURES, *EVIDENCE_FEATURES, "is_quoted", "share_quoting")

UNCERTAINTY_RULES = ("max_probability", "entropy", "margin")


class UncertaintyRule(nn.Module):
    """How unsure the reader was of its closed-book draft: 0 for certain, 1 for clueless.

    Args:
        rule (`str`): `"max_probability"` is one minus the geometric mean of the token probabilities, `"entropy"` their
            mean entropy as a share of the highest possible, `"margin"` one minus the mean lead over the second token.

    Raises:
        ValueError: There is no such rule.

    Example:

    ```python
    >>> gate = UncertaintyRule("max_probability")
    >>> gate({"mean_probability": torch.tensor([0.75, 0.25])})
    tensor([0.2500, 0.7500])

    ```
    """

    def __init__(self, rule: str = "max_probability"):
        super().__init__()
        if rule not in UNCERTAINTY_RULES:
            raise ValueError(f"rule={rule!r}: expected one of {', '.join(UNCERTAINTY_RULES)}")
        self.rule = rule

    @property
    def features(self) -> tuple[str, ...]:
        return ("mean_probability",) if self.rule == "max_probability" else (self.rule,)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The uncertainty, in 0..1, of the shape of the features."""
        value = stack_features(features, self.features)[..., 0]
        return value if self.rule == "entropy" else 1 - value

    def extra_repr(self) -> str:
        return self.rule


class DecisionHead(nn.Module):
    """A probability from named features, each brought to mean 0 and deviation 1 first.

    Args:
        features (`Sequence[str]`): Their names, in order.
        hidden_dim (`int`, *optional*, defaults to 0): Width of the hidden layer; 0 is a logistic regression.

    Raises:
        ValueError: There are no features, one is named twice, or the width is negative.

    Example: a new head says 0.5 to everything.

    ```python
    >>> DecisionHead(("score", "agreement"))({"score": torch.tensor([0.9]), "agreement": torch.tensor([0.1])})
    tensor([0.5000], grad_fn=<SigmoidBackward0>)

    ```
    """

    def __init__(self, features: Sequence[str], hidden_dim: int = 0):
        super().__init__()
        if not features or len(set(features)) < len(features):
            raise ValueError(f"features={tuple(features)}: expected at least one name, and none of them twice")
        if hidden_dim < 0:
            raise ValueError(f"hidden_dim={hidden_dim}: expected 0 (no hidden layer) or a width")
        self.features, self.hidden_dim = tuple(features), hidden_dim
        self.register_buffer("center", torch.zeros(len(features)))
        self.register_buffer("scale", torch.ones(len(features)))
        self.hidden = nn.Linear(len(features), hidden_dim) if hidden_dim else None
        self.out = nn.Linear(hidden_dim or len(features), 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def logits(self, values: torch.Tensor) -> torch.Tensor:
        """`(..., number of features)` to `(...)`."""
        states = (values - self.center) / self.scale
        if self.hidden is not None:
            states = torch.tanh(self.hidden(states))
        return self.out(states).squeeze(-1)

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The probability of yes, of the shape of the features."""
        return self.logits(stack_features(features, self.features)).sigmoid()

    def extra_repr(self) -> str:
        return f"features={self.features}, hidden_dim={self.hidden_dim}"


def stack_features(features: Mapping[str, torch.Tensor], names: Sequence[str]) -> torch.Tensor:
    """The named features side by side, `(..., number of names)`.

    Raises:
        ValueError: One is missing, or not finite.
    """
    if missing := [name for name in names if name not in features]:
        raise ValueError(f"the features {', '.join(missing)} are missing; there are {', '.join(features) or 'none'}")
    values = torch.stack([features[name].float() for name in names], dim=-1)
    if not values.isfinite().all():
        raise ValueError(f"one of the features {', '.join(names)} is NaN or infinite")
    return values
