"""Curvature products against the explicit matrices and finite differences, in float64."""

from __future__ import annotations

import copy

import oracles
import pytest
import torch
from tiny import batches, tiny_data, tiny_model
from torch.func import hessian
from torch.nn import functional as F

from hf_fastif.curvature import GaussNewton, Hessian, products
from hf_fastif.model import Objective


ROWS = list(range(7))


@pytest.fixture(scope="module")
def examples():
    return batches(tiny_data(7))  # lengths differ, so the batch is padded


def keep_three_rows(monkeypatch, curvature, batch):
    """Cuts a batch into examples of three, and takes rows all the same."""
    bytes_of_one = 8 * curvature.objective.output_rank(batch) * curvature.objective.space.size
    monkeypatch.setattr(products, "ROW_MEMORY", 3 * bytes_of_one)
    monkeypatch.setattr(products, "MIN_ROWS", 3)
    assert curvature.num_rows_held(batch) == 3


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "gpt2", "modernbert"])
def test_gauss_newton_is_the_explicit_jacobian_form(architecture, examples, monkeypatch):
    model = tiny_model(architecture, double=True)
    curvature, batch = GaussNewton(Objective(model)), examples.take(ROWS)
    matrix = oracles.gauss_newton(model, examples)
    vectors = torch.randn(3, len(matrix), dtype=torch.float64)

    mean = torch.full((1, len(ROWS)), 1 / len(ROWS), dtype=torch.float64)
    found = [curvature.product(batch, vectors), curvature.product_by_tangents(batch, vectors, mean)]
    keep_three_rows(monkeypatch, curvature, batch)
    found.append(curvature.product_by_rows(batch, vectors, mean))

    # ModernBERT takes its softmax in float32, whatever the model's type.
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if architecture == "modernbert" else {"rtol": 1e-9, "atol": 1e-10}
    for product in found:
        torch.testing.assert_close(product, vectors @ matrix, **tolerance)


def test_vectors_with_weights_of_their_own_see_batches_of_their_own(examples, monkeypatch):
    model = tiny_model(double=True)
    curvature, batch = GaussNewton(Objective(model)), examples.take(ROWS)
    vectors = torch.randn(2, curvature.objective.space.size, dtype=torch.float64)
    weights = torch.tensor([[1, 1, 0, 0, 1, 0, 0], [0, 0, 0, 2, 0, 0, 0]], dtype=torch.float64)
    expected = torch.stack(
        [
            3 * vectors[0] @ oracles.gauss_newton(model, examples, [0, 1, 4]),
            2 * vectors[1] @ oracles.gauss_newton(model, examples, [3]),
        ]
    )

    torch.testing.assert_close(curvature.product_by_tangents(batch, vectors, weights), expected)
    torch.testing.assert_close(curvature.product_by_rows(batch, vectors, weights), expected)
    keep_three_rows(monkeypatch, curvature, batch)
    torch.testing.assert_close(curvature.product_by_rows(batch, vectors, weights), expected)


@pytest.mark.parametrize(("frozen", "cut"), [(1, False), (1, True), (None, False)])  # embeddings have no rows
@pytest.mark.parametrize("num_labels", [3, 2])
def test_products_with_the_jacobian_and_its_transpose(num_labels, frozen, cut, monkeypatch):
    examples = batches(tiny_data(7, labels=2))
    model, batch = tiny_model(frozen=frozen, double=True, num_labels=num_labels), examples.take(ROWS)
    curvature = GaussNewton(Objective(model))
    assert (curvature.num_rows_held(batch) > 0) == (frozen == 1)
    if cut:
        keep_three_rows(monkeypatch, curvature, batch)
    jacobians = torch.stack([oracles.jacobian(model, examples.take([row])) for row in ROWS])
    logits = torch.cat([oracles.logits_of(model, examples, row)[0] for row in ROWS]).detach()
    g = torch.einsum("rbc,bcp->brp", curvature.output_roots(logits, batch["labels"]), jacobians)
    vectors = torch.randn(3, g.shape[-1], dtype=torch.float64)
    coefficients = torch.randn(3, 7, num_labels - 1, dtype=torch.float64)

    along = curvature.jacobian_product(batch, vectors)
    combined = curvature.jacobian_transpose_product(batch, coefficients)

    torch.testing.assert_close(along, torch.einsum("brp,qp->qbr", g, vectors), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(combined, torch.einsum("brp,qbr->qp", g, coefficients), rtol=1e-9, atol=1e-9)


def test_rows_are_taken_where_they_are_cheaper_and_fit(monkeypatch):
    examples = batches(tiny_data(7))
    monkeypatch.setattr(GaussNewton, "product_by_rows", lambda *_: "rows")
    monkeypatch.setattr(GaussNewton, "product_by_tangents", lambda *_: "tangents")
    batch, vectors = examples.take(ROWS), torch.zeros(4, 1)

    def way(num_vectors, **settings):
        return GaussNewton(Objective(tiny_model(**settings))).product(batch, vectors[:num_vectors])

    assert way(1) == "rows"
    assert way(3, num_labels=8) == "tangents"  # 7 backward passes, against 3 tangents and 3 backward passes
    assert way(4, num_labels=8) == "rows"
    assert way(4, frozen=None) == "tangents"
    row = 4 * 2 * Objective(tiny_model()).space.size
    for fit, expected in ((8, "rows"), (7, "tangents")):
        monkeypatch.setattr(products, "ROW_MEMORY", fit * row)
        assert way(4) == expected


def cross_entropy(z, label):
    return F.cross_entropy(z[None], label[None], label_smoothing=0.2)


def squared_error(z, label):
    return F.mse_loss(z, label.view_as(z))


@pytest.mark.parametrize(
    ("loss", "labels", "settings"),
    [
        (cross_entropy, torch.tensor([0, 2, 1, -100]), {"num_labels": 3}),
        (cross_entropy, torch.tensor([0, 1, 1, 0]), {"num_labels": 2}),
        (squared_error, torch.linspace(-1, 2, 4), {"num_labels": 1, "problem_type": "regression"}),
        (squared_error, torch.linspace(-1, 2, 12).view(4, 3), {"num_labels": 3, "problem_type": "regression"}),
        (
            F.binary_cross_entropy_with_logits,
            torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]),
            {"num_labels": 3, "problem_type": "multi_label_classification"},
        ),
    ],
)
def test_output_roots_square_to_the_second_derivative_of_the_loss(loss, labels, settings):
    objective = Objective(tiny_model(**settings), label_smoothing=0.2)
    logits = 3 * torch.randn(4, settings["num_labels"], dtype=torch.float64)
    labels = labels.double() if labels.is_floating_point() else labels

    roots = GaussNewton(objective).output_roots(logits, labels)

    expected = torch.stack([hessian(loss)(z, label) for z, label in zip(logits, labels, strict=True)])
    expected[labels.view(4, -1)[:, 0] == -100] = 0  # an example that the loss ignores
    assert roots.shape == (objective.output_rank({"labels": labels}), *logits.shape)
    torch.testing.assert_close(torch.einsum("rbc,rbd->bcd", roots, roots), expected)


def test_output_roots_of_sure_predictions_keep_their_digits():
    curvature, labels = GaussNewton(Objective(tiny_model(num_labels=3))), torch.zeros(3, dtype=torch.long)
    logits = torch.tensor([[12.0, 0.0, -3.0], [-3.0, 12.0, 0.0], [0.0, -3.0, 12.0]])

    roots = curvature.output_roots(logits, labels)

    expected = torch.stack([oracles.softmax_hessian(z) for z in logits.double()])
    assert expected.abs().max() < 1e-5
    torch.testing.assert_close(torch.einsum("rbc,rbd->bcd", roots, roots).double(), expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("num_labels", [2, 3, 8])
def test_output_roots_move_little_with_the_outputs(num_labels):
    curvature, labels = GaussNewton(Objective(tiny_model(num_labels=num_labels))), torch.zeros(500, dtype=torch.long)
    logits = torch.linspace(0, 10, 500)[:, None] * torch.randn(500, num_labels)

    roots = curvature.output_roots(logits, labels)
    moved = curvature.output_roots(logits * (1 + 1e-6 * torch.randn_like(logits)), labels)

    assert float(((roots - moved).norm(dim=(0, 2)) / roots.norm(dim=(0, 2))).max()) < 1e-4


def test_output_roots_of_nan():
    curvature = GaussNewton(Objective(tiny_model()))

    with pytest.raises(ValueError, match="train_dataset.*NaN"):
        curvature.output_roots(torch.tensor([[0.0, float("nan"), 1.0]]), torch.tensor([0]))


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
