"""Parameters that are used several times: layers that are called again, and weights of two modules."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from tiny import batches, tiny_data, tiny_model, tiny_trainer
from tiny_architectures import row_gradients
from torch import nn


TRAIN, QUERIES = tiny_data(8), tiny_data(2, seed=1)


def albert():
    """Its only layer is called twice."""
    return tiny_model("albert", frozen=None)


def tied_layers():
    """Two layers with one weight, and biases of their own."""
    model = tiny_model(frozen=1)
    layer = model.bert.encoder.layer[1]
    layer.attention.self.key.weight = layer.attention.self.query.weight
    return model


def one_module_twice():
    """A norm at two places of a layer."""
    model = tiny_model(frozen=1)
    layer = model.bert.encoder.layer[1]
    layer.output.LayerNorm = layer.attention.output.LayerNorm
    return model


def tied_vectors():
    """Two norms with one weight."""
    model = tiny_model(frozen=1)
    layer = model.bert.encoder.layer[1]
    layer.output.LayerNorm.weight = layer.attention.output.LayerNorm.weight
    return model


def a_layer_again():
    """The trained layer stands twice in the stack, behind the frozen one."""
    model = tiny_model(frozen=1)
    model.bert.encoder.layer = nn.ModuleList([*model.bert.encoder.layer, model.bert.encoder.layer[1]])
    return model


MODELS = [albert, tied_layers, one_module_twice, tied_vectors, a_layer_again]


def rows_of(data):
    return [batches(data).take([row]) for row in range(len(data))]


@pytest.mark.parametrize("make", MODELS)
def test_scores_and_self_influence_are_those_of_plain_autograd(make, tmp_path):
    model = make()
    gradients, queries = row_gradients(model, rows_of(TRAIN)), row_gradients(model, rows_of(QUERIES))
    expected = -(queries @ gradients.T).numpy()
    trainer = tiny_trainer(tmp_path, model, TRAIN, solver="identity")
    tolerance = {"rtol": 1e-3, "atol": 1e-5 * np.abs(expected).max()}
    for scoring in ("auto", "forward_mode"):
        trainer.args.scoring = scoring
        np.testing.assert_allclose(trainer.compute_influence(QUERIES), expected, **tolerance)
    assert all(isinstance(p, nn.Parameter) for m in model.modules() for p in m._parameters.values() if p is not None)
    np.testing.assert_allclose(trainer.self_influence(), gradients.square().sum(dim=1).numpy(), rtol=1e-3)


@pytest.mark.parametrize("solver", ["iterative", "exact", "cg"])
@pytest.mark.parametrize("make", [tied_layers, one_module_twice, a_layer_again])
def test_solvers_count_every_use(make, solver, tmp_path):
    settings = {"cg_samples": 8, "cg_steps": 60, "solver_tolerance": 1e-4, "lissa_batch_size": 8, "lissa_depth": 500}
    model = make()
    trainer = tiny_trainer(tmp_path, model, TRAIN, damping=3.0, sdca_visits=800, **settings)
    with trainer.session() as session:
        trainer.args.solver = session.setup().iterative if solver == "iterative" else solver
    found = trainer.compute_s_test(QUERIES).vectors.double()
    vectors = row_gradients(model, rows_of(QUERIES))
    matrix = oracles.gauss_newton(model.double().eval(), batches(TRAIN))
    expected = torch.linalg.solve(matrix + 3.0 * torch.eye(len(matrix)).to(matrix), vectors.T).T
    assert (found - expected).norm() < 2e-3 * expected.norm()
