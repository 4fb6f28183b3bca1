"""Solve (C + lambda I) x = v, behind one protocol."""

from hf_fastif.solvers.base import DivergenceError, Origin, Solution, Solver, check_s_test
from hf_fastif.solvers.conjugate_gradient import ConjugateGradient
from hf_fastif.solvers.direct import Ekfac, Identity
from hf_fastif.solvers.exact import Exact, decompose
from hf_fastif.solvers.lissa import Lissa, batch_scale
from hf_fastif.solvers.repeats import Repeated
from hf_fastif.solvers.sdca import DualAscent
from hf_fastif.solvers.setup import SolverSetup


__all__ = [
    "ConjugateGradient",
    "DivergenceError",
    "DualAscent",
    "Ekfac",
    "Exact",
    "Identity",
    "Lissa",
    "Origin",
    "Repeated",
    "Solution",
    "Solver",
    "SolverSetup",
    "batch_scale",
    "check_s_test",
    "decompose",
]
