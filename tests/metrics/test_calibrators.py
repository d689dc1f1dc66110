"""Calibrators against scikit-learn, brute force and known truths."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.metrics import (
    IsotonicCalibrator,
    TemperatureCalibrator,
    auroc,
    expected_calibration_error,
    fit_isotonic,
    fit_temperature,
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
