"""Grade how well scores rank the candidates of a query, by the residual of its s_test."""

from __future__ import annotations

import math


GOOD, ROUGH, POOR = "good", "rough", "poor"
# Residuals up to which rankings are good (a rank correlation of about .95 with exact scores) or rough (about .8).
SOLVED = (0.15, 0.3)  # of iterative solvers: what is missing in directions that they have not reached yet
INDEXED = (0.75, 0.9)  # of an index: what it leaves out, which is spread over many directions of little curvature


def limits_of(by_index: bool) -> tuple[float, float]:
    """Return the residuals up to which rankings are good, and rough.

    Args:
        by_index (`bool`): Whether the scores come from an index.
    """
    return INDEXED if by_index else SOLVED


def grade_of(residual: float, by_index: bool) -> str | None:
    """Return the grade of a ranking, or None if the residual is unknown.

    Args:
        residual (`float`): The residual of s_test; see [`Solution`].
        by_index (`bool`): Whether the scores come from an index.

    Example:
        ```python
        grade_of(0.1, by_index=False)  # "good"
        ```
    """
    if math.isnan(residual):
        return None
    good, rough = limits_of(by_index)
    return GOOD if residual <= good else ROUGH if residual <= rough else POOR
