"""Sketches against dense linear algebra: entries, curvature and solutions of explicit matrices, in float64."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from problem import Problem
from tiny import accelerator, batches, tiny_data, tiny_model

from hf_fastif.curvature import (
    DirectionEntries,
    Entries,
    GaussNewton,
    KroneckerFit,
    Sketch,
    leading_entries,
)
from hf_fastif.model import Objective


SIZE = 9
ROWS = list(range(SIZE))
ALL = 1 << 40


@pytest.fixture(scope="module")
def examples():
    return batches(tiny_data(SIZE))


def blocks_of(model, examples):
    cuts = [np.array([3, 0, 5, 8]), np.array([1, 6, 7]), np.array([2, 4])]
    return KroneckerFit(GaussNewton(Objective(model)), examples, cuts, 0, accelerator()).bases()


def entries_of(model, examples, size: int = ALL) -> Entries:
    return leading_entries(blocks_of(model, examples), size)


def matrix_of(entries: Entries, space) -> torch.Tensor:
    """Q (P, d): the directions of the parameters that entries are coordinates along."""
    return entries.to_vectors(space, torch.eye(entries.size, dtype=torch.float64)).T


def exact_sketch(problem: Problem, entries: Entries, size: int = ALL) -> Sketch:
    basis = matrix_of(entries, problem.space)
    values, vectors = torch.linalg.eigh(basis.T @ problem.matrix @ basis)
    order = values.argsort(descending=True)[:size]
    return Sketch(entries, vectors[:, order], values[order])


@pytest.mark.parametrize(("architecture", "frozen"), [("bert", 2), ("bert", None), ("gpt2", 1), ("distilbert", None)])
def test_entries_are_coordinates_of_the_gradients_along_orthonormal_directions(architecture, frozen, examples):
    model = tiny_model(architecture, frozen, double=True)
    objective, entries = Objective(model), entries_of(model, examples, 700)
    basis, gradients = matrix_of(entries, objective.space), oracles.loss_gradients(model, examples)

    assert basis.shape == (objective.space.size, entries.size)
    torch.testing.assert_close(basis.T @ basis, torch.eye(entries.size, dtype=torch.float64))
    of_vectors = entries.of_vectors(objective.space, gradients)
    torch.testing.assert_close(of_vectors, gradients @ basis, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(entries.of_losses(objective, examples.take(ROWS)), of_vectors, rtol=1e-6, atol=1e-8)
    if frozen is None:
        assert "embedding" in {layer.kind for layer in entries.layers}


def test_all_entries_together_are_the_whole_gradient(examples):
    model = tiny_model(frozen=None, double=True)
    space, entries = Objective(model).space, entries_of(model, examples)
    gradients = oracles.loss_gradients(model, examples)

    again = entries.to_vectors(space, entries.of_vectors(space, gradients))

    # Rows of tables that no example looks up, and directions without any curvature, have no entries.
    assert entries.size < space.size
    torch.testing.assert_close(again, gradients, rtol=1e-5, atol=1e-5)


def test_vectors_go_to_entries_and_back(examples):
    model = tiny_model(frozen=None, double=True)
    space, entries = Objective(model).space, entries_of(model, examples, 300)
    values = torch.randn(4, entries.size, dtype=torch.float64)

    torch.testing.assert_close(entries.of_vectors(space, entries.to_vectors(space, values)), values)


def test_the_entries_of_most_curvature_are_chosen_over_all_layers(examples):
    model = tiny_model(frozen=None, double=True)
    blocks = blocks_of(model, examples)
    entries = leading_entries(blocks, 100)
    eigenvalues = torch.cat([block.eigenvalues.flatten() for block in blocks])
    chosen = {block.layer: block for block in blocks}

    values = []
    for part in entries.parts:
        block = chosen[part.layer]
        basis = block.output_basis
        outputs = [int((basis - column[:, None]).abs().amax(dim=0).argmin()) for column in part.output_basis.T]
        if part.layer.kind == "embedding":
            inputs = part.input_basis.tolist()
        else:
            columns = part.input_basis.T
            inputs = [int((block.input_basis - each[:, None]).abs().amax(dim=0).argmin()) for each in columns]
        values.append(block.eigenvalues[outputs][:, inputs].flatten()[part.entries])

    assert entries.size == 100
    assert torch.equal(torch.cat(values).sort().values, eigenvalues.topk(100).values.sort().values)
    assert 1 < len(entries.parts) < len(blocks)


def test_entries_that_no_example_has_are_left_out(examples):
    model = tiny_model(double=True)
    with torch.no_grad():  # half of the output layer's input is always zero
        model.bert.pooler.dense.weight[:4] = 0
        model.bert.pooler.dense.bias[:4] = 0
    blocks = blocks_of(model, examples)
    part = next(part for part in leading_entries(blocks, ALL).parts if part.layer.module == "classifier")

    assert len(part.entries) == 2 * (4 + 1)  # differences of outputs, inputs and the bias


def test_a_loss_without_curvature_is_refused(examples):
    model = tiny_model()
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = torch.tensor([200.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="index_features='gradient_sketch': the training loss has no curvature"):
        entries_of(model, examples)
    with pytest.raises(ValueError, match="index_features='gradient_sketch': the training loss has no curvature"):
        leading_entries([], 10)


@pytest.mark.parametrize("settings", [{}, {"num_labels": 2, "architecture": "distilbert"}, {"architecture": "gpt2"}])
def test_rows_of_the_curvature_have_the_exact_matrix_inside_the_sketch(settings):
    problem = Problem(**settings)
    entries = entries_of(problem.model, problem.examples)
    basis, batch = matrix_of(entries, problem.space), problem.examples.take(range(problem.size))

    found = entries.of_losses_and_curvature(problem.curvature, batch, range(problem.size), 0)

    rows = found.curvature_rows().double()
    expected = basis.T @ problem.matrix @ basis
    assert (rows.T @ rows / problem.size - expected).norm() < 1e-3 * expected.norm()  # entries have eleven bits
    losses = oracles.loss_gradients(problem.model, problem.examples) @ basis
    assert ((found.losses() - losses).norm(dim=1) < 1e-3 * losses.norm(dim=1)).all()


def test_few_entries_have_that_part_of_the_matrix(examples):
    problem = Problem(frozen=None)
    entries = entries_of(problem.model, problem.examples, 60)
    basis, batch = matrix_of(entries, problem.space), problem.examples.take(range(problem.size))

    rows = entries.of_losses_and_curvature(problem.curvature, batch, range(problem.size), 0).curvature_rows().double()

    expected = basis.T @ problem.matrix @ basis
    assert entries.size == 60
    assert (rows.T @ rows / problem.size - expected).norm() < 1e-3 * expected.norm()


def test_many_outputs_have_it_in_the_mean_over_seeds():
    problem = Problem(num_labels=8)
    entries = entries_of(problem.model, problem.examples, 40)
    basis, batch = matrix_of(entries, problem.space), problem.examples.take(range(problem.size))
    expected = basis.T @ problem.matrix @ basis

    def estimate(seed: int) -> torch.Tensor:
        found = entries.of_losses_and_curvature(problem.curvature, batch, range(problem.size), seed)
        assert found.entries.shape == (problem.size, 3, 40)
        rows = found.curvature_rows().double()
        return rows.T @ rows / problem.size

    estimates = torch.stack([estimate(seed) for seed in range(150)])
    assert (estimates.mean(dim=0) - expected).norm() < 0.1 * expected.norm()
    assert (estimates[0] - expected).norm() > 0.15 * expected.norm()


def test_a_whole_sketch_solves_the_damped_system_exactly():
    problem = Problem()
    entries = entries_of(problem.model, problem.examples)
    sketch = exact_sketch(problem, entries)
    basis = matrix_of(entries, problem.space)
    projected = problem.vectors @ basis @ basis.T  # on what examples of the training set can have
    torch.testing.assert_close(projected, problem.vectors, rtol=1e-4, atol=1e-5)

    coordinates = sketch.solve(sketch.of_vectors(problem.space, problem.vectors), problem.damping)

    found = sketch.to_vectors(problem.space, coordinates)
    torch.testing.assert_close(found, problem.exact() @ basis @ basis.T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sketch.of_vectors(problem.space, found), coordinates, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size", [1, 5, 20])
def test_fewer_directions_are_the_leading_eigenvectors(size):
    problem = Problem()
    entries = entries_of(problem.model, problem.examples)
    whole, sketch = exact_sketch(problem, entries), exact_sketch(problem, entries, size)

    few, many = (
        each.of_losses(problem.curvature.objective, problem.examples.take([0, 3])) for each in (sketch, whole)
    )

    assert sketch.size == size
    torch.testing.assert_close(few, many[:, :size])
    torch.testing.assert_close(sketch.eigenvalues, problem.eigenvalues.flip(0)[:size], rtol=1e-6, atol=1e-8)


def test_products_of_coordinates_are_scores_inside_the_sketch():
    problem = Problem()
    sketch = exact_sketch(problem, entries_of(problem.model, problem.examples), 15)
    objective, batch = problem.curvature.objective, problem.examples.take(range(problem.size))
    directions = sketch.to_vectors(problem.space, torch.eye(15, dtype=torch.float64))
    gradients = oracles.loss_gradients(problem.model, problem.examples)
    inside = directions @ problem.matrix @ directions.T + problem.damping * torch.eye(15, dtype=torch.float64)
    expected = gradients @ directions.T @ torch.linalg.inv(inside) @ directions @ gradients.T

    coordinates = sketch.of_losses(objective, batch)

    torch.testing.assert_close(
        sketch.solve(coordinates, problem.damping) @ coordinates.T, expected, rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_sketch_in_single_precision_serves_models_of_any(dtype, examples):
    model = tiny_model().to(dtype)
    objective, entries = Objective(model), entries_of(model, examples, 30)
    sketch = Sketch(entries, torch.linalg.qr(torch.randn(30, 20))[0], torch.linspace(2, 1, 20))
    gradients = oracles.loss_gradients(tiny_model(double=True), examples).to(objective.space.dtype)

    found = sketch.of_losses(objective, examples.take(ROWS))
    vectors = sketch.to_vectors(objective.space, found)

    assert found.dtype == vectors.dtype == objective.space.dtype
    expected = sketch.of_vectors(objective.space, gradients)
    tolerance = {torch.bfloat16: 0.2, torch.float32: 1e-4, torch.float64: 1e-6}[dtype]
    assert (found - expected).norm() < tolerance * expected.norm()
    torch.testing.assert_close(sketch.of_vectors(objective.space, vectors), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1.0, 1e-12, 1e-25, 1e-37, 1e20, 1e30])
def test_entries_of_any_size_survive_half_precision(size):
    torch.manual_seed(0)
    entries = size * torch.randn(3, 2, 500)
    of_loss, of_curvature = torch.randn(3, 2), torch.randn(3, 2, 2)

    found = DirectionEntries.of(entries, of_loss, of_curvature)

    expected = torch.einsum("bk,bkd->bd", of_loss, entries)
    assert torch.isfinite(found.entries).all()
    assert (found.losses() - expected).div(size).norm() < 1e-3 * expected.div(size).norm()


def test_one_large_entry_and_no_entry_at_all_survive_half_precision():
    entries = torch.zeros(2, 1, 8192)
    entries[0, 0, 5] = 3e4

    found = DirectionEntries.of(entries, torch.ones(2, 1), torch.ones(2, 1, 1))

    torch.testing.assert_close(found.losses(), entries[:, 0], rtol=1e-3, atol=0)
    assert not found.curvature_rows()[1].any()


def test_entries_are_written_as_tensors_and_read_again(examples):
    entries = entries_of(tiny_model(frozen=None), examples, 20)
    layers = [block.layer for block in blocks_of(tiny_model(frozen=None), examples)]

    again = Entries.from_tensors(layers, entries.to_tensors())

    assert again.layers == entries.layers != layers
    for one, other in zip(again.parts, entries.parts, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("output_basis", "entries"))
        assert torch.equal(one.input_basis, other.input_basis)
