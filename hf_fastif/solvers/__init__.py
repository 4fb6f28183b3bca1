"""Solve (C + lambda I) x = v, behind one protocol."""

from hf_fastif.solvers.base import DivergenceError, Origin, Solution, Solver, check_s_test
from hf_fastif.solvers.conjugate_gradient import CgSettings, ConjugateGradient
from hf_fastif.solvers.ekfac import Ekfac
from hf_fastif.solvers.exact import MAX_DUAL, MAX_PRIMAL, Exact, decompose
from hf_fastif.solvers.identity import Identity
from hf_fastif.solvers.lissa import Lissa, LissaSettings, batch_scale, resolved_settings
from hf_fastif.solvers.registry import (
    check_solvers,
    find_solver,
    register,
    registered_solvers,
    solver_flags,
    unregister,
)
from hf_fastif.solvers.repeats import Repeated
from hf_fastif.solvers.sdca import DualAscent, SdcaSettings
from hf_fastif.solvers.setup import SolverSetup
from hf_fastif.solvers.system import DampedSystem


__all__ = [
    "CgSettings",
    "ConjugateGradient",
    "DampedSystem",
    "DivergenceError",
    "DualAscent",
    "Ekfac",
    "Exact",
    "Identity",
    "Lissa",
    "LissaSettings",
    "MAX_DUAL",
    "MAX_PRIMAL",
    "Origin",
    "Repeated",
    "SdcaSettings",
    "Solution",
    "Solver",
    "SolverSetup",
    "batch_scale",
    "check_s_test",
    "check_solvers",
    "decompose",
    "find_solver",
    "register",
    "registered_solvers",
    "resolved_settings",
    "solver_flags",
    "unregister",
]
