"""Curvature products against the explicit matrices and finite differences, in float64."""

from __future__ import annotations

import copy

import oracles
import pytest
import torch
from tiny import batches, tiny_data, tiny_model

from hf_fastif.curvature import GaussNewton, Hessian
from hf_fastif.objective import Objective


ROWS = list(range(7))


@pytest.fixture(scope="module")
def examples():
    return batches(tiny_data(7))  # lengths differ, so the batch is padded


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "modernbert"])
def test_gauss_newton_is_the_explicit_jacobian_form(architecture, examples):
    model = tiny_model(architecture, double=True)
    curvature = GaussNewton(Objective(model))
    matrix = oracles.gauss_newton(model, examples)
    vectors = torch.randn(3, len(matrix), dtype=torch.float64)

    products = curvature.product(examples.take(ROWS), vectors)

    # ModernBERT takes its softmax in float32, whatever the model's type.
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if architecture == "modernbert" else {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(products, vectors @ matrix, **tolerance)


def test_gauss_newton_is_positive_semi_definite_and_symmetric(examples):
    curvature = GaussNewton(Objective(tiny_model(double=True)))
    vectors = torch.randn(4, curvature.objective.space.size, dtype=torch.float64)

    inner = vectors @ curvature.product(examples.take(ROWS), vectors).T

    torch.testing.assert_close(inner, inner.T, rtol=1e-9, atol=1e-9)
    assert torch.linalg.eigvalsh(inner).min() > 0


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_hessian_product_is_the_finite_difference_of_gradients(architecture, examples):
    model = tiny_model(architecture, double=True)
    curvature = Hessian(Objective(model))
    objective, batch, step = curvature.objective, examples.take(ROWS), 1e-5
    vectors = torch.randn(2, objective.space.size, dtype=torch.float64)

    products = curvature.product(batch, vectors)

    for vector, product in zip(vectors, products, strict=True):
        ends = []
        for sign in (1, -1):
            moved = copy.deepcopy(model)
            for parameter, piece in zip(oracles.trainable(moved), objective.space.split(vector).values(), strict=True):
                parameter.data += sign * step * piece
            ends.append(Objective(moved).gradient(batch))
        torch.testing.assert_close(
            product, (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-4 * product.abs().max()
        )


def test_hessian_is_the_explicit_matrix_where_the_gauss_newton_is_not(examples):
    model = tiny_model(double=True, frozen=2)  # pooler and classifier are left
    matrix = oracles.hessian(model, examples)
    vectors = torch.randn(3, len(matrix), dtype=torch.float64)
    batch = examples.take(ROWS)

    products = Hessian(Objective(model)).product(batch, vectors)

    torch.testing.assert_close(products, vectors @ matrix, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(GaussNewton(Objective(model)).product(batch, vectors), products, rtol=1e-2)


def test_hessian_and_gauss_newton_agree_where_the_outputs_are_linear(examples):
    model = tiny_model(double=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    objective, batch = Objective(model), examples.take(ROWS)
    vectors = torch.randn(2, objective.space.size, dtype=torch.float64)

    torch.testing.assert_close(
        Hessian(objective).product(batch, vectors), GaussNewton(objective).product(batch, vectors)
    )


@pytest.mark.parametrize("curvature", [GaussNewton, Hessian])
def test_vectors_do_not_disturb_each_other(curvature, examples):
    product = curvature(Objective(tiny_model(double=True))).product
    vectors = torch.randn(4, tiny_size(), dtype=torch.float64)
    batch = examples.take(ROWS)

    alone = torch.cat([product(batch, vector[None]) for vector in vectors])

    torch.testing.assert_close(product(batch, vectors), alone, rtol=1e-10, atol=1e-12)


def tiny_size() -> int:
    return sum(p.numel() for p in oracles.trainable(tiny_model()))
