"""LiSSA against the exact damped inverse, and what must not change its answer."""

from __future__ import annotations

import math
import re

import oracles
import pytest
import torch
from problem import changed
from tiny import accelerator, batches, tiny_data, tiny_model

from hf_fastif.curvature import CurvatureSample, GaussNewton, Hessian
from hf_fastif.model import Objective
from hf_fastif.solvers import DampedSystem, DivergenceError, Lissa, LissaSettings, Solution, batch_scale
from hf_fastif.solvers import lissa as lissa_module


N = 12


@pytest.fixture(scope="module")
def problem():
    """A training set, its exact curvature, and right-hand sides."""
    model, examples = tiny_model(double=True, frozen=2), batches(tiny_data(N))
    matrix = oracles.gauss_newton(model, examples)
    return model, examples, matrix, oracles.loss_gradients(model, examples)[:3]


def lissa(problem, curvature=GaussNewton, **changes) -> Lissa:
    """Full batches unless changed: the recursion is then free of noise."""
    model, examples, matrix, _ = problem
    products = curvature(Objective(model))
    largest = float(torch.linalg.eigvalsh(matrix).max())
    sample = CurvatureSample(products, examples, N, 5, seed=0, accelerator=accelerator())
    system = DampedSystem(products, examples, sample, 0.1 * largest, accelerator(), show_progress=False)
    solver = Lissa(system, LissaSettings(scale=1.2 * largest, depth=200, batch_size=N))
    return changed(solver, **changes)


def exact(matrix, damping, vectors):
    return torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype), vectors.T).T


def test_full_batches_give_the_exact_damped_inverse(problem):
    *_, matrix, vectors = problem
    solver = lissa(problem)

    solution = solver.solve(vectors)

    torch.testing.assert_close(solution.vectors, exact(matrix, solver.system.damping, vectors), rtol=1e-5, atol=1e-6)
    assert solution.residual.max() < 1e-6
    assert solution.damping == solver.system.damping


def test_hessian_that_damping_outweighs(problem):
    model, examples, _, vectors = problem
    matrix = oracles.hessian(model, examples)
    smallest, largest = (float(end) for end in torch.linalg.eigvalsh(matrix)[[0, -1]])
    damping = 2 * abs(smallest) + 0.1 * largest

    solution = lissa(problem, Hessian, damping=damping, scale=1.2 * (largest + damping)).solve(vectors)

    torch.testing.assert_close(solution.vectors, exact(matrix, damping, vectors), rtol=1e-5, atol=1e-6)


def test_scale_changes_the_path_and_not_the_answer(problem):
    *_, vectors = problem
    scale = lissa(problem).settings.scale

    one = lissa(problem, depth=150).solve(vectors).vectors
    two = lissa(problem, depth=300, scale=2 * scale).solve(vectors).vectors

    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        lissa(problem, depth=5).solve(vectors).vectors,
        lissa(problem, depth=5, scale=2 * scale).solve(vectors).vectors,
        rtol=0.05,
    )


def test_small_batches_are_unbiased_and_their_standard_error_is_honest(problem):
    *_, matrix, vectors = problem
    solver = lissa(problem, batch_size=2, repeats=24, depth=40)
    target = exact(matrix, solver.system.damping, vectors)

    solution = solver.solve(vectors)

    error = (solution.vectors - target).norm(dim=1) / target.norm(dim=1)
    assert (error < 2 * solution.std_err).all()
    assert (error > 0.3 * solution.std_err).all()
    assert (solution.std_err < 0.2).all()


def test_standard_error_falls_with_the_root_of_the_repeats(problem):
    *_, vectors = problem

    few = lissa(problem, batch_size=2, repeats=4, depth=20).solve(vectors).std_err
    many = lissa(problem, batch_size=2, repeats=64, depth=20).solve(vectors).std_err

    assert float((few / many).mean()) == pytest.approx(4, rel=0.35)
    assert torch.isnan(lissa(problem, depth=2).solve(vectors).std_err).all()


def test_residual_is_that_of_the_mean_recomputed(problem):
    *_, matrix, vectors = problem
    solver = lissa(problem, batch_size=3, repeats=2, depth=20)

    solution = solver.solve(vectors)

    x = solution.vectors
    expected = (vectors - x @ matrix - solver.system.damping * x).norm(dim=1) / vectors.norm(dim=1)
    torch.testing.assert_close(solution.residual, expected)
    assert expected.min() > 1e-3


def test_queries_do_not_disturb_each_other_and_runs_repeat_to_the_bit(problem):
    *_, vectors = problem
    solver = lissa(problem, batch_size=3, repeats=2, depth=20)

    together = solver.solve(vectors)
    alone = Solution.concat_queries([solver.solve(vector[None]) for vector in vectors])

    torch.testing.assert_close(together.vectors, alone.vectors, rtol=1e-9, atol=1e-12)
    assert torch.equal(solver.solve(vectors).vectors, together.vectors)
    assert not torch.allclose(changed(solver, seed=1).solve(vectors).vectors, together.vectors, rtol=1e-3)


@pytest.mark.parametrize("tolerance", [None, 0.3])
def test_repeats_share_passes_without_changing_each_other(problem, tolerance, monkeypatch):
    *_, vectors = problem
    monkeypatch.setattr(lissa_module, "MIN_MONITORED", 6)
    solver = lissa(problem, batch_size=6, repeats=3, depth=40, tolerance=tolerance)
    assert solver.repeats_share()

    together = solver._run(vectors, [0, 1, 2])
    alone = [solver._run(vectors, [repeat])[0] for repeat in range(3)]

    assert [run.steps for run in together] == [run.steps for run in alone]
    assert (len({run.steps for run in alone}) > 1) == (tolerance is not None)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.vectors, other.vectors, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.stack(one.trace), torch.stack(other.trace), rtol=1e-7, atol=1e-9)


def test_watched_residual_of_full_batches_is_the_true_one(problem, monkeypatch):
    *_, matrix, vectors = problem
    monkeypatch.setattr(lissa_module, "MIN_MONITORED", 6)
    squares = []
    for depth in range(20, 28):
        x = lissa(problem, depth=depth).solve(vectors).vectors
        squares.append((vectors - x @ matrix - lissa(problem).system.damping * x).square().sum(dim=1))
    expected = (torch.stack(squares).mean(dim=0) / vectors.square().sum(dim=1)).sqrt()  # over the last few steps
    torch.testing.assert_close(lissa(problem, depth=28).solve(vectors).trace[27], expected)


def test_divergence_raises_and_names_a_scale_that_converges(problem):
    *_, vectors = problem
    solver = lissa(problem, scale=0.2 * lissa(problem).settings.scale, depth=300)

    with pytest.raises(DivergenceError, match="lissa_scale") as caught:
        solver.solve(torch.cat([torch.zeros_like(vectors[:1]), vectors]))

    named = float(re.search(r"lissa_scale=(\S+) converges", str(caught.value))[1])
    assert changed(solver, scale=named).solve(vectors).residual.max() < 0.01


def test_steps_that_prove_too_long_are_shortened(problem):
    *_, vectors = problem
    solver = lissa(problem, scale=0.2 * lissa(problem).settings.scale, depth=300, adapts=True)
    found = solver.solve(vectors)
    assert found.residual.max() < 0.01
    doublings = round(math.log2(found.scale / solver.settings.scale))
    assert doublings in (1, 2) and found.scale == solver.settings.scale * 2**doublings
    assert torch.equal(found.vectors, changed(solver, scale=found.scale, adapts=False).solve(vectors).vectors)
    with pytest.raises(DivergenceError):
        changed(solver, scale=found.scale / 2, adapts=False).solve(vectors)


def test_curvature_that_is_not_a_number_ends(problem, monkeypatch):
    *_, vectors = problem
    solver = lissa(problem, depth=50, adapts=True)
    monkeypatch.setattr(lissa_module, "mean_product", lambda _c, _e, _b, _n, x: x * math.nan)
    monkeypatch.setattr(lissa_module, "dominant_eigenvalue", lambda *_: math.nan)
    with pytest.raises(DivergenceError, match="reaches nan"):
        solver.solve(vectors)


def test_indefinite_system_raises_and_names_a_damping_that_converges(problem):
    model, examples, _, vectors = problem
    matrix = oracles.hessian(model, examples)
    smallest, largest = (float(end) for end in torch.linalg.eigvalsh(matrix)[[0, -1]])
    assert smallest < -1e-3
    solver = lissa(problem, Hessian, damping=0.2 * -smallest, scale=1.2 * largest, depth=5000)

    with pytest.raises(DivergenceError, match=r"damping=.*C \+ damping I is not positive definite") as caught:
        solver.solve(vectors)

    named = float(re.search(r"give damping above (\S+),", str(caught.value))[1])
    assert named == pytest.approx(-smallest, rel=0.1)
    enough = 1.2 * named
    solution = changed(solver, damping=enough, scale=1.2 * (largest + enough), depth=400).solve(vectors)
    torch.testing.assert_close(solution.vectors, exact(matrix, enough, vectors), rtol=1e-4, atol=1e-5)


def test_auto_scale_bounds_the_batches_and_converges(problem):
    _, examples, matrix, vectors = problem
    scale = batch_scale(lissa(problem).system.curvature, examples, 2, 0, lissa(problem).system.damping, accelerator())
    assert scale > float(torch.linalg.eigvalsh(matrix).max())

    solution = lissa(problem, batch_size=2, repeats=8, scale=scale, depth=150).solve(vectors)

    assert solution.residual.max() < 0.6


def test_zero_gradient_gives_zero(problem):
    *_, vectors = problem
    solution = lissa(problem, depth=3).solve(torch.zeros_like(vectors[:1]))
    assert not solution.vectors.any()
    assert solution.residual.item() == 0
