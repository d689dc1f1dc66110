"""Decisions from features: rules by their formulas, heads by their laws."""

from __future__ import annotations

import pytest
import torch

from hf_ravlm.pipelines.policy.decision_heads import DecisionHead, UncertaintyRule


@pytest.mark.parametrize(("rule", "sure"), [("max_probability", 0.9), ("entropy", 0.2), ("margin", 0.7)])
def test_rules_rise_with_the_doubt(rule, sure):
    features = {name: torch.tensor([sure, 0.5]) for name in ("mean_probability", "entropy", "margin")}
    doubt = UncertaintyRule(rule)(features)
    assert doubt[0] == pytest.approx(sure if rule == "entropy" else 1 - sure)
    assert doubt[0] < doubt[1]


@pytest.mark.parametrize("hidden_dim", [0, 4])
def test_a_head_reads_features_by_name_and_row_by_row(hidden_dim):
    torch.manual_seed(0)
    head = DecisionHead(("a", "b"), hidden_dim)
    torch.nn.init.normal_(head.out.weight)
    a, b = torch.randn(3, 2), torch.randn(3, 2)
    whole = head({"b": b, "unused": a, "a": a})
    assert whole.shape == (3, 2)
    assert ((whole > 0) & (whole < 1)).all()
    torch.testing.assert_close(whole[1:2], head({"a": a[1:2], "b": b[1:2]}))
    assert not torch.equal(whole, head({"a": b, "b": a}))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UncertaintyRule("guess"), "expected one of max_probability, entropy, margin"),
        (lambda: DecisionHead(()), "at least one name"),
        (lambda: DecisionHead(("a", "a")), "none of them twice"),
        (lambda: DecisionHead(("a",), -1), "hidden_dim=-1"),
        (lambda: DecisionHead(("a", "b"))({"a": torch.zeros(1)}), "the features b are missing; there are a"),
        (lambda: DecisionHead(("a",))({"a": torch.tensor([float("nan")])}), "NaN or infinite"),
    ],
)
def test_errors_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
