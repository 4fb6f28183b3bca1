"""Compute the exact damped inverse, for several dampings at once; the reference for all other solvers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_fastif.curvature import Curvature, CurvatureSample, GaussNewton, jacobian_gram
from hf_fastif.errors import InfluenceError
from hf_fastif.solvers.base import Solution
from hf_fastif.solvers.registry import NoSettings, register
from hf_fastif.solvers.setup import SolverSetup


MAX_PRIMAL = 4_000  # maximum number of parameters for decomposing the curvature itself
MAX_DUAL = 12_000  # rows of the Gram matrix; its eigenvectors take 1.2 GB


@dataclass(frozen=True)
class Decomposition:
    """Eigenvectors and eigenvalues in float64: of C itself, or of G G^T / N, which shares those of C = G^T G / N.

    Only the main process holds them.

    Attributes:
        primal (`bool`): Whether the eigenvectors are those of C.
        eigenvectors (`torch.Tensor` of shape `(n, n)`, *optional*): The eigenvectors, in columns.
        eigenvalues (`torch.Tensor` of shape `(n,)`, *optional*): Eigenvalues of C, in both cases.
    """

    primal: bool
    eigenvectors: torch.Tensor | None = None
    eigenvalues: torch.Tensor | None = None

    def inverse(self, vectors: torch.Tensor, dampings: Sequence[float]) -> torch.Tensor:
        """Return (M + lambda I)^-1 v for L dampings and Q vectors v (Q, n), shape (L, Q, n), M being decomposed."""
        rotated = vectors.double() @ self.eigenvectors
        return torch.stack([(rotated / (self.eigenvalues + d)) @ self.eigenvectors.T for d in dampings])


def decompose(curvature: Curvature, whole: CurvatureSample, show_progress: bool = False) -> Decomposition:
    """Decompose the curvature of the training set: directly for a tiny model, else through the Gram matrix.

    Args:
        curvature (`Curvature`): Gauss-Newton, or for a tiny model the Hessian.
        whole (`CurvatureSample`): The whole training set.
        show_progress (`bool`): Whether the main process shows a progress bar.

    Raises:
        InfluenceError: If the model has too many parameters and the training set too many examples.
    """
    objective = curvature.objective
    if objective.space.size <= MAX_PRIMAL:
        units = torch.eye(objective.space.size, dtype=objective.space.dtype, device=objective.space.device)
        matrix = torch.cat([whole.product(part) for part in units.split(64)]).double()
        return _decomposed((matrix + matrix.T) / 2, whole, primal=True)
    rows = whole.num_examples * objective.output_rank(whole.examples.take([0]))
    if not isinstance(curvature, GaussNewton) or rows > MAX_DUAL:
        raise InfluenceError(
            f"solver='exact': with {objective.space.size:,} parameters (more than {MAX_PRIMAL:,}) it needs "
            f"curvature='gauss_newton' and at most {MAX_DUAL:,} rows of Jacobians (here {rows:,}: independent outputs "
            "times training examples; inf if an example has many outputs, as in language models); use fewer training "
            "examples or another solver."
        )
    gram = jacobian_gram(curvature, whole.examples, whole.batches, whole.accelerator, show_progress)
    return _decomposed(gram.double() / whole.num_examples, whole, primal=False)


def _decomposed(matrix: torch.Tensor, whole: CurvatureSample, primal: bool) -> Decomposition:
    if not whole.accelerator.is_main_process:
        return Decomposition(primal)
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    return Decomposition(primal, eigenvectors, eigenvalues if primal else eigenvalues.clamp_min(0))


@dataclass
class Exact:
    """Compute x = (C + lambda I)^-1 v = (v - G^T (G G^T + N lambda I)^-1 G v) / lambda for the whole training set.

    All queries and all dampings share two passes over the training set.

    Attributes:
        decomposition (`Decomposition`): The result of `decompose`.
        whole (`CurvatureSample`): The whole training set.
        damping (`float`): lambda.
    """

    decomposition: Decomposition
    whole: CurvatureSample
    damping: float

    def solve(self, vectors: torch.Tensor) -> Solution:
        """Solve for Q right-hand sides, shape (Q, P)."""
        x = self.solve_all(vectors, [self.damping])[0]
        return Solution.direct(x, self.whole.residual(vectors, x, self.damping), self.damping)

    def solve_all(self, vectors: torch.Tensor, dampings: Sequence[float]) -> torch.Tensor:
        """Solve for L dampings and Q right-hand sides (Q, P); the result has shape (L, Q, P)."""
        if self.decomposition.primal:
            return self._inverse(vectors, dampings)
        along = self.whole.jacobian_product(vectors)
        inverses = self._inverse(along.flatten(1), dampings).unflatten(2, along.shape[1:])
        solutions = []
        for damping, inverse in zip(dampings, inverses, strict=True):
            removed = self.whole.jacobian_transpose_product(inverse / damping) / self.whole.num_examples
            solutions.append(vectors / damping - removed)
        return torch.stack(solutions)

    def _inverse(self, vectors: torch.Tensor, dampings: Sequence[float]) -> torch.Tensor:
        """Return the products (L, Q, n) of the inverses, which the main process computes, on every process."""
        products = vectors.new_zeros(len(dampings), *vectors.shape)
        if self.decomposition.eigenvectors is not None:
            products.copy_(self.decomposition.inverse(vectors, dampings))
        return self.whole.accelerator.reduce(products, "sum")


def _build(setup: SolverSetup, settings: NoSettings) -> Exact:
    whole, show = setup.draw_sample(len(setup.examples), setup.args.seed), not setup.args.disable_tqdm
    decomposition = setup.fit_once(("exact",), lambda: decompose(setup.curvature, whole, show))
    return Exact(decomposition, whole, setup.damping)


def _describe(setup: SolverSetup, settings: NoSettings) -> str:
    return f"exact inverse for {len(setup.examples):,} examples"


register("exact", help="the inverse itself, for a few thousand training examples", build=_build, describe=_describe)
