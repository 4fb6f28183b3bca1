"""A small problem whose exact answer is known, for the tests of all solvers."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import oracles
import torch
from tiny import accelerator, batches, tiny_data, tiny_model

from hf_fastif.curvature import CurvatureSample, GaussNewton, Hessian, KroneckerFactors, KroneckerFit
from hf_fastif.data.batches import ExampleBatches
from hf_fastif.model import Objective
from hf_fastif.solvers import DampedSystem


N = 12


def changed(solver: Any, **changes: Any) -> Any:
    """A solver with other fields, of its own, its system's or its settings', each by its name."""
    for part in ("system", "settings"):
        inner = getattr(solver, part)
        chosen = {f.name: changes.pop(f.name) for f in fields(inner) if f.name in changes}
        solver = replace(solver, **{part: replace(inner, **chosen)})
    return replace(solver, **changes)


def kronecker_factors(
    curvature: GaussNewton, examples: ExampleBatches, cuts: list[np.ndarray], seed: int = 0
) -> KroneckerFactors:
    """EK-FAC of some batches of rows, by both passes."""
    fit = KroneckerFit(curvature, examples, cuts, seed, accelerator())
    return fit.factors(fit.bases())


@dataclass
class Problem:
    """A training set, its exact curvature, and right-hand sides."""

    hessian: bool = False
    num_labels: int = 3
    architecture: str = "bert"
    size: int = N
    frozen: int | None = 2

    @cached_property
    def model(self):
        return tiny_model(self.architecture, double=True, frozen=self.frozen, num_labels=self.num_labels)

    @cached_property
    def examples(self) -> ExampleBatches:
        return batches(tiny_data(self.size, labels=self.num_labels))

    @cached_property
    def curvature(self) -> GaussNewton | Hessian:
        return (Hessian if self.hessian else GaussNewton)(Objective(self.model))

    @cached_property
    def matrix(self) -> torch.Tensor:
        return (oracles.hessian if self.hessian else oracles.gauss_newton)(self.model, self.examples)

    @cached_property
    def eigenvalues(self) -> torch.Tensor:
        return torch.linalg.eigvalsh(self.matrix)

    @cached_property
    def vectors(self) -> torch.Tensor:
        return oracles.loss_gradients(self.model, self.examples)[:3]

    @property
    def damping(self) -> float:
        """One that matters: a tenth of the largest eigenvalue, beyond what outweighs a negative one."""
        return float(0.1 * self.eigenvalues[-1] + 2 * (-self.eigenvalues[0]).clamp_min(0))

    @property
    def space(self):
        return self.curvature.objective.space

    @property
    def row_batches(self) -> list[np.ndarray]:
        return np.array_split(np.arange(self.size), 3)

    def sample(self, count: int | None = None, seed: int = 0) -> CurvatureSample:
        return CurvatureSample(self.curvature, self.examples, count or self.size, 5, seed, accelerator())

    @property
    def system(self) -> DampedSystem:
        return DampedSystem(
            self.curvature, self.examples, self.sample(), self.damping, accelerator(), show_progress=False
        )

    def exact(self, damping: float | None = None) -> torch.Tensor:
        damping = self.damping if damping is None else damping
        eye = torch.eye(len(self.matrix), dtype=self.matrix.dtype)
        return torch.linalg.solve(self.matrix + damping * eye, self.vectors.T).T
