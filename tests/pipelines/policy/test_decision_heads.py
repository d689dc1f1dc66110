"""Decisions from features: rules by their formulas, heads by their laws."""

from __future__ import annotations

import pytest
import torch

from hf_ravlm.pipelines.policy.decision_heads import PASSAGE_FEATURES, DecisionHead, UncertaintyRule, rival_features


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


def test_an_absent_passage_changes_no_other():
    scores, agreement = torch.tensor([[0.9, 0.7, 5.0]]), torch.tensor([[0.2, 0.1, 0.6]])
    masked = rival_features(scores, agreement, torch.tensor([[True, True, False]]))
    alone = rival_features(scores[:, :2], agreement[:, :2], torch.ones(1, 2, dtype=torch.bool))
    for name in PASSAGE_FEATURES:
        torch.testing.assert_close(masked[name][:, :2], alone[name])
        assert masked[name][0, 2] == 0
    assert alone["above_last"].tolist() == [pytest.approx([0.2, 0.0])]
    assert alone["relative_agreement"].tolist() == [[1.0, 0.5]]
    empty = rival_features(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool))
    assert {empty[name].shape for name in PASSAGE_FEATURES} == {(2, 0)}
    nobody = rival_features(scores, agreement, torch.zeros(1, 3, dtype=torch.bool))
    assert all(nobody[name].tolist() == [[0, 0, 0]] for name in PASSAGE_FEATURES)


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
