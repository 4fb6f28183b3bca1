"""Conjugate gradient and EK-FAC, alone and together, against the exact damped inverse."""

from __future__ import annotations

import pytest
import torch
from problem import Problem, changed, kronecker_factors
from tiny import accelerator

from hf_fastif.solvers import (
    CgSettings,
    ConjugateGradient,
    DivergenceError,
    Ekfac,
    Identity,
    Lissa,
    LissaSettings,
    Solution,
    batch_scale,
)


def cg(problem: Problem, **changes) -> ConjugateGradient:
    solver = ConjugateGradient(problem.system, problem.sample(), CgSettings(steps=100), tolerance=1e-9)
    return changed(solver, **changes)


def preconditioner(problem: Problem):
    factors = kronecker_factors(problem.curvature, problem.examples, problem.row_batches)
    return lambda vectors: factors.solve(problem.space, vectors, problem.damping)


@pytest.fixture(scope="module")
def problem():
    return Problem(frozen=1)


@pytest.mark.parametrize("settings", [{}, {"hessian": True}, {"num_labels": 2, "architecture": "distilbert"}])
def test_converges_to_the_exact_damped_inverse(settings):
    problem = Problem(**settings)
    solution = cg(problem).solve(problem.vectors)
    torch.testing.assert_close(solution.vectors, problem.exact(), rtol=1e-6, atol=1e-8)
    assert solution.residual.max() < 1e-7


def test_trace_holds_the_residual_before_each_step(problem):
    x = cg(problem, steps=4).solve(problem.vectors).vectors
    expected = problem.vectors - x @ problem.matrix - problem.damping * x
    trace = cg(problem).solve(problem.vectors).trace
    torch.testing.assert_close(trace[0], torch.ones_like(trace[0]))
    torch.testing.assert_close(trace[4], expected.norm(dim=1) / problem.vectors.norm(dim=1))


def test_tolerance_stops_each_query_by_itself(problem):
    vectors = torch.cat([problem.vectors, torch.zeros_like(problem.vectors[:1])])
    solution = cg(problem, tolerance=0.05).solve(vectors)
    assert 1 < solution.steps < cg(problem).solve(vectors).steps
    assert solution.residual.max() <= 0.05
    assert not solution.vectors[-1].any()


def test_queries_do_not_disturb_each_other(problem):
    solver = cg(problem, tolerance=0.01)
    alone = Solution.concat_queries([solver.solve(vector[None]) for vector in problem.vectors])
    torch.testing.assert_close(solver.solve(problem.vectors).vectors, alone.vectors, rtol=1e-8, atol=1e-10)


def test_residual_is_that_of_another_sample(problem):
    part = problem.sample(6, seed=1)
    solution = cg(problem, matrix=part).solve(problem.vectors)
    x = solution.vectors
    expected = (problem.vectors - x @ problem.matrix - problem.damping * x).norm(dim=1) / problem.vectors.norm(dim=1)
    torch.testing.assert_close(solution.residual, expected)
    assert expected.min() > 0.01 > solution.trace[-1].max()


def test_ekfac_changes_the_way_of_cg_and_not_its_answer(problem):
    plain = cg(problem).solve(problem.vectors)
    guided = cg(problem, precondition=preconditioner(problem)).solve(problem.vectors)
    torch.testing.assert_close(guided.vectors, plain.vectors, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(guided.trace[2], plain.trace[2], rtol=0.05)


def test_ekfac_changes_the_way_of_lissa_and_not_its_answer(problem):
    precondition = preconditioner(problem)
    scale = batch_scale(
        problem.curvature, problem.examples, problem.size, 0, problem.damping, accelerator(), precondition
    )
    settings = LissaSettings(scale=scale, depth=150, batch_size=problem.size)
    solver = Lissa(problem.system, settings, precondition=precondition)
    solution = solver.solve(problem.vectors)
    torch.testing.assert_close(solution.vectors, problem.exact(), rtol=2e-3, atol=1e-4)
    assert not torch.allclose(
        solver.solve(problem.vectors).vectors, changed(solver, depth=3).solve(problem.vectors).vectors, rtol=0.1
    )


def test_ekfac_alone_is_better_than_no_curvature(problem):
    factors = kronecker_factors(problem.curvature, problem.examples, problem.row_batches)
    damping = dict.fromkeys(problem.space.parameters, problem.damping)
    solution = Ekfac(factors, problem.space, problem.sample(), damping).solve(problem.vectors)
    plain = problem.vectors / problem.damping
    assert ((solution.vectors - problem.exact()).norm(dim=1) < 0.85 * (plain - problem.exact()).norm(dim=1)).all()
    x = solution.vectors
    expected = (problem.vectors - x @ problem.matrix - problem.damping * x).norm(dim=1) / problem.vectors.norm(dim=1)
    torch.testing.assert_close(solution.residual, expected)


def test_identity_is_the_gradient(problem):
    solution = Identity().solve(problem.vectors)
    assert torch.equal(solution.vectors, problem.vectors)
    assert torch.isnan(solution.residual).all()


def test_indefinite_curvature_raises(problem):
    hessian = Problem(hessian=True)
    assert hessian.eigenvalues[0] < -1e-3
    with pytest.raises(DivergenceError, match=r"damping=.*not positive definite; give damping above"):
        cg(hessian, damping=float(-0.2 * hessian.eigenvalues[0])).solve(hessian.vectors)
