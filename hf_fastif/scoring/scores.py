"""Scores of one query, their sign, and the strongest of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


SIGN = (
    "A positive influence is harmful: giving the training example more weight raises the loss of the query. "
    "A negative one is helpful: more weight lowers the loss."
)
DIRECTIONS = ("helpful", "harmful")


@dataclass(frozen=True)
class QueryScores:
    """What was computed for one query.

    Attributes:
        rows (`np.ndarray` of shape `(k,)`): The candidates that were scored.
        scores (`np.ndarray` of shape `(k,)`): Their influence.
        quality (`dict`): `residual`, `std_err`, `damping` and `scale` of its s_test.
        tokens (`dict`, *optional*): By the rows of the strongest candidates the influence (T,) of their tokens.
    """

    rows: np.ndarray
    scores: np.ndarray
    quality: dict[str, float]
    tokens: Mapping[int, np.ndarray] | None = None


def strongest(rows: np.ndarray, scores: np.ndarray, count: int | None) -> dict[str, np.ndarray]:
    """The places of the `count` strongest scores (k,) of some rows (k,) in each direction (None: of all)."""
    found = {}
    for direction, chosen in zip(DIRECTIONS, (scores < 0, scores > 0), strict=True):
        places = np.flatnonzero(chosen)
        found[direction] = places[np.lexsort((rows[places], -np.abs(scores[places])))][:count]  # ties: smaller first
    return found
