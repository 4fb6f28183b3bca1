"""Intervals of numbers that depend on two things drawn at random, such as queries and repeats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike


NUM_DRAWS = 1000


def two_way_interval(
    statistic: Callable[[np.ndarray, np.ndarray], ArrayLike],
    shape: tuple[int, int],
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """Compute the 95 % interval of a number from drawing the rows and the columns of a table anew.

    `scipy.stats.bootstrap` draws along a single axis.

    Args:
        statistic (`Callable`): Given the rows `(D, R)` and the columns `(D, C)` of D draws, returns the number of each
            draw `(D,)`.
        shape (`tuple[int, int]`): The size of the table, R and C.
        num_draws (`int`, *optional*, defaults to 1000): D.
        seed (`int`, *optional*, defaults to 0): Decides the draws.

    Returns:
        The ends of the interval; NaN without draws, or where there is one row and one column.
    """
    if num_draws == 0 or shape == (1, 1):
        return np.nan, np.nan
    random = np.random.default_rng(seed)
    rows, columns = (random.integers(size, size=(num_draws, size)) for size in shape)
    low, high = np.quantile(statistic(rows, columns), [0.025, 0.975])
    return float(low), float(high)
