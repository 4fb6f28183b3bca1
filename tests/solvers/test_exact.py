"""The exact solver, primal and dual, against dense linear algebra."""

from __future__ import annotations

import pytest
import torch
from problem import Problem

from hf_fastif.solvers import Exact, decompose, exact


def test_primal_for_tiny_models():
    for problem in (Problem(), Problem(hessian=True)):
        solver = Exact(decompose(problem.curvature, problem.sample()), problem.sample(), problem.damping)
        assert solver.decomposition.primal
        solution = solver.solve(problem.vectors)
        torch.testing.assert_close(solution.vectors, problem.exact(), rtol=1e-8, atol=1e-10)
        assert solution.residual.max() < 1e-9


@pytest.mark.parametrize(("architecture", "num_labels"), [("bert", 3), ("distilbert", 2), ("gpt2", 3)])
def test_dual_for_every_damping_at_once(monkeypatch, architecture, num_labels):
    monkeypatch.setattr(exact, "MAX_PRIMAL", 10)
    problem = Problem(architecture=architecture, num_labels=num_labels, frozen=1)
    solver = Exact(decompose(problem.curvature, problem.sample()), problem.sample(), problem.damping)
    assert not solver.decomposition.primal

    found = solver.solve_all(problem.vectors, [problem.damping, 1e-3 * problem.damping])

    assert found.shape == (2, *problem.vectors.shape)
    torch.testing.assert_close(found[0], problem.exact(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found[1], problem.exact(1e-3 * problem.damping), rtol=1e-7, atol=1e-8)


def test_parameters_that_no_capture_covers(monkeypatch):
    monkeypatch.setattr(exact, "MAX_PRIMAL", 10)
    problem = Problem(frozen=None)
    solver = Exact(decompose(problem.curvature, problem.sample()), problem.sample(), problem.damping)
    torch.testing.assert_close(solver.solve(problem.vectors).vectors, problem.exact(), rtol=1e-8, atol=1e-10)


def test_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(exact, "MAX_PRIMAL", 10)
    monkeypatch.setattr(exact, "MAX_DUAL", 20)
    problem = Problem()
    with pytest.raises(ValueError, match=r"solver='exact'.*at most 20 rows of Jacobians \(here 24"):
        decompose(problem.curvature, problem.sample())
    with pytest.raises(ValueError, match="curvature='gauss_newton'"):
        decompose(Problem(hessian=True).curvature, Problem(hessian=True).sample())
