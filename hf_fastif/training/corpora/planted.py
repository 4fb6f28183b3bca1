"""Faults that are planted in a training set, and how many of them the influence scores found."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from hf_fastif.data import relabelled
from hf_fastif.errors import InfluenceError
from hf_fastif.results import InfluenceResult
from hf_fastif.training.corpora.nli import WRONG_LABEL_CONSTRUCTIONS


def planted_share(result: InfluenceResult, train: Dataset) -> str:
    """Says how many planted wrong labels stand among the most harmful examples of the errors that they cause.

    Errors that they cause are those on constructions whose training labels were made wrong.

    Args:
        result ([`InfluenceResult`]): Of errors on the embedded data set.
        train (`datasets.Dataset`): Its training split.
    """
    caused = {row["query_index"] for row in result.queries if row["construction"] in WRONG_LABEL_CONSTRUCTIONS}
    harmful = [
        row["train_planted"]
        for row in result.influences
        if row["direction"] == "harmful" and row["query_index"] in caused
    ]
    found = harmful.count("wrong_label")
    chance = list(train["planted"]).count("wrong_label") / len(train)
    return (
        f"{len(caused)} of the {len(result.queries)} errors are on constructions whose training labels were made "
        "wrong. "
        f"Among their most harmful training examples {found} of {len(harmful)} ({found / max(len(harmful), 1):.0%}) "
        "are "
        f"planted wrong labels; by chance it would be {chance:.1%}."
    )


def plant_wrong_labels(train: Dataset, share: float, seed: int = 0) -> tuple[Dataset, np.ndarray]:
    """Gives random examples another label, any of the others being as likely.

    Args:
        train (`datasets.Dataset`): With a `ClassLabel` column `label`.
        share (`float`): Of the examples, at least one and not all.
        seed (`int`, *optional*, defaults to 0): Decides which, and what they become.

    Returns:
        The dataset with its labels made wrong, and which are, bool (N,).

    Raises:
        ValueError: If the share leaves nothing to find.
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
