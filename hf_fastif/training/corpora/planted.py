"""Plant faults in a training set, and count how many of them influence scores reveal."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from hf_fastif.data import relabelled
from hf_fastif.errors import InfluenceError
from hf_fastif.results import InfluenceResult
from hf_fastif.training.corpora.nli import WRONG_LABEL_CONSTRUCTIONS


NOISES = ("uniform", "class")


def planted_share(result: InfluenceResult, train: Dataset) -> str:
    """Report how many of the most harmful training examples are planted wrong labels, in a sentence.

    Only errors on constructions with corrupted training labels count.

    Args:
        result ([`InfluenceResult`]): The influences on errors on the data of `generate_nli`.
        train (`datasets.Dataset`): Its training split.
    """
    caused = {row["query_index"] for row in result.queries if row["construction"] in WRONG_LABEL_CONSTRUCTIONS}
    harmful = [
        row["train_planted"]
        for row in result.influences
        if row["direction"] == "harmful" and row["query_index"] in caused
    ]
    num_planted = harmful.count("wrong_label")
    chance = list(train["planted"]).count("wrong_label") / len(train)
    return (
        f"{len(caused)} of the {len(result.queries)} errors are on constructions with corrupted training labels. "
        f"Of the training examples most harmful to them, {num_planted} of {len(harmful)} "
        f"({num_planted / max(len(harmful), 1):.0%}) are planted wrong labels; by chance it would be {chance:.1%}."
    )


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
