"""Solve with EK-FAC: Kronecker factors in place of the curvature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hf_fastif.curvature import CurvatureSample, KroneckerFactors
from hf_fastif.model import ParameterSpace
from hf_fastif.solvers.base import Solution
from hf_fastif.solvers.registry import NoSettings, register
from hf_fastif.solvers.setup import SolverSetup


TINY = torch.finfo(torch.float32).tiny
AT_ONCE = 16  # queries per residual computation, which takes several times the memory of their s_test


@dataclass
class Ekfac:
    """Compute x = (C~ + lambda I)^-1 v with the Kronecker-factored C~, in a few matrix products per query.

    With a separate, small lambda for each layer, x is far too long: it follows directions in which C~ understates the
    curvature. It then keeps its direction, and its length minimizes the quadratic form that (C + lambda I)^-1 v
    minimizes with the lambda of all other solvers, so that scores are of the same size.

    Attributes:
        factors (`KroneckerFactors`): C~.
        space (`ParameterSpace`): The trainable parameters.
        sample (`CurvatureSample`): Sample for the residual, which is measured with C itself.
        damping (`Mapping[str, float]`): lambda of each parameter, by name. The solution reports their mean.
        common_damping (`float`, *optional*): The lambda of other solvers, to fit the length of x to C + lambda I.
    """

    factors: KroneckerFactors
    space: ParameterSpace
    sample: CurvatureSample
    damping: Mapping[str, float]
    common_damping: float | None = None

    def solve(self, vectors: torch.Tensor) -> Solution:
        """Solve for Q right-hand sides, shape (Q, P)."""
        x = self.factors.solve(self.space, vectors, self.damping)
        spread = self.space.join(
            [self.space.zeros(*p.shape) + self.damping[name] for name, p in self.space.parameters.items()]
        )
        if self.common_damping is not None:
            for v, part in zip(vectors.split(AT_ONCE), x.split(AT_ONCE), strict=True):
                curved = self.sample.product(part) + self.common_damping * part
                part *= ((v * part).sum(dim=1) / (curved * part).sum(dim=1).clamp_min(TINY))[:, None]
        parts = zip(vectors.split(AT_ONCE), x.split(AT_ONCE), strict=True)
        residual = torch.cat([self.sample.residual(*part, spread) for part in parts])
        return Solution.direct(x, residual, float(spread.double().mean()))


def _build(setup: SolverSetup, settings: NoSettings) -> Ekfac:
    common = setup.damping if setup.damps_by_layer else None
    return Ekfac(setup.factors(), setup.objective.space, setup.sample, setup.ekfac_damping, common)


def _describe(setup: SolverSetup, settings: NoSettings) -> str:
    by_layer = ", each layer damped by a tenth of its mean eigenvalue" if setup.damps_by_layer else ""
    return f"EK-FAC fitted to {setup.at_most(setup.args.ekfac_samples):,} examples{by_layer}"


register(
    "ekfac",
    help="Kronecker factors, fitted once and then a few matrix products per query",
    build=_build,
    describe=_describe,
    needs_gauss_newton=True,
    damps_by_layer=True,
)
