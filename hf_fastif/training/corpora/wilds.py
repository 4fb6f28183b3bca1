"""Read Amazon-WILDS (Koh et al., 2021): product reviews with one to five stars, and a shift to other reviewers.

The package `wilds` downloads it as a folder `amazon_v2.1`.
"""

from __future__ import annotations

import csv
from pathlib import Path

from datasets import Dataset

from hf_fastif.errors import InfluenceError


REVIEWS, SPLITS = "reviews.csv", Path("splits") / "user.csv"
NUMBERS = {
    "train": 0,
    "validation": 1,
    "id_validation": 2,
    "test": 3,
    "id_test": 4,
}  # codes in the file; rows with the code -1 are in no split


def is_wilds_amazon(folder: str) -> bool:
    """Return whether a folder holds Amazon-WILDS."""
    return (Path(folder) / REVIEWS).is_file() and (Path(folder) / SPLITS).is_file()


def load_wilds_amazon(folder: str, *splits: str) -> list[Dataset]:
    """Read splits of Amazon-WILDS, with the columns `text`, `label` (stars - 1), `reviewer` and `category`.

    Args:
        folder (`str`): The folder that `wilds` downloaded, with `reviews.csv` and `splits/user.csv`.
        *splits (`str`): "train"; "validation" and "test", with reviewers that are not in "train"; "id_validation"
            and "id_test", with the reviewers of "train".

    Raises:
        InfluenceError: If there is no such split.
    """
    import pandas as pd

    if unknown := set(splits) - set(NUMBERS):
        raise InfluenceError(f"split: Amazon-WILDS has {', '.join(NUMBERS)}, and not {', '.join(sorted(unknown))}.")
    names = {"reviewText": "text", "reviewerID": "reviewer", "category": "category", "overall": "label"}
    reviews = pd.read_csv(
        Path(folder) / REVIEWS, usecols=list(names), keep_default_na=False, na_values=[], quoting=csv.QUOTE_NONNUMERIC
    )
    reviews = reviews.rename(columns=names)
    reviews["label"] = reviews["label"].astype(int) - 1
    numbers = pd.read_csv(Path(folder) / SPLITS)["split"]
    return [Dataset.from_pandas(reviews[numbers == NUMBERS[name]], preserve_index=False) for name in splits]
