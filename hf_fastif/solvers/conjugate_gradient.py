"""Conjugate gradient (Hestenes and Stiefel, 1952) on a fixed sample of the training set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from accelerate.utils import tqdm

from hf_fastif.curvature import CurvatureSample
from hf_fastif.solvers.base import Callback, DivergenceError, Precondition, Solution


@dataclass
class ConjugateGradient:
    """Solves (C_S + lambda I) x = v for the curvature C_S of one sample S of the training set, in few steps.

    Each step takes one product with C_S for every query that is not done, all in the same passes. The answer differs
    from that for the whole training set by the error of the sample, which no further step can remove: the residual is
    therefore taken on another sample.

    Attributes:
        matrix (`CurvatureSample`): C_S.
        sample (`CurvatureSample`): Another sample, for the residual.
        damping (`float`): lambda.
        max_steps (`int`): Steps at most.
        tolerance (`float`): A query is done when its residual on S has fallen to this.
        precondition (`Callable`, *optional*): An approximate inverse of C + lambda I; EK-FAC's.
        show_progress (`bool`): Whether the main process shows a bar.
        callback (`Callable`, *optional*): Called after each step with its number and the present solutions (Q, P).
    """

    matrix: CurvatureSample
    sample: CurvatureSample
    damping: float
    max_steps: int
    tolerance: float
    precondition: Precondition | None = None
    show_progress: bool = True
    callback: Callback | None = None

    def solve(self, vectors: torch.Tensor) -> Solution:
        """Solves for Q right-hand sides, shape (Q, P).

        Raises:
            DivergenceError: If C_S + lambda I is not positive definite.
        """
        norm = vectors.norm(dim=1).clamp_min(torch.finfo(vectors.dtype).tiny)
        x, residuals = torch.zeros_like(vectors), vectors.clone()
        directions = self._preconditioned(residuals)
        sizes = (residuals * directions).sum(dim=1)
        trace: list[torch.Tensor] = []
        for _ in tqdm(range(self.max_steps), desc="CG", disable=not self.show_progress, leave=False):
            trace.append(residuals.norm(dim=1) / norm)
            left = (trace[-1] > self.tolerance).nonzero().squeeze(1)
            if not len(left):
                trace.pop()
                break
            p = directions[left]
            image = self.matrix.product(p) + self.damping * p
            curvature = (p * image).sum(dim=1)
            self._check_definite(curvature, p)
            step = (sizes[left] / curvature)[:, None]
            x[left] += step * p
            residuals[left] -= step * image
            z = self._preconditioned(residuals[left])
            new_sizes = (residuals[left] * z).sum(dim=1)
            directions[left] = z + (new_sizes / sizes[left])[:, None] * p
            sizes[left] = new_sizes
            if self.callback is not None:
                self.callback(len(trace), x)
        return Solution(
            vectors=x,
            residual=self.sample.residual(vectors, x, self.damping),
            std_err=torch.full_like(norm, math.nan),
            damping=self.damping,
            steps=len(trace),
            trace=torch.stack(trace) if trace else vectors.new_zeros(0, len(vectors)),
        )

    def _preconditioned(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors.clone() if self.precondition is None else self.precondition(vectors)

    def _check_definite(self, curvature: torch.Tensor, directions: torch.Tensor) -> None:
        if (curvature <= 0).any():
            worst = float((curvature / directions.square().sum(dim=1)).min()) - self.damping
            raise DivergenceError(
                f"damping={self.damping:.3g}: the curvature of the sample falls to {worst:.3g} along some direction, "
                f"so that C + damping I is not positive definite; give damping above {-1.1 * worst:.3g}, or "
                "curvature='gauss_newton'."
            )
