"""Eigenvalues of the curvature, and the damping that follows from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_fastif.errors import InfluenceError


AUTO_DAMPING = 0.003  # of the largest eigenvalue
RECOMMENDED_DAMPING = (0.001, 0.01)  # of the largest eigenvalue: there scores predict retraining about equally well


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the curvature on a sample of the training set.

    Attributes:
        eigenvalues (`np.ndarray`): In descending order: all eigenvalues of the Gauss-Newton matrix that are not zero
            by construction, or the largest and the smallest only.
        whole (`bool`): Whether these are all eigenvalues.
    """

    eigenvalues: np.ndarray
    whole: bool = True

    @property
    def largest(self) -> float:
        """Return the largest eigenvalue."""
        return float(self.eigenvalues[0])

    @property
    def smallest(self) -> float:
        """Return the most negative eigenvalue, 0 if there is none."""
        return min(float(self.eigenvalues[-1]), 0.0)

    def effective_dimension(self, damping: float) -> float:
        """Return sum_i e_i / (e_i + lambda), the number of directions that curvature dominates rather than damping."""
        return float((self.eigenvalues / (self.eigenvalues + damping)).sum())

    def damping(self, wanted: float | str) -> float:
        """Return lambda, such that C + lambda I is positive definite: the wanted value, or one derived for "auto".

        "auto" is 0.3 % of the largest eigenvalue. Within `RECOMMENDED_DAMPING`, the scores predict retraining about
        equally well. Far above, s_test is little more than the plain gradient. Far below, s_test follows directions
        that the training set does not determine.

        Args:
            wanted (`float` or `"auto"`): The value to check.

        Raises:
            InfluenceError: If C + lambda I would not be positive definite, or the curvature is zero and "auto" has no
                scale.
        """
        if wanted == "auto":
            wanted = max(AUTO_DAMPING * self.largest, -1.5 * self.smallest)
            if wanted <= 0:
                raise InfluenceError(
                    "damping='auto': the curvature of the training loss is zero, so there is no scale to take it "
                    "from; is the model trained to a loss of zero? Give damping as a number."
                )
        if wanted + self.smallest <= 0:
            raise InfluenceError(
                f"damping={wanted:.3g}: the Hessian has an eigenvalue of {self.smallest:.3g}, so C + damping I is not "
                f"positive definite; give damping above {-1.1 * self.smallest:.3g}, or curvature='gauss_newton'."
            )
        return wanted
