"""Solve by conjugate gradient (Hestenes and Stiefel, 1952) on a fixed sample of the training set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from accelerate.utils import tqdm

from hf_fastif.curvature import CurvatureSample
from hf_fastif.settings import check_at_least_one, setting
from hf_fastif.solvers.base import Callback, DivergenceError, Precondition, Solution
from hf_fastif.solvers.registry import register
from hf_fastif.solvers.setup import SolverSetup
from hf_fastif.solvers.system import DampedSystem


TOLERANCE = 0.01  # unless `solver_tolerance` is set


@dataclass(frozen=True)
class CgSettings:
    """Settings of conjugate gradient."""

    samples: int = setting(1024, "Training examples whose mean curvature CG solves for.")
    steps: int = setting(30, "Maximum number of CG steps.")

    def __post_init__(self):
        check_at_least_one(cg_samples=self.samples, cg_steps=self.steps)


@dataclass
class ConjugateGradient:
    """Solve (C_S + lambda I) x = v for the curvature C_S of one sample S of the training set, in few steps.

    Each step takes one product with C_S for every unfinished query, all in the same passes. The solution differs from
    that for the whole training set by the sampling error, which more steps cannot reduce. The residual is therefore
    measured on another sample.

    Attributes:
        system (`DampedSystem`): The system; its sample gives the residual of the solution.
        matrix (`CurvatureSample`): C_S, from another sample than the residual.
        settings (`CgSettings`): How many steps are taken.
        tolerance (`float`): A query is done when its residual on S has fallen to this.
        precondition (`Callable`, *optional*): An approximate inverse of C + lambda I, such as EK-FAC's.
        callback (`Callable`, *optional*): Called after each step with its number and the present solutions (Q, P).
    """

    system: DampedSystem
    matrix: CurvatureSample
    settings: CgSettings
    tolerance: float = TOLERANCE
    precondition: Precondition | None = None
    callback: Callback | None = None

    def solve(self, vectors: torch.Tensor) -> Solution:
        """Solve for Q right-hand sides, shape (Q, P).

        Raises:
            DivergenceError: If C_S + lambda I is not positive definite.
        """
        damping, norm = self.system.damping, vectors.norm(dim=1).clamp_min(torch.finfo(vectors.dtype).tiny)
        x, residuals = torch.zeros_like(vectors), vectors.clone()
        directions = self._preconditioned(residuals)
        sizes = (residuals * directions).sum(dim=1)
        trace: list[torch.Tensor] = []
        for _ in tqdm(range(self.settings.steps), desc="CG", disable=not self.system.show_progress, leave=False):
            trace.append(residuals.norm(dim=1) / norm)
            left = (trace[-1] > self.tolerance).nonzero().squeeze(1)
            if not len(left):
                trace.pop()
                break
            p = directions[left]
            image = self.matrix.product(p) + damping * p
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
            residual=self.system.residual(vectors, x),
            std_err=torch.full_like(norm, math.nan),
            damping=damping,
            steps=len(trace),
            trace=torch.stack(trace) if trace else vectors.new_zeros(0, len(vectors)),
        )

    def _preconditioned(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors.clone() if self.precondition is None else self.precondition(vectors)

    def _check_definite(self, curvature: torch.Tensor, directions: torch.Tensor) -> None:
        if (curvature <= 0).any():
            damping = self.system.damping
            worst = float((curvature / directions.square().sum(dim=1)).min()) - damping
            raise DivergenceError(
                f"damping={damping:.3g}: the curvature of the sample falls to {worst:.3g} along some direction, "
                f"so that C + damping I is not positive definite; give damping above {-1.1 * worst:.3g}, or "
                "curvature='gauss_newton'."
            )


def _build(setup: SolverSetup, settings: CgSettings) -> ConjugateGradient:
    tolerance = setup.args.solver_tolerance
    return ConjugateGradient(
        system=setup.system,
        matrix=setup.draw_sample(settings.samples, setup.args.seed + 1),  # not the sample that gives the residual
        settings=settings,
        tolerance=TOLERANCE if tolerance is None else tolerance,
        precondition=setup.preconditioner(),
    )


def _describe(setup: SolverSetup, settings: CgSettings) -> str:
    return f"conjugate gradient on {setup.at_most(settings.samples):,} examples{setup.preconditioned_by}"


register(
    "cg",
    help="conjugate gradient on a sample",
    settings=CgSettings,
    build=_build,
    describe=_describe,
    takes_preconditioner=True,
)
