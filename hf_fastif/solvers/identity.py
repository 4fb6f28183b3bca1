"""Leave the curvature out, so that influence is the product of two gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hf_fastif.solvers.base import Solution
from hf_fastif.solvers.registry import NoSettings, register
from hf_fastif.solvers.setup import SolverSetup


@dataclass
class Identity:
    """Return x = v."""

    def solve(self, vectors: torch.Tensor) -> Solution:
        """Return the right-hand sides (Q, P) themselves; the residual is NaN."""
        return Solution.direct(vectors, vectors.new_full((len(vectors),), math.nan), damping=1.0)


def _build(setup: SolverSetup, settings: NoSettings) -> Identity:
    return Identity()


def _describe(setup: SolverSetup, settings: NoSettings) -> str:
    return "none (product of gradients)"


register(
    "identity",
    help="no curvature, so that influence is a product of gradients",
    build=_build,
    describe=_describe,
    uses_curvature=False,
)
