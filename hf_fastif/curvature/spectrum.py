"""What the eigenvalues of the curvature say about the damping."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_fastif.errors import InfluenceError


AUTO_DAMPING = 0.01  # of the largest eigenvalue


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the curvature of a sample of the training set.

    Attributes:
        eigenvalues (`np.ndarray`): In descending order: all of the Gauss-Newton matrix that are not zero by
            construction, or the largest and the smallest.
        whole (`bool`): Whether it is all of them.
    """

    eigenvalues: np.ndarray
    whole: bool = True

    @property
    def largest(self) -> float:
        return float(self.eigenvalues[0])

    @property
    def smallest(self) -> float:
        """The most negative eigenvalue, 0 if there is none."""
        return min(float(self.eigenvalues[-1]), 0.0)

    def effective_dimension(self, damping: float) -> float:
        """sum_i e_i / (e_i + lambda): how many directions the curvature decides, and not the damping."""
        return float((self.eigenvalues / (self.eigenvalues + damping)).sum())

    def damping(self, wanted: float | str) -> float:
        """lambda: the wanted value if C + lambda I is then positive definite, or for "auto" one that makes it so.

        "auto" is 1 % of the largest eigenvalue. Between 0.3 % and 3 % of it the scores predict retraining about
        equally well; far above, s_test is hardly more than the plain gradient, and far below it chases directions in
        which the training set says nothing.

        Raises:
            ValueError: If C + lambda I would not be positive definite, or "auto" finds no curvature to go by.
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
