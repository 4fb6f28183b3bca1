"""EK-FAC against the explicit Gauss-Newton matrix, its blocks and its diagonal, in float64."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from problem import kronecker_factors
from tiny import accelerator, batches, tiny_data, tiny_model

from hf_fastif.curvature import GaussNewton, KroneckerBlock, KroneckerFactors, KroneckerFit, captures, kronecker_fit
from hf_fastif.curvature.directions import NUM_RANDOM
from hf_fastif.model import Objective
from hf_fastif.model.parameters import ParameterSpace


SIZE = 7
CUTS = [np.array([3, 0, 5]), np.array([1, 6]), np.array([2]), np.array([4])]
SINGLE = [np.array([row]) for row in range(SIZE)]
MANIFEST = {"model": "abc", "rows": "7"}


@pytest.fixture(scope="module")
def examples():
    return batches(tiny_data(SIZE, labels=2))


def only(model, *parts):
    """Trains no parameters but those whose name holds one of some parts."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))
    return model


def fit(model, examples, cuts=CUTS, seed=0) -> KroneckerFactors:
    return kronecker_factors(GaussNewton(Objective(model)), examples, cuts, seed)


def bases(model, examples, cuts=CUTS, seed=0) -> list[KroneckerBlock]:
    return KroneckerFit(GaussNewton(Objective(model)), examples, cuts, seed, accelerator()).bases()


def example_gradients(model, examples) -> torch.Tensor:
    """The gradients (N, C, P) along directions of the outputs whose squares make up the Gauss-Newton matrix."""
    found = []
    for row in range(len(examples)):
        values, vectors = torch.linalg.eigh(oracles.softmax_hessian(oracles.logits_of(model, examples, row)[0][0]))
        found.append((vectors * values.clamp_min(0).sqrt()).T @ oracles.jacobian(model, examples.take([row])))
    return torch.stack(found).detach()


@pytest.mark.parametrize(
    ("architecture", "frozen", "count"), [("bert", 1, 8 + 2), ("gpt2", 1, 5 + 3), ("bert", None, 14 + 5 + 3)]
)
def test_eigenvalues_are_mean_squares_in_the_eigenbasis(architecture, frozen, count, examples, monkeypatch):
    model = tiny_model(architecture, frozen, double=True)
    partials = ParameterSpace(model).split(example_gradients(model, examples))

    for memory in (captures.STRIP_MEMORY, 1):
        monkeypatch.setattr(captures, "STRIP_MEMORY", memory)
        blocks = fit(model, examples).blocks
        assert len(blocks) == count  # linear layers, norms, embeddings
        for block in blocks:
            rotated = block.output_basis.T @ block.layer.to_matrix(partials)
            if block.layer.kind != "embedding":
                rotated = rotated @ block.input_basis
            torch.testing.assert_close(block.eigenvalues, rotated.square().sum(dim=1).mean(dim=0))


@pytest.mark.parametrize("frozen", [1, None])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "gpt2"])
def test_trace_of_a_block_is_exact_after_either_pass(architecture, frozen, examples):
    model = tiny_model(architecture, frozen, double=True)
    diagonal = ParameterSpace(model).split(oracles.gauss_newton(model, examples).diagonal())

    for block in [*bases(model, examples), *fit(model, examples).blocks]:
        expected = sum(diagonal[name].sum() for name in block.layer.names)
        torch.testing.assert_close(block.eigenvalues.sum(), expected)


def token_covariances(model, examples, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of x x^T and g g^T over the tokens of all examples, each alone and so without padding."""
    module, inner, outer = model.get_submodule(name), 0, 0
    for row in range(len(examples)):
        seen = {}
        hook = module.register_forward_hook(lambda _m, x, y, seen=seen: seen.update(x=x[0][0], y=y))
        logits, _ = oracles.logits_of(model, examples, row)
        hook.remove()
        values, vectors = torch.linalg.eigh(oracles.softmax_hessian(logits[0].detach()))
        roots = (vectors * values.clamp_min(0).sqrt()).T
        gradients = [torch.autograd.grad(logits[0] @ root, seen["y"], retain_graph=True)[0] for root in roots]
        g = torch.stack(gradients).reshape(len(roots), -1, gradients[0].shape[-1])
        if isinstance(module, torch.nn.Embedding):
            x = torch.nn.functional.one_hot(seen["x"], module.num_embeddings).to(g)
        else:
            x = seen["x"].detach().reshape(g.shape[1], -1)
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        x = x[(g != 0).any(dim=2).any(dim=0)]  # nothing is learned from a token that the outputs do not see
        inner, outer = inner + x.T @ x, outer + torch.einsum("rto,rtp->op", g, g)
    return inner, outer


LAYERS = [
    "encoder.layer.1.attention.self.key",
    "encoder.layer.0.output.dense",
    "pooler.dense",
    "embeddings.word_embeddings",
    "embeddings.position_embeddings",
]


@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_bases_are_eigenvectors_of_what_layers_receive_and_get_back_for_each_token(name, num_labels, examples):
    model = tiny_model(double=True, frozen=None, num_labels=num_labels)
    block = next(block for block in bases(model, examples) if block.layer.module == f"bert.{name}")
    inner, outer = token_covariances(model, examples, f"bert.{name}")

    sizes = []
    for basis, covariance in ((block.output_basis, outer), (block.input_basis, inner)):
        basis = torch.eye(len(covariance), dtype=torch.float64) if basis is None else basis
        rotated = basis.T @ covariance @ basis
        torch.testing.assert_close(rotated, rotated.diagonal().diag(), rtol=1e-9, atol=1e-9 * float(rotated.max()))
        torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis), dtype=basis.dtype))
        sizes.append(rotated.diagonal())

    product = torch.outer(*sizes)
    torch.testing.assert_close(
        block.eigenvalues, product * (block.eigenvalues.sum() / product.sum()), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("num_labels", [3, 8])
def test_blocks_do_not_depend_on_the_batches(num_labels, examples):
    model = tiny_model(double=True, frozen=None, num_labels=num_labels)

    one, other = (bases(model, examples, cuts) for cuts in ([np.arange(SIZE)], SINGLE))
    corrected = [fit(model, examples, cuts).blocks for cuts in ([np.arange(SIZE)], SINGLE)]

    assert len(one) == len(other) == 14 + 5 + 3
    for pair in (*zip(one, other, strict=True), *zip(*corrected, strict=True)):
        matrices = [block.output_basis @ block.eigenvalues.sum(dim=1).diag() @ block.output_basis.T for block in pair]
        torch.testing.assert_close(*matrices, rtol=1e-7, atol=1e-9)


def test_every_parameter_is_in_a_block_or_on_the_diagonal(examples):
    model = tiny_model(frozen=None)

    factors = fit(model, examples)

    in_blocks = [name for block in factors.blocks for name in block.layer.names]
    assert sorted([*in_blocks, *factors.diagonal]) == sorted(ParameterSpace(model).parameters)
    assert not factors.diagonal
    assert {"bert.embeddings.word_embeddings.weight", "bert.embeddings.LayerNorm.bias"} <= set(in_blocks)


@pytest.mark.parametrize("num_labels", [2, 3])
def test_diagonal_is_right_in_the_mean_over_seeds(num_labels, examples, monkeypatch):
    monkeypatch.setattr(kronecker_fit, "MAX_VECTOR", 0)
    model = only(
        tiny_model(double=True, num_labels=num_labels), "layer.1.output.LayerNorm", "layer.1.attention.output"
    )
    space = ParameterSpace(model)
    expected = space.split(oracles.gauss_newton(model, examples).diagonal())
    cuts = [np.arange(SIZE)]

    found = [fit(model, examples, cuts, seed).diagonal for seed in range(60)]

    assert set(found[0]) == {name for name in space.parameters if "LayerNorm" in name}
    for name in found[0]:
        estimates, exact = torch.stack([diagonal[name] for diagonal in found]), expected[name]
        assert float((estimates.mean(dim=0) - exact).norm() / exact.norm()) < 0.15
        assert float((estimates - exact).norm(dim=1).median() / exact.norm()) > 0.15  # one alone is not


def test_diagonal_is_exact_where_nothing_is_mixed(examples, monkeypatch):
    monkeypatch.setattr(kronecker_fit, "MAX_VECTOR", 0)
    model = tiny_model(frozen=None, double=True, num_labels=2)
    expected = ParameterSpace(model).split(oracles.gauss_newton(model, examples).diagonal())

    found = fit(model, examples, SINGLE).diagonal

    assert len(found) == 10  # the weights and biases of five norms
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], rtol=1e-9, atol=1e-12)


def test_blocks_do_not_depend_on_the_batch_size(examples):
    model = only(tiny_model(double=True), "layer.1.output.dense", "pooler", "classifier")
    vectors = torch.randn(3, ParameterSpace(model).size, dtype=torch.float64)

    one, other = (fit(model, examples, cuts) for cuts in ([np.arange(SIZE)], SINGLE))

    assert len(one.blocks) == 3 and not one.diagonal
    solved = [factors.solve(ParameterSpace(model), vectors, 0.1) for factors in (one, other)]
    torch.testing.assert_close(*solved, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_solution_is_symmetric_and_between_zero_and_that_without_curvature(architecture, examples):
    space = ParameterSpace(tiny_model(architecture, double=True))
    factors = fit(tiny_model(architecture, double=True), examples)

    inverse = factors.solve(space, torch.eye(space.size, dtype=torch.float64), 0.2)

    torch.testing.assert_close(inverse, inverse.T)
    eigenvalues = torch.linalg.eigvalsh(inverse)
    assert 0 < float(eigenvalues[0]) < 0.1 * float(eigenvalues[-1])
    assert float(eigenvalues[-1]) <= 1 / 0.2 + 1e-9


def test_right_hand_sides_do_not_disturb_each_other(examples):
    space, factors = ParameterSpace(tiny_model(double=True)), fit(tiny_model(double=True), examples)
    vectors = torch.randn(4, space.size, dtype=torch.float64)

    alone = torch.cat([factors.solve(space, vector[None], 0.2) for vector in vectors])

    torch.testing.assert_close(factors.solve(space, vectors, 0.2), alone)


@pytest.mark.parametrize("num_labels", [2, 3])
def test_the_block_of_a_norm_is_exact(num_labels, examples):
    model = only(tiny_model(double=True, num_labels=num_labels), "layer.1.output.LayerNorm")
    matrix = oracles.gauss_newton(model, examples)
    vectors = torch.randn(3, len(matrix), dtype=torch.float64)
    expected = torch.linalg.solve(matrix + 1e-3 * torch.eye(len(matrix), dtype=matrix.dtype), vectors.T).T
    found = fit(model, examples).solve(ParameterSpace(model), vectors, 1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_no_linear_layer_leaves_the_diagonal(examples, monkeypatch):
    monkeypatch.setattr(kronecker_fit, "MAX_VECTOR", 0)
    model = only(tiny_model(double=True, num_labels=2), "layer.1.output.LayerNorm", "classifier.bias")
    vectors = torch.randn(2, ParameterSpace(model).size, dtype=torch.float64)
    diagonal = oracles.gauss_newton(model, examples).diagonal()

    factors = fit(model, examples, SINGLE)

    assert not factors.blocks
    torch.testing.assert_close(factors.solve(ParameterSpace(model), vectors, 0.3), vectors / (diagonal + 0.3))


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_saved_factors_solve_as_before(architecture, tmp_path, examples):
    space = ParameterSpace(tiny_model(architecture))
    factors = fit(tiny_model(architecture), examples)
    vectors, path = torch.randn(2, space.size), tmp_path / "cache" / "ekfac.safetensors"

    factors.save(path, MANIFEST)
    loaded = KroneckerFactors.load(path, MANIFEST, torch.device("cpu:0"))  # as one of several processes has it

    assert [block.layer for block in loaded.blocks] == [block.layer for block in factors.blocks]
    # Bases come back in another layout, so their products may round differently.
    torch.testing.assert_close(
        loaded.solve(space, vectors, 0.1), factors.solve(space, vectors, 0.1), rtol=1e-5, atol=1e-5
    )


def test_factors_of_something_else_are_not_loaded(tmp_path, examples):
    path = tmp_path / "ekfac.safetensors"
    fit(tiny_model(frozen=2), examples).save(path, MANIFEST)

    for manifest in (MANIFEST | {"rows": "8"}, MANIFEST | {"damping": "1"}):
        assert KroneckerFactors.load(path, manifest, torch.device("cpu")) is None
    assert KroneckerFactors.load(path, {"model": "abc"}, torch.device("cpu")) is not None


def test_many_outputs_are_mixed_without_changing_the_expected_trace(examples):
    model = only(tiny_model(double=True, num_labels=8), "pooler", "classifier")
    assert Objective(model).output_rank(examples.take([0])) > NUM_RANDOM
    diagonal = ParameterSpace(model).split(oracles.gauss_newton(model, examples).diagonal())
    layers = ("bert.pooler.dense", "classifier")
    expected = torch.stack([diagonal[f"{name}.weight"].sum() + diagonal[f"{name}.bias"].sum() for name in layers])

    found = torch.stack(
        [torch.stack([b.eigenvalues.sum() for b in fit(model, examples, seed=seed).blocks]) for seed in range(40)]
    )

    assert found.std(dim=0).min() > 1e-3 * expected.min()  # mixed at all
    torch.testing.assert_close(found.mean(dim=0), expected, rtol=0.05, atol=0)


def test_the_seed_alone_decides_the_mixing(examples):
    model = only(tiny_model(double=True, num_labels=8), "pooler", "classifier")
    one, same, other = (fit(model, examples, seed=seed).blocks[0].eigenvalues for seed in (0, 0, 1))

    assert torch.equal(one, same)
    assert not torch.allclose(one, other, rtol=1e-3)
