"""Wrong labels by Bayes' rule: against loops, and against draws from a noise that is known."""

from __future__ import annotations

import numpy as np
import pytest

from hf_fastif.diagnosis.label_noise import class_posterior, label_noise, shrunken_rates


def drawn(size: int, noise: np.ndarray, seed: int = 0, scale: float = 2.0):
    """Classes, recorded labels, and what a calibrated model of the labels predicts."""
    random, count = np.random.default_rng(seed), len(noise)
    logits = random.normal(0, scale, (size, count))
    of_classes = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    classes = np.array([random.choice(count, p=row) for row in of_classes])
    labels = np.array([random.choice(count, p=noise[k]) for k in classes])
    return classes, labels, of_classes @ noise, of_classes


NOISE = np.array([[0.95, 0.05, 0.0], [0.0, 0.7, 0.3], [0.1, 0.1, 0.8]])


def test_posterior_is_bayes_rule_by_loops():
    _, labels, predicted, _ = drawn(30, NOISE)
    noise = label_noise(predicted, labels)
    for row, (p, y) in enumerate(zip(predicted, labels, strict=True)):
        rule = np.zeros((3, 3))  # by label: the probability of each class
        for label in range(3):
            for k in range(3):
                rule[label, k] = p[k] * noise[k, label] / sum(p[j] * noise[j, label] for j in range(3))
        belief = [sum(p[label] * rule[label, k] for label in range(3)) for k in range(3)]
        expected = [belief[k] * noise[k, y] / sum(belief[j] * noise[j, y] for j in range(3)) for k in range(3)]
        np.testing.assert_allclose(class_posterior(predicted, labels)[row], expected)


def test_noise_is_counted_where_the_model_is_sure():
    _, labels, predicted, _ = drawn(4_000, NOISE, seed=1)
    expected = np.zeros((3, 3))
    for k in range(3):
        as_k = [row for row in range(4_000) if predicted[row].argmax() == k]
        mean = np.mean([predicted[row, k] for row in as_k])
        sure = [row for row in as_k if predicted[row, k] >= mean]
        expected[k] = [np.mean([labels[row] == y for row in sure]) for y in range(3)]
    np.testing.assert_allclose(label_noise(predicted, labels), expected, atol=0.01)  # many examples: little shrinkage


def test_equal_rates_are_pooled_and_different_ones_kept():
    random, totals = np.random.default_rng(0), np.full(20, 200)
    counts = random.binomial(totals, 0.05)
    pooled = shrunken_rates(counts, totals)
    assert np.ptp(pooled) < 0.3 * np.ptp(counts / totals) and pooled.mean() == pytest.approx(0.05, abs=0.01)
    rates = np.linspace(0.01, 0.4, 20)
    counts = random.binomial(totals, rates)
    np.testing.assert_allclose(shrunken_rates(counts, totals), counts / totals, atol=0.02)
    assert (shrunken_rates(np.zeros(6), totals[:6]) > 0).all()


def test_rates_are_the_gamma_posterior_mean():
    counts, totals = np.array([0.0, 30.0, 3.0, 90.0]), np.array([50.0, 100.0, 80.0, 300.0])
    mean = 124 / 531
    excess = sum((x - n * mean) ** 2 / (n * mean) for x, n in zip(counts, totals, strict=True)) - 3
    shape, rate = mean * 530 / excess, 530 / excess
    expected = [(shape + x) / (rate + n) for x, n in zip(counts, totals, strict=True)]
    np.testing.assert_allclose(shrunken_rates(counts, totals), expected)


def test_noise_of_separable_classes_is_recovered():
    _, labels, predicted, _ = drawn(20_000, NOISE, scale=12.0)
    np.testing.assert_allclose(label_noise(predicted, labels), NOISE, atol=0.06)


def test_suspicion_ranks_like_the_best_and_is_cautious():
    classes, labels, predicted, of_classes = drawn(20_000, NOISE, scale=6.0)
    rows = np.arange(len(labels))
    suspicion = 1 - class_posterior(predicted, labels)[rows, labels]
    joint = of_classes * NOISE[:, labels].T  # with the classes and the noise that the draws were made with
    best = 1 - (joint / joint.sum(axis=1, keepdims=True))[rows, labels]
    assert np.corrcoef(suspicion, best)[0, 1] > 0.95
    for low in np.arange(0, 1, 0.25):
        chosen = (suspicion >= low) & (suspicion < low + 0.25)
        assert (classes != labels)[chosen].mean() > suspicion[chosen].mean() - 0.05


@pytest.mark.filterwarnings("error")
def test_extreme_predictions_and_absent_classes_give_probabilities():
    predicted = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    posterior = class_posterior(predicted, np.array([0, 1, 1, 0]))  # no label is 2
    np.testing.assert_allclose(posterior.sum(axis=1), 1)
    assert posterior[2, 0] > 0.9
    assert (class_posterior(np.full((5, 2), 0.5), np.array([0, 0, 1, 1, 1])).min(axis=1) >= 0).all()
