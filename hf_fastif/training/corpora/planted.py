"""Plant wrong labels in a training set."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from hf_fastif.data import relabelled
from hf_fastif.errors import InfluenceError


NOISES = ("uniform", "class")


def plant_wrong_labels(
    train: Dataset, share: float, seed: int = 0, noise: str = "uniform"
) -> tuple[Dataset, np.ndarray]:
    """Replace the labels of random examples by wrong ones.

    Args:
        train (`datasets.Dataset`): N examples with a `ClassLabel` column `label`.
        share (`float`): Share of the examples to change. At least one must change, and one must not.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.
        noise (`str`, *optional*, defaults to `"uniform"`): "uniform" makes every class wrong equally often, and takes
            the wrong label from all others. "class" mistakes a class for the next one only, and that the more often
            the higher its number; the first class is never mistaken.

    Returns:
        The dataset with the wrong labels, and a bool array `(N,)` that marks them.

    Raises:
        InfluenceError: If `share` changes no example, or all, or `noise` is neither of the two.
    """
    count, num_classes = round(share * len(train)), train.features["label"].num_classes
    if not 0 < count < len(train):
        raise InfluenceError(
            f"share={share}: that is {count} of {len(train)} examples; give a number between 0 and 1."
        )
    if noise not in NOISES:
        raise InfluenceError(f"noise={noise!r}: give one of {', '.join(NOISES)}.")
    random, labels = np.random.default_rng(seed), np.asarray(train["label"])
    chances = labels / labels.sum() if noise == "class" else None
    if chances is not None and count > (chances > 0).sum():
        raise InfluenceError(
            f"share={share}: that is {count} examples, and {(chances > 0).sum()} are not of the first class, which "
            "noise='class' leaves alone; give a smaller share."
        )
    wrong = np.zeros(len(train), dtype=bool)
    wrong[random.choice(len(train), count, replace=False, p=chances)] = True
    steps = 1 if noise == "class" else random.integers(1, num_classes, count)
    labels[wrong] = (labels[wrong] + steps) % num_classes
    return relabelled(train, labels), wrong
