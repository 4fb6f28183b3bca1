"""Estimate the probability that a label is wrong, from what a model predicts and how often labels confuse classes.

A class k is recorded as the label y with a probability T[k, y] that is the same for all texts (class-conditional
noise). By Bayes' rule a text with the label y is of class k with a probability proportional to p(k | x) T[k, y]. T is
counted on the examples that the model is sure of, which is the idea of confident learning (Northcutt et al., 2021) and
needs neither clean examples nor a threshold to choose.
"""

from __future__ import annotations

import numpy as np


SMALLEST = 1e-12  # probability: below it, a model's opinion is rounding


def class_posterior(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the probability of each class, given what the model predicts and which label was recorded.

    A label is wrong with the probability of all other classes.

    Args:
        probabilities (`np.ndarray` of shape `(N, C)`): The labels that the model predicts. A mean over several moments
            of training is steadier than a single one.
        labels (`np.ndarray` of shape `(N,)`, int): The recorded labels.

    Returns:
        `np.ndarray` of shape `(N, C)`: Rows that sum to 1.
    """
    predicted = np.maximum(probabilities, SMALLEST)
    noise = label_noise(predicted, labels)
    # A model of wrong labels predicts wrong labels too. Its prediction of a class is therefore the mean of Bayes' rule
    # over the labels that it predicts.
    classes = predicted * ((predicted / (predicted @ noise)) @ noise.T)
    joint = classes * noise[:, labels].T
    return joint / joint.sum(axis=1, keepdims=True)


def label_noise(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Estimate the probability T[k, y] that an example of class k is recorded with the label y.

    It is the fraction with the label y among the examples that the model is sure are of class k: surer than it is on
    average where it predicts k. Fractions of few examples are uncertain, so those of wrong labels are drawn towards
    their mean (see `shrunken_rates`).

    Args:
        probabilities (`np.ndarray` of shape `(N, C)`): The labels that the model predicts.
        labels (`np.ndarray` of shape `(N,)`, int): The recorded labels.

    Returns:
        `np.ndarray` of shape `(C, C)`: T; rows sum to 1.
    """
    num_classes, predicted, certainty = probabilities.shape[1], probabilities.argmax(axis=1), probabilities.max(axis=1)
    counts, wrong = np.zeros((num_classes, num_classes)), ~np.eye(num_classes, dtype=bool)
    for k in np.unique(predicted):
        sure = (predicted == k) & (certainty >= certainty[predicted == k].mean())
        counts[k] = np.bincount(labels[sure], minlength=num_classes)
    totals = counts.sum(axis=1)
    noise = np.diag(np.maximum(counts.diagonal(), 1) / np.maximum(totals, 1))
    noise[wrong] = shrunken_rates(counts[wrong], np.repeat(totals, num_classes - 1))
    return noise / noise.sum(axis=1, keepdims=True)


def shrunken_rates(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Estimate rates from counts by empirical Bayes: the mean of a gamma posterior (Poisson-gamma shrinkage).

    If the rates differ no more than counts of one rate do by chance, all are equal to their mean. The more they
    differ, the less they are drawn towards it.

    Args:
        counts (`np.ndarray` of shape `(n,)`): How often something happened.
        totals (`np.ndarray` of shape `(n,)`): Out of how many times.

    Returns:
        `np.ndarray` of shape `(n,)`: Rates, all above 0.
    """
    mean = (counts.sum() + 1) / (totals.sum() + 1)  # above 0, since what was not seen may happen
    expected = totals * mean
    chi_squared = ((counts - expected) ** 2 / np.maximum(expected, SMALLEST)).sum()
    excess = chi_squared - (len(counts) - 1)
    if excess <= 0:
        return np.full(len(counts), mean)
    prior = totals.sum() / excess  # times that the prior counts for
    return (counts + prior * mean) / (totals + prior)
