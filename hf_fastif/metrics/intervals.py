"""Compute intervals of statistics over two random factors, such as queries and repeats."""

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
    """Compute the 95 % bootstrap interval of a statistic by resampling both the rows and the columns of a table.

    `scipy.stats.bootstrap` resamples along a single axis only.

    Args:
        statistic (`Callable`): Given the rows `(D, R)` and the columns `(D, C)` of D bootstrap samples, returns the
            statistic of each sample `(D,)`.
        shape (`tuple[int, int]`): The numbers of rows R and columns C of the table.
        num_draws (`int`, *optional*, defaults to 1000): D.
        seed (`int`, *optional*, defaults to 0): Seed of the bootstrap samples.

    Returns:
        `tuple[float, float]`: The ends of the interval; NaN if D is 0, or the table has one row and one column.

    Example:
        ```python
        def means(rows, columns):
            return losses[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2))


        low, high = two_way_interval(means, losses.shape)
        ```
    """
    if num_draws == 0 or shape == (1, 1):
        return np.nan, np.nan
    random = np.random.default_rng(seed)
    rows, columns = (random.integers(size, size=(num_draws, size)) for size in shape)
    low, high = np.quantile(statistic(rows, columns), [0.025, 0.975])
    return float(low), float(high)
