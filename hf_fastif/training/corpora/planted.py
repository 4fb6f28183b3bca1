"""Plant wrong labels in a training set."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from hf_fastif.data import relabelled
from hf_fastif.errors import InfluenceError


def plant_wrong_labels(train: Dataset, share: float, seed: int = 0) -> tuple[Dataset, np.ndarray]:
    """Replace the labels of random examples by a wrong one, drawn uniformly from the other classes.

    Args:
        train (`datasets.Dataset`): N examples with a `ClassLabel` column `label`.
        share (`float`): Share of the examples to change. At least one must change, and one must not.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.

    Returns:
        The dataset with the wrong labels, and a bool array `(N,)` that marks them.

    Raises:
        InfluenceError: If `share` changes no example, or all.
    """
    count, num_classes = round(share * len(train)), train.features["label"].num_classes
    if not 0 < count < len(train):
        raise InfluenceError(
            f"share={share}: that is {count} of {len(train)} examples; give a number between 0 and 1."
        )
    random, wrong = np.random.default_rng(seed), np.zeros(len(train), dtype=bool)
    wrong[random.choice(len(train), count, replace=False)] = True
    labels = np.asarray(train["label"])
    labels[wrong] = (labels[wrong] + random.integers(1, num_classes, count)) % num_classes
    return relabelled(train, labels), wrong
