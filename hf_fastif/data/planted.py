"""How many of the planted faults the influence scores found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasets import Dataset

from hf_fastif.data.nli import WRONG_LABEL_CONSTRUCTIONS


if TYPE_CHECKING:
    from hf_fastif.results import InfluenceResult


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
