"""Self-influence against g^T (C + lambda I)^-1 g, written out example by example."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from problem import kronecker_factors
from tiny import batches, tiny_data, tiny_model, tiny_trainer

from hf_fastif.curvature import GaussNewton, captures
from hf_fastif.model import Objective
from hf_fastif.scoring import covering_layers, self_influence


DATA = tiny_data(13)
DAMPING = 0.7


def found(model, factors=None, damping=1.0, rows=range(13)):
    objective, examples = Objective(model), batches(DATA)
    return self_influence(objective, examples.take(rows), covering_layers(objective, examples), factors, damping)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "modernbert", "gpt2", "llama"])
@pytest.mark.parametrize("frozen", [None, 1])
def test_without_curvature_it_is_the_squared_norm_of_the_gradient(architecture, frozen):
    model = tiny_model(architecture, frozen, double=True)
    expected = oracles.loss_gradients(model, batches(DATA)).square().sum(dim=1)
    torch.testing.assert_close(found(model), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("frozen", [None, 1])
def test_with_kronecker_factors_it_is_their_quadratic_form(architecture, frozen):
    model = tiny_model(architecture, frozen, double=True)
    objective, examples = Objective(model), batches(DATA)
    cuts = np.array_split(np.arange(13), 3)
    factors = kronecker_factors(GaussNewton(objective), examples, cuts)
    gradients = oracles.loss_gradients(model, examples)
    expected = (factors.solve(objective.space, gradients, DAMPING) * gradients).sum(dim=1)
    torch.testing.assert_close(found(model, factors, DAMPING), expected, rtol=1e-8, atol=1e-12)


def test_gradients_in_strips_give_the_same(monkeypatch):
    model = tiny_model(double=True)
    expected = found(model)
    monkeypatch.setattr(captures, "STRIP_MEMORY", 2000)
    torch.testing.assert_close(found(model), expected, rtol=1e-12, atol=1e-12)


def test_batches_and_their_order_do_not_matter():
    model = tiny_model()
    parts = torch.cat([found(model, rows=rows) for rows in ([12, 3], [7], [0, 1, 5, 9])])
    torch.testing.assert_close(parts, found(model)[[12, 3, 7, 0, 1, 5, 9]], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("solver", ["exact", "cg"])
def test_other_solvers_are_run_for_every_example(tmp_path, solver):
    model = tiny_model(frozen=2)
    settings = {"cg_samples": 13, "solver_tolerance": 1e-5, "cg_steps": 100} if solver == "cg" else {}
    trainer = tiny_trainer(tmp_path, model, DATA, solver=solver, damping=DAMPING, query_batch_size=4, **settings)
    double = tiny_model(frozen=2, double=True)
    gradients = oracles.loss_gradients(double, batches(DATA))
    matrix = oracles.gauss_newton(double, batches(DATA))
    system = matrix + DAMPING * torch.eye(len(matrix), dtype=matrix.dtype)
    expected = (torch.linalg.solve(system, gradients.T).T * gradients).sum(dim=1)
    np.testing.assert_allclose(trainer.self_influence(), expected, rtol=5e-3)


def test_tied_weights_take_the_way_that_knows_them(tmp_path):
    model = tiny_model(frozen=None)
    first, second = model.bert.encoder.layer
    second.intermediate.dense.weight = first.intermediate.dense.weight
    trainer = tiny_trainer(tmp_path, model, DATA, solver="identity")
    expected = oracles.loss_gradients(model, batches(DATA)).square().sum(dim=1)
    np.testing.assert_allclose(trainer.self_influence(), expected, rtol=1e-3)


def test_it_is_minus_the_influence_on_itself(tmp_path):
    trainer = tiny_trainer(tmp_path, train=DATA, solver="ekfac", damping=DAMPING)
    diagonal = trainer.compute_influence(DATA).diagonal()
    np.testing.assert_allclose(trainer.self_influence(), -diagonal, rtol=1e-3)
    np.testing.assert_allclose(trainer.self_influence(DATA.select([4, 2])), -diagonal[[4, 2]], rtol=1e-3)
