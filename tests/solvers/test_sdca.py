"""Dual coordinate ascent against the exact damped inverse."""

from __future__ import annotations

import oracles
import pytest
import torch
from problem import Problem, changed

from hf_fastif.curvature import products
from hf_fastif.solvers import DualAscent, SdcaSettings, Solution


def sdca(problem: Problem, **changes) -> DualAscent:
    solver = DualAscent(problem.system, SdcaSettings(visits=40 * problem.size), batch_size=4)
    return changed(solver, **changes)


@pytest.fixture(scope="module")
def problem():
    return Problem()


def error(problem, solution) -> float:
    return float(((solution.vectors - problem.exact()).norm(dim=1) / problem.exact().norm(dim=1)).max())


@pytest.mark.parametrize("batch_size", [2, 5, 12])
@pytest.mark.parametrize("settings", [{}, {"num_labels": 2, "architecture": "distilbert", "frozen": 1}])
def test_passes_converge_to_the_exact_damped_inverse(settings, batch_size):
    problem = Problem(**settings)
    solution = sdca(problem, batch_size=batch_size, visits=150 * problem.size).solve(problem.vectors)
    torch.testing.assert_close(solution.vectors, problem.exact(), rtol=1e-5, atol=1e-6)
    assert solution.residual.max() < 1e-5


def test_one_block_of_everything_is_exact_at_once(problem):
    solution = sdca(problem, batch_size=problem.size, visits=problem.size).solve(problem.vectors)
    torch.testing.assert_close(solution.vectors, problem.exact(), rtol=1e-9, atol=1e-10)
    assert solution.steps == 1


def test_each_pass_comes_closer(problem):
    errors = [error(problem, sdca(problem, visits=n * problem.size).solve(problem.vectors)) for n in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.5 and errors[-1] < 0.2 * errors[0]


def test_examples_not_visited_do_not_count(problem):
    """One block of half the training set is the exact answer for that half."""
    solver = sdca(problem, batch_size=6, visits=6)
    rows = next(solver._blocks(0, 6))
    matrix = oracles.gauss_newton(problem.model, problem.examples, rows)
    system = matrix + problem.damping * torch.eye(len(matrix), dtype=matrix.dtype)

    expected = torch.linalg.solve(system, problem.vectors.T).T
    torch.testing.assert_close(solver.solve(problem.vectors).vectors, expected, rtol=1e-8, atol=1e-9)


def test_watched_residual_is_the_true_one(problem):
    solver = sdca(problem, batch_size=problem.size, visits=2 * problem.size, damping=0.3 * problem.damping)
    x = problem.vectors / solver.system.damping
    along = x @ problem.matrix + solver.system.damping * x - problem.vectors
    expected = along.norm(dim=1) / problem.vectors.norm(dim=1)
    torch.testing.assert_close(solver.solve(problem.vectors).trace[0], expected)


def test_tolerance_stops_early(problem):
    full = sdca(problem).solve(problem.vectors)
    early = sdca(problem, tolerance=0.05).solve(problem.vectors)
    assert early.steps < full.steps
    assert early.residual.max() < 0.15


def test_memory_bounds_the_block_and_not_the_answer(problem, monkeypatch):
    expected = sdca(problem, batch_size=2).solve(problem.vectors)
    row = 2 * sum(p.nbytes for p in problem.curvature.objective.theta.values())
    monkeypatch.setattr(products, "ROW_MEMORY", 2 * row)
    torch.testing.assert_close(sdca(problem, batch_size=12).solve(problem.vectors).vectors, expected.vectors)


def test_queries_do_not_disturb_each_other_and_runs_repeat_to_the_bit(problem):
    solver = sdca(problem, visits=18, repeats=2)
    together = solver.solve(problem.vectors)
    alone = Solution.concat_queries([solver.solve(vector[None]) for vector in problem.vectors])

    torch.testing.assert_close(together.vectors, alone.vectors, rtol=1e-9, atol=1e-12)
    assert torch.equal(solver.solve(problem.vectors).vectors, together.vectors)
    assert not torch.allclose(changed(solver, seed=1).solve(problem.vectors).vectors, together.vectors, rtol=1e-3)


def test_repeats_tell_a_standard_error_that_vanishes_with_convergence(problem):
    rough = sdca(problem, visits=6, repeats=8).solve(problem.vectors)
    done = sdca(problem, visits=1200, repeats=2).solve(problem.vectors)
    true = (rough.vectors - problem.exact()).norm(dim=1) / problem.exact().norm(dim=1)
    assert (rough.std_err > 0.1 * true).all() and (rough.std_err < 3 * true).all()
    assert done.std_err.max() < 1e-4


@pytest.mark.parametrize("size", [1, 4, 22])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_steps_end_when_a_whole_pass_moves_nothing(size, batch_size):
    few = Problem(size=size)
    solution = sdca(few, batch_size=batch_size, visits=10_000 * size).solve(few.vectors)
    passes, rest = divmod(solution.steps, 1 if batch_size > size else size)
    assert rest == 0 and 2 <= passes < 1000
    assert passes == 2 or size > 1 and batch_size == 1
    assert error(few, solution) < 1e-12


def test_steps_end_in_float32_too_with_no_more_left_over_than_ever():
    single = Problem(size=8)
    single.model.float()
    solution = sdca(single, visits=500 * single.size).solve(single.vectors)
    assert solution.steps < 200
    assert solution.residual.max() < 2e-6


def test_one_query_that_still_moves_keeps_all_going(problem):
    """A query that is zero is done at once, and the other is not."""
    vectors = torch.stack([torch.zeros_like(problem.vectors[0]), problem.vectors[0]])
    alone = sdca(problem, visits=1000 * problem.size).solve(problem.vectors[:1])
    both = sdca(problem, visits=1000 * problem.size).solve(vectors)
    assert alone.steps == both.steps < 1000 * 3
    assert both.vectors[0].abs().max() == 0
    torch.testing.assert_close(both.vectors[1], problem.exact()[0], rtol=1e-10, atol=1e-12)
