"""Estimate the probability that a label is wrong, from what a model predicts and how often labels confuse classes.

A class k is recorded as the label y with a probability T[k, y] that is the same for all texts (class-conditional
noise). By Bayes' rule a text with the label y is of class k with a probability proportional to p(k | x) T[k, y]. The
confusions T are counted as in confident learning (Northcutt et al., 2021), which needs no clean examples and no
threshold to choose.
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

    An example counts as one of class k if the model is at least as sure of k as it is, on average, where the label is
    k. These averages allow for a model that prefers a class or is less sure of it. Of several such classes the most
    probable one counts. Examples without any do not count. The counts of each label are scaled to its frequency.

    Args:
        probabilities (`np.ndarray` of shape `(N, C)`): The labels that the model predicts.
        labels (`np.ndarray` of shape `(N,)`, int): The recorded labels.

    Returns:
        `np.ndarray` of shape `(C, C)`: T; rows sum to 1.
    """
    recorded = np.eye(probabilities.shape[1])[labels]
    frequencies = recorded.sum(axis=0)
    expected = (recorded * probabilities).sum(axis=0) / np.maximum(frequencies, 1)
    confident = (probabilities >= expected) & (frequencies > 0)
    classes, counted = np.where(confident, probabilities, -1).argmax(axis=1), confident.any(axis=1)
    counts = np.ones((len(frequencies), len(frequencies)))  # so that what was not seen is rare, but not impossible
    np.add.at(counts, (classes[counted], labels[counted]), 1)
    joint = counts / counts.sum(axis=0) * np.maximum(frequencies, 1)
    return joint / joint.sum(axis=1, keepdims=True)
