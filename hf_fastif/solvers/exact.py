"""The exact damped inverse, for every damping at once; the reference for all other solvers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_fastif.curvature import Curvature, CurvatureSample, GaussNewton, jacobian_gram
from hf_fastif.solvers.base import Solution


MAX_PRIMAL = 4_000  # parameters up to which the curvature itself is decomposed
MAX_DUAL = 12_000  # rows of the Gram matrix; its eigenvectors take 1.2 GB


@dataclass(frozen=True)
class Decomposition:
    """Eigenvectors and eigenvalues in float64: of C itself, or of G G^T / N, which shares those of C = G^T G / N.

    Attributes:
        primal (`bool`): Whether they are those of C.
        eigenvectors (`torch.Tensor` of shape `(n, n)`): In columns.
        eigenvalues (`torch.Tensor` of shape `(n,)`): Of C, in both cases.
    """

    primal: bool
    eigenvectors: torch.Tensor
    eigenvalues: torch.Tensor


def decompose(curvature: Curvature, whole: CurvatureSample, show_progress: bool = False) -> Decomposition:
    """Decomposes the curvature of the training set: as it is for a tiny model, through the Gram matrix for others.

    Args:
        curvature (`Curvature`): Gauss-Newton, or for tiny models the Hessian too.
        whole (`CurvatureSample`): All of the training set.
        show_progress (`bool`): Whether the main process shows a bar.

    Raises:
        ValueError: If the model has too many parameters and the training set too many examples.
    """
    objective = curvature.objective
    if objective.space.size <= MAX_PRIMAL:
        parameter = next(iter(objective.theta.values()))
        units = torch.eye(objective.space.size, dtype=parameter.dtype, device=parameter.device)
        matrix = torch.cat([whole.product(part) for part in units.split(64)]).double()
        eigenvalues, eigenvectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        return Decomposition(True, eigenvectors, eigenvalues)
    rows = whole.num_examples * objective.output_rank(whole.examples.take([0])["labels"])
    if not isinstance(curvature, GaussNewton) or rows > MAX_DUAL:
        raise ValueError(
            f"solver='exact': with {objective.space.size:,} parameters (more than {MAX_PRIMAL:,}) it needs "
            f"curvature='gauss_newton' and at most {MAX_DUAL:,} rows of Jacobians (here {rows:,}, outputs that matter "
            "times training examples); take fewer training examples, or another solver."
        )
    gram = jacobian_gram(curvature, whole.examples, whole.batches, whole.accelerator, show_progress)
    eigenvalues, eigenvectors = torch.linalg.eigh(gram.double() / whole.num_examples)
    return Decomposition(False, eigenvectors, eigenvalues.clamp_min(0))


@dataclass
class Exact:
    """x = (C + lambda I)^-1 v = (v - G^T (G G^T + N lambda I)^-1 G v) / lambda, C over the whole training set.

    A query then costs two passes over the training set, which all queries and all dampings share.

    Attributes:
        decomposition (`Decomposition`): What `decompose` found.
        whole (`CurvatureSample`): All of the training set.
        damping (`float`): lambda.
    """

    decomposition: Decomposition
    whole: CurvatureSample
    damping: float

    def solve(self, vectors: torch.Tensor) -> Solution:
        """Solves for Q right-hand sides, shape (Q, P)."""
        x = self.solve_all(vectors, [self.damping])[0]
        return Solution.direct(x, self.whole.residual(vectors, x, self.damping), self.damping)

    def solve_all(self, vectors: torch.Tensor, dampings: Sequence[float]) -> torch.Tensor:
        """Solves for L dampings and Q right-hand sides (Q, P); the answer has shape (L, Q, P)."""
        u, eigenvalues = self.decomposition.eigenvectors, self.decomposition.eigenvalues
        if self.decomposition.primal:
            rotated = vectors.double() @ u
            return torch.stack([(rotated / (eigenvalues + d)) @ u.T for d in dampings]).to(vectors.dtype)
        along = self.whole.jacobian_product(vectors)
        rotated = along.flatten(1).double() @ u
        coefficients = torch.cat([(rotated / (eigenvalues + d)) @ u.T / d for d in dampings]).to(vectors.dtype)
        parts = coefficients.unflatten(1, along.shape[1:]).split(len(vectors))
        removed = [self.whole.jacobian_transpose_product(part) / self.whole.num_examples for part in parts]
        return torch.stack([vectors / d - part for d, part in zip(dampings, removed, strict=True)])
