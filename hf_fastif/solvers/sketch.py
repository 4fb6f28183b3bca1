"""Solve in the sketch of the index: exactly, along its directions, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_fastif.curvature import Sketch, left_out
from hf_fastif.model import ParameterSpace
from hf_fastif.solvers.base import Solution
from hf_fastif.solvers.registry import NoSettings, register
from hf_fastif.solvers.setup import SolverSetup


@dataclass
class InSketch:
    """Compute x = B (C_s + lambda I)^-1 B^T v, B being the directions of the sketch and C_s their curvature.

    Attributes:
        sketch ([`Sketch`]): The directions.
        space (`ParameterSpace`): The trainable parameters.
        damping (`float`): lambda.
    """

    sketch: Sketch
    space: ParameterSpace
    damping: float

    def solve(self, vectors: torch.Tensor) -> Solution:
        """Solve for Q right-hand sides, shape (Q, P)."""
        coordinates = self.sketch.of_vectors(self.space, vectors)
        solved = self.sketch.to_vectors(self.space, self.sketch.solve(coordinates, self.damping))
        return Solution.direct(
            solved, left_out(coordinates.square().sum(dim=1), vectors.square().sum(dim=1)), self.damping
        )


def _build(setup: SolverSetup, settings: NoSettings) -> InSketch:
    return InSketch(setup.sketch(), setup.objective.space, setup.damping)


def _describe(setup: SolverSetup, settings: NoSettings) -> str:
    sketch = setup.sketch()
    return f"exact inverse along {sketch.size:,} directions of the index ({sketch.entries.size:,} gradient entries)"


register(
    "sketch",
    help="exact inverse along the directions of the index, and the fastest by far",
    build=_build,
    describe=_describe,
    needs_gauss_newton=True,
)
