"""The Gram matrix of all Jacobians against the explicit Gauss-Newton matrix, in float64."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from tiny import accelerator, batches, one_process, tiny_data, tiny_model
from torch import nn

from hf_fastif.curvature import CurvatureSample, GaussNewton, gram, jacobian_gram
from hf_fastif.model import Objective


SIZE = 7
CUTS = [np.array([3, 0, 5]), np.array([1, 6]), np.array([2]), np.array([4])]


@pytest.fixture(scope="module")
def examples():
    return batches(tiny_data(SIZE, labels=2))


def gram_of(model, examples, cuts=CUTS, process=None) -> torch.Tensor:
    return jacobian_gram(GaussNewton(Objective(model)), examples, cuts, process or accelerator())


def assert_eigenvalues_agree(matrix, gauss_newton, count, **tolerance):
    """The Gram matrix over N has those of the Gauss-Newton matrix, and zeros."""
    found, expected = torch.linalg.eigvalsh(matrix) / count, torch.linalg.eigvalsh(gauss_newton)
    shared = min(len(found), len(expected))
    torch.testing.assert_close(found[-shared:], expected[-shared:], **{"rtol": 1e-7, "atol": 1e-9} | tolerance)
    assert max(found[:-shared].abs().sum(), expected[:-shared].abs().sum()) < 1e-8 * expected[-1]


@pytest.mark.parametrize(
    ("architecture", "frozen"),
    [
        ("bert", 1),
        ("roberta", 1),
        ("distilbert", 1),
        ("gpt2", 1),
        ("modernbert", 1),
        ("albert", 0),
        ("bert", None),  # with embeddings
        ("gpt2", None),
    ],
)
def test_eigenvalues_are_those_of_the_gauss_newton_matrix(architecture, frozen, examples):
    model = tiny_model(architecture, frozen, double=True)

    # ModernBERT takes its softmax in float32, whatever the model's type.
    tolerance = {"rtol": 1e-4} if architecture == "modernbert" else {}
    assert_eigenvalues_agree(gram_of(model, examples), oracles.gauss_newton(model, examples), SIZE, **tolerance)


@pytest.mark.parametrize(
    ("num_labels", "output_hessian"),
    [
        (1, lambda z: 2 * torch.eye(1, dtype=z.dtype)),  # regression
        (2, oracles.softmax_hessian),
        (8, oracles.softmax_hessian),
    ],
)
def test_heads_with_other_numbers_of_outputs(num_labels, output_hessian, examples):
    model = tiny_model(double=True, num_labels=num_labels)
    expected = oracles.gauss_newton(model, examples, output_hessian=output_hessian)

    matrix = gram_of(model, examples)

    assert len(matrix) == SIZE * max(1, num_labels - 1)
    assert_eigenvalues_agree(matrix, expected, SIZE)


def test_more_rows_than_parameters(examples):
    model = tiny_model(double=True, num_labels=2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "classifier.bias")

    assert_eigenvalues_agree(gram_of(model, examples), oracles.gauss_newton(model, examples), SIZE)


class Scale(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, x):
        return self.factor * x


def test_parameters_of_every_kind_are_counted(examples):
    model = tiny_model(double=True)
    model.dropout = Scale(1.5)  # a layer whose parameter has no dimension
    model.outer = Scale(0.5)  # the same outside of any layer that is called
    model.classifier.register_forward_hook(lambda module, args, output: output * model.outer.factor)
    model.unused = nn.Linear(2, 3).double()
    model.classifier.weight.requires_grad_(False)  # a bias alone
    attention = model.bert.encoder.layer[1].attention.self
    attention.key = attention.query  # shared
    names = [name for name, _ in model.named_parameters() if "factor" in name]
    expected = oracles.gauss_newton(model, examples)
    diagonal = Objective(model).space.split(expected.diagonal())

    assert names == ["dropout.factor", "outer.factor"]
    assert all(float(diagonal[name]) > 1e-2 for name in names)
    assert_eigenvalues_agree(gram_of(model, examples), expected, SIZE)


@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize("frozen", [1, None])
def test_entries_do_not_depend_on_the_cuts(num_labels, frozen, examples):
    model = tiny_model(frozen=frozen, double=True, num_labels=num_labels)
    order = np.concatenate(CUTS)
    whole = gram_of(model, examples, [order])

    for cuts in (CUTS, [order[:1], order[1:]], np.split(order, SIZE)):
        torch.testing.assert_close(gram_of(model, examples, cuts), whole, rtol=1e-9, atol=1e-10)


def test_order_of_the_rows_is_the_order_of_the_examples(examples):
    model = tiny_model(double=True)
    order = np.concatenate(CUTS)
    straight = gram_of(model, examples, [np.arange(SIZE)]).unflatten(0, (SIZE, 2)).unflatten(2, (SIZE, 2))

    turned = gram_of(model, examples).unflatten(0, (SIZE, 2)).unflatten(2, (SIZE, 2))

    torch.testing.assert_close(turned, straight[order][:, :, order], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("frozen", [1, None])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_little_memory_gives_the_same_matrix(architecture, frozen, examples, monkeypatch):
    model = tiny_model(architecture, frozen, double=True)
    whole = gram_of(model, examples)

    for memory, block in ((4096, 5), (20_000, 3), (200_000, 1)):
        monkeypatch.setattr(gram, "MEMORY", memory)
        monkeypatch.setattr(gram, "BLOCK", block)
        torch.testing.assert_close(gram_of(model, examples), whole, rtol=1e-9, atol=1e-10)


def test_little_memory_takes_the_layers_in_groups(examples, monkeypatch):
    passes, captured = [], gram._captured
    monkeypatch.setattr(gram, "_captured", lambda *args: passes.append(len(args[2])) or captured(*args))

    gram_of(tiny_model(), examples)
    assert passes == [10]  # all at once

    passes.clear()
    monkeypatch.setattr(gram, "MEMORY", 4096)
    gram_of(tiny_model(), examples)
    assert len(passes) > 3 and sum(passes) == 10


@pytest.mark.parametrize("processes", [3, 12])  # 12: more than there are layers
def test_parts_of_the_processes_add_up(processes, examples):
    model = tiny_model(frozen=2, double=True)
    model.bert.embeddings.requires_grad_(True)

    parts = [gram_of(model, examples, process=one_process(i, processes)) for i in range(processes)]

    torch.testing.assert_close(sum(parts), gram_of(model, examples), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize("frozen", [1, None])
def test_a_sample_multiplies_with_the_same_jacobian(num_labels, frozen):
    examples, model = batches(tiny_data(20, labels=2)), tiny_model(frozen=frozen, double=True, num_labels=num_labels)
    sample = CurvatureSample(GaussNewton(Objective(model)), examples, 20, 4, seed=0, accelerator=accelerator())
    coefficients = torch.randn(2, 20, num_labels - 1, dtype=torch.float64)

    through = sample.jacobian_product(sample.jacobian_transpose_product(coefficients))

    matrix = gram_of(model, examples, sample.batches)
    torch.testing.assert_close(through.flatten(1), coefficients.flatten(1) @ matrix, rtol=1e-8, atol=1e-8)
