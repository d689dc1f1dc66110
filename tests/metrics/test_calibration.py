"""Calibration, calibrators, intervals and the effect of evidence against loops over all pairs, laws, cases by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.metrics import (
    IsotonicCalibrator,
    TemperatureCalibrator,
    accuracy_by_coverage,
    auroc,
    bootstrap_interval,
    expected_calibration_error,
    fit_isotonic,
    fit_temperature,
    reader_given_retrieval,
    relevance_from_answers,
    reliability_bins,
    retrieval_effect,
)


def test_ece_is_zero_when_confidence_is_accuracy():
    correct = np.repeat([0, 1, 1, 1], 10)
    assert expected_calibration_error(np.full(40, 0.75), correct) == pytest.approx(0)
    assert expected_calibration_error(np.ones(40), correct) == pytest.approx(0.25)


def test_ece_is_the_weighted_gap_of_the_bins():
    rng = np.random.default_rng(0)
    certain, correct = rng.random(200), rng.random(200) < 0.5
    expected = 0.0
    for lower in range(15):
        inside = (certain > lower / 15) & (certain <= (lower + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(certain[inside].mean() - correct[inside].mean())
    assert expected_calibration_error(certain, correct) == pytest.approx(expected)


def test_the_ends_of_the_scale_have_a_bin():
    bins = reliability_bins([0.0, 1.0], [0, 1], num_bins=4)
    assert [bin.count for bin in bins] == [1, 0, 0, 1]


def test_auroc_counts_pairs():
    rng = np.random.default_rng(1)
    scores, positive = rng.integers(0, 5, 60) / 4, rng.random(60) < 0.4
    pairs = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc([0.5, 0.6], [True, True]))


def test_coverage_ends_at_the_accuracy_and_ignores_the_order_of_ties():
    certain, correct = np.array([0.5, 0.9, 0.5, 0.1]), np.array([1, 1, 0, 0])
    coverage, accuracy = accuracy_by_coverage(certain, correct)
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(accuracy, [1, 0.75, 2 / 3, 0.5])
    np.testing.assert_allclose(accuracy_by_coverage(certain[::-1], correct[::-1])[1], accuracy)


def test_bootstrap_agrees_with_the_normal_law_of_a_mean():
    values = np.random.default_rng(2).random(400) < 0.3
    interval = bootstrap_interval(values, num_resamples=4000)
    half = 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / 400)
    assert interval.lower == pytest.approx(values.mean() - half, abs=0.01)
    assert interval.upper == pytest.approx(values.mean() + half, abs=0.01)


def test_questions_of_one_cluster_count_as_one():
    values = np.repeat(np.random.default_rng(3).random(30) < 0.5, 10)
    clusters = np.repeat(np.arange(30), 10).tolist()
    apart, together = bootstrap_interval(values), bootstrap_interval(values, clusters)
    assert together.upper - together.lower > 2 * (apart.upper - apart.lower)
    assert apart.mean == together.mean
    each = bootstrap_interval(values, list(range(300)))
    assert (each.lower, each.upper) == (apart.lower, apart.upper)


def test_net_gain_is_the_difference_of_the_accuracies():
    rng = np.random.default_rng(4)
    before, after = rng.random(50) < 0.4, rng.random(50) < 0.6
    effect = retrieval_effect(before, after)
    assert effect.net_gain == pytest.approx(after.mean() - before.mean())
    assert effect.rescued_of_wrong == pytest.approx(after[~before].mean())
    assert effect.harmed_of_right == pytest.approx(1 - after[before].mean())
    assert retrieval_effect(np.ones(2, bool), np.ones(2, bool)).rescued_of_wrong is None
    assert sum(reader_given_retrieval(before, after).values()) == pytest.approx(1)


def test_answers_in_passages():
    passages = [["The Eiffel tower is 1,052 m.", "contract"], ["year 1889"]]
    np.testing.assert_array_equal(relevance_from_answers(passages, [["EIFFEL"], ["x"]]), [[1, 0], [0, 0]])
    np.testing.assert_array_equal(relevance_from_answers(passages, [["on", "act"], ["9"]]), [[0, 1], [1, 0]])
    np.testing.assert_array_equal(relevance_from_answers(passages, [["act"], ["9"]], match="word"), [[0, 0], [0, 0]])
    np.testing.assert_array_equal(
        relevance_from_answers(passages, [["1000"], ["1700"]], match="numeric"), [[1, 0], [0, 0]]
    )


def answers(number: int, temperature: float, seed: int = 0):
    """Confidences that are `temperature` times too bold, and what came of the answers."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.5, 1.5, number)
    right = rng.random(number) < 1 / (1 + np.exp(-logits))
    return 1 / (1 + np.exp(-temperature * logits)), right


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature):
    confidences, right = answers(20000, temperature)
    calibrate = fit_temperature(confidences, right)
    assert calibrate.temperature == pytest.approx(temperature, rel=0.05)
    assert expected_calibration_error(calibrate(confidences), right) < 0.015


def test_no_other_temperature_is_likelier():
    confidences, right = answers(50, 2.0, seed=1)

    def loss(temperature):
        p = TemperatureCalibrator(temperature)(confidences)
        return -np.log(np.where(right, p, 1 - p)).sum()

    best = loss(fit_temperature(confidences, right).temperature)
    assert all(best <= loss(np.exp(log)) + 1e-9 for log in np.linspace(-1, 4, 400))


def test_temperature_stays_finite_where_all_are_right():
    calibrate = fit_temperature([0.6, 0.7], [1, 1])
    assert np.isfinite(calibrate.temperature)
    assert (calibrate([0.6, 0.7]) > 0.9).all()


def test_isotonic_is_the_best_rising_curve():
    rng = np.random.default_rng(2)
    confidences, right = rng.random(7), rng.integers(0, 2, 7).astype(float)
    fitted = fit_isotonic(confidences, right)(confidences)
    right_in_order = right[confidences.argsort()]

    def cost(cuts):  # of the best curve that is level between the cuts
        means = [part.mean() for part in np.split(right_in_order, cuts)]
        rising = all(low <= high for low, high in zip(means, means[1:]))
        parts = np.split(right_in_order, cuts)
        return sum(((p - m) ** 2).sum() for p, m in zip(parts, means)) if rising else np.inf

    best = min(cost(list(cuts)) for number in range(7) for cuts in combinations(range(1, 7), number))
    assert ((fitted - right) ** 2).sum() == pytest.approx(best)


def test_isotonic_equals_scikit_learn():
    isotonic = pytest.importorskip("sklearn.isotonic")
    rng = np.random.default_rng(3)
    confidences, right = rng.integers(0, 40, 300) / 40, rng.random(300) < 0.4
    oracle = isotonic.IsotonicRegression(out_of_bounds="clip").fit(confidences, right)
    asked = np.linspace(0, 1, 201)
    np.testing.assert_allclose(fit_isotonic(confidences, right)(asked), oracle.predict(asked), atol=1e-12)


@pytest.mark.parametrize("fit", [fit_temperature, fit_isotonic])
def test_calibrators_keep_the_order(fit):
    confidences, right = answers(200, 2.0, seed=4)
    after = fit(confidences, right)(np.sort(confidences))
    assert (np.diff(after) >= 0).all()
    if fit is fit_temperature:
        assert auroc(fit(confidences, right)(confidences), right) == auroc(confidences, right)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expected_calibration_error([1.2], [1]), "in 0..1; a logit or NaN"),
        (lambda: expected_calibration_error([], []), "no questions"),
        (lambda: expected_calibration_error([0.5], [1, 0]), "one shape"),
        (lambda: auroc([0.5], [True, False]), "one shape"),
        (lambda: bootstrap_interval([]), "one value per question"),
        (lambda: bootstrap_interval([float("nan")]), "none of them NaN"),
        (lambda: bootstrap_interval([1, 0], ["a"]), "2 values came with 1 clusters"),
        (lambda: bootstrap_interval([1], level=95), "between 0 and 1"),
        (lambda: retrieval_effect([0.9], [True]), "Expected bool arrays"),
        (lambda: reader_given_retrieval([], []), "Expected bool arrays"),
        (lambda: relevance_from_answers([["a"]], [[""]]), "answers that are not empty"),
        (lambda: relevance_from_answers([["a"]], ["a"]), "answers holds 'a'"),
        (lambda: relevance_from_answers([["a"]], [["two"]], match="numeric"), "'two' is not a number"),
        (lambda: relevance_from_answers([["a"]], [["a"]], match="fuzzy"), "match='fuzzy'"),
        (lambda: fit_temperature([2.0], [1]), "a logit or NaN came"),
        (lambda: fit_temperature([], []), "not empty"),
        (lambda: fit_isotonic([0.5, 0.6], [1]), "one shape"),
        (lambda: fit_isotonic([0.5], [2]), "1 for right"),
        (lambda: TemperatureCalibrator(0.0), "positive"),
        (lambda: IsotonicCalibrator((0.1, 0.1), (0.2, 0.3)), "must rise"),
        (lambda: IsotonicCalibrator((), ()), "one at least"),
    ],
)
def test_errors_say_what_came(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
