"""Solvers without steps: the gradient itself, and EK-FAC."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hf_fastif.curvature import CurvatureSample, KroneckerFactors
from hf_fastif.model import ParameterSpace
from hf_fastif.solvers.base import Solution


AT_ONCE = 16  # queries whose residuals are in memory, each of which takes several times the size of s_test


@dataclass
class Identity:
    """x = v: no curvature at all, so that influence is the product of two gradients."""

    def solve(self, vectors: torch.Tensor) -> Solution:
        """Answers with the right-hand sides (Q, P) themselves; there is no residual to speak of."""
        return Solution.direct(vectors, vectors.new_full((len(vectors),), math.nan), damping=1.0)


@dataclass
class Ekfac:
    """x = (C~ + lambda I)^-1 v with the Kronecker-factored C~: a few matrix products for each query.

    Attributes:
        factors (`KroneckerFactors`): C~.
        space (`ParameterSpace`): The trainable parameters.
        sample (`CurvatureSample`): For the residual, against the curvature that C~ stands for.
        damping (`Mapping[str, float]`): lambda of each parameter, by its name. The answer tells their mean.
    """

    factors: KroneckerFactors
    space: ParameterSpace
    sample: CurvatureSample
    damping: Mapping[str, float]

    def solve(self, vectors: torch.Tensor) -> Solution:
        """Solves for Q right-hand sides, shape (Q, P)."""
        x = self.factors.solve(self.space, vectors, self.damping)
        spread = self.space.join(
            [self.space.zeros(*p.shape) + self.damping[name] for name, p in self.space.parameters.items()]
        )
        parts = zip(vectors.split(AT_ONCE), x.split(AT_ONCE), strict=True)
        residual = torch.cat([self.sample.residual(*part, spread) for part in parts])
        return Solution.direct(x, residual, float(spread.double().mean()))
