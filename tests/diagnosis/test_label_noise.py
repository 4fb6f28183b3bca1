"""Wrong labels by Bayes' rule: against loops, and against draws from a noise that is known."""

from __future__ import annotations

import numpy as np
import pytest

from hf_fastif.diagnosis.label_noise import class_posterior, label_noise


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


def test_noise_is_counted_as_in_confident_learning():
    _, labels, predicted, _ = drawn(200, NOISE, seed=1)
    means = [predicted[labels == k, k].mean() for k in range(3)]
    counts = np.ones((3, 3))
    for p, y in zip(predicted, labels, strict=True):
        sure = [k for k in range(3) if p[k] >= means[k]]
        if sure:
            counts[max(sure, key=lambda k: p[k]), y] += 1
    for y in range(3):
        counts[:, y] *= (labels == y).sum() / counts[:, y].sum()
    np.testing.assert_allclose(label_noise(predicted, labels), counts / counts.sum(axis=1, keepdims=True))


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
