"""Thresholds against enumeration, abstention and risk by hand and by law."""

from __future__ import annotations

import numpy as np
import pytest

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.metrics import (
    Threshold,
    abstention,
    accuracy_by_coverage,
    area_under_risk_coverage,
    best_threshold,
    withholding_threshold,
)


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_earns_more(seed):
    rng = np.random.default_rng(seed)
    scores, yes, no = rng.integers(0, 6, 30) / 6, rng.normal(size=30), rng.normal(size=30)
    found = best_threshold(scores, yes, no)

    def earned(threshold):
        return np.where(scores >= threshold, yes, no).mean()

    assert earned(found.value) == pytest.approx(found.utility)
    assert found.utility == pytest.approx(max(earned(cut) for cut in [*np.arange(-1, 14) / 12, np.inf]))


def test_always_and_never():
    assert best_threshold([0.1, 0.9], 1.0) == Threshold(-np.inf, 1.0)
    assert best_threshold([0.1, 0.9], -1.0) == Threshold(np.inf, 0.0)


def test_a_dearer_search_is_made_less_often():
    rng = np.random.default_rng(0)
    need = rng.random(300)
    without, with_evidence = rng.random(300) > need, np.ones(300)
    cuts = [best_threshold(need, with_evidence - cost, without).value for cost in (0.0, 0.3, 0.6, 1.0)]
    assert cuts[0] == -np.inf
    assert cuts == sorted(cuts)


def test_abstaining_from_nothing_and_from_all():
    right = np.array([True, False, False, True])
    everything = abstention(np.ones(4, bool), right)
    assert (everything.coverage, everything.accuracy, everything.precision, everything.recall) == (1, 0.5, None, 0)
    nothing = abstention(np.zeros(4, bool), right)
    assert (nothing.coverage, nothing.accuracy, nothing.precision, nothing.recall) == (0, None, 0.5, 1)


def test_risk_is_what_is_missing_of_the_accuracy():
    rng = np.random.default_rng(1)
    confidences, right = rng.integers(0, 9, 80) / 9, rng.random(80) < 0.6
    _, accuracy = accuracy_by_coverage(confidences, right)
    assert area_under_risk_coverage(confidences, right) == pytest.approx((1 - accuracy).mean())
    assert area_under_risk_coverage(right.astype(float), right) < area_under_risk_coverage(confidences, right)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_threshold([], []), "one question at least"),
        (lambda: best_threshold([0.1, 0.2], [1, 2, 3]), "must be one number each"),
        (lambda: best_threshold([float("nan")], [1]), "NaN"),
        (lambda: abstention([1, 0], [True, False]), "Expected bool arrays"),
        (lambda: abstention(np.zeros(0, bool), np.zeros(0, bool)), "no questions"),
        (lambda: area_under_risk_coverage([0.5], [1, 0]), "one shape"),
        (lambda: area_under_risk_coverage([], []), "no answers"),
    ],
)
def test_errors_say_what_came(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()


def test_as_much_is_withheld_as_a_share_of_wrong_answers_allows():
    rng = np.random.default_rng(0)
    sure = rng.random(400).round(2)
    right = rng.random(400) < sure
    for precision in (0.95, 0.8, 0.6):
        least = withholding_threshold(sure, right, precision)
        assert (~right[sure < least]).mean() >= precision
        for higher in np.unique(sure[sure >= least]):  # one level more would be too many
            assert (~right[sure <= higher]).mean() < precision
    assert withholding_threshold([0.2, 0.3], [True, True], 0.9) == 0.0
    assert withholding_threshold([0.2, 1.0], [False, False], 0.9) > 1.0
    for call in (([], [], 0.5), ([0.1], [True, True], 0.5), ([0.1], [True], 1.5)):
        with pytest.raises(InvalidInputError):
            withholding_threshold(*call)
