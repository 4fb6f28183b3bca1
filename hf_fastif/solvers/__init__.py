"""Solvers of (C + lambda I) x = v, behind one protocol."""

from hf_fastif.solvers.base import Solution, Solver
from hf_fastif.solvers.lissa import DivergenceError, Lissa, batch_scale


__all__ = ["DivergenceError", "Lissa", "Solution", "Solver", "batch_scale"]
