"""Solvers of (C + lambda I) x = v, behind one protocol."""

from hf_fastif.solvers.base import DivergenceError, Origin, Precondition, Solution, Solver
from hf_fastif.solvers.conjugate_gradient import ConjugateGradient
from hf_fastif.solvers.direct import Ekfac, Identity
from hf_fastif.solvers.exact import Decomposition, Exact, decompose
from hf_fastif.solvers.lissa import Lissa, batch_scale
from hf_fastif.solvers.repeats import Repeated
from hf_fastif.solvers.sdca import DualAscent


__all__ = [
    "ConjugateGradient",
    "Decomposition",
    "DivergenceError",
    "DualAscent",
    "Ekfac",
    "Exact",
    "Identity",
    "Lissa",
    "Origin",
    "Precondition",
    "Repeated",
    "Solution",
    "Solver",
    "batch_scale",
    "decompose",
]
