"""Amazon-WILDS (Koh et al., 2021): product reviews with one to five stars, and a shift to other reviewers.

The package `wilds` downloads a folder `amazon_v2.1`, which is read here as it is.
"""

from __future__ import annotations

import csv
from pathlib import Path

from datasets import Dataset

from hf_fastif.errors import InfluenceError


REVIEWS, SPLITS = "reviews.csv", Path("splits") / "user.csv"
NUMBERS = {"train": 0, "validation": 1, "id_validation": 2, "test": 3, "id_test": 4}  # in the file; -1 is left out


def is_wilds_amazon(folder: str) -> bool:
    """Whether a folder is one of Amazon-WILDS."""
    return (Path(folder) / REVIEWS).is_file() and (Path(folder) / SPLITS).is_file()


def load_wilds_amazon(folder: str, *splits: str) -> list[Dataset]:
    """Reads splits of Amazon-WILDS: columns `text`, `label` (stars - 1), `reviewer` and `category`.

    Args:
        folder (`str`): What `wilds` downloaded: `reviews.csv`, and `splits/user.csv` beside it.
        *splits (`str`): "train", "validation" and "test" (other reviewers than in training), "id_validation" and
            "id_test" (the same).

    Raises:
        ValueError: If there is no such split.
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
