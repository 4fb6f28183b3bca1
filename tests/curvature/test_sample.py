"""Eigenvalues and residuals against dense linear algebra; what damping follows from them."""

from __future__ import annotations

import itertools

import numpy as np
import oracles
import pytest
import torch
from tiny import accelerator, batches, one_process, tiny_data, tiny_model

from hf_fastif.curvature import CurvatureSample, GaussNewton, Hessian, Spectrum
from hf_fastif.curvature.sample import squared_residual
from hf_fastif.model import Objective


def sample_of(curvature, data, batch_size=3) -> CurvatureSample:
    return CurvatureSample(curvature, batches(data), len(data), batch_size, seed=0, accelerator=accelerator())


@pytest.mark.parametrize("frozen", [1, 2])
def test_all_eigenvalues_of_the_gauss_newton_matrix(frozen):
    data, model = tiny_data(11), tiny_model(double=True, frozen=frozen)
    exact = torch.linalg.eigvalsh(oracles.gauss_newton(model, batches(data))).flip(0)[:22].numpy()

    spectrum = sample_of(GaussNewton(Objective(model)), data).spectrum()

    np.testing.assert_allclose(spectrum.eigenvalues, exact, rtol=1e-8, atol=1e-12)
    assert spectrum.largest == pytest.approx(exact[0])
    assert spectrum.smallest == 0


def test_eigenvalues_of_a_sample_are_those_of_its_examples():
    examples, model = batches(tiny_data(30)), tiny_model(double=True)
    sample = CurvatureSample(GaussNewton(Objective(model)), examples, 6, 4, 0, accelerator())
    matrix = oracles.gauss_newton(model, examples, np.concatenate(sample.batches))

    found = sample.spectrum()

    np.testing.assert_allclose(found.eigenvalues, torch.linalg.eigvalsh(matrix).flip(0)[:12].numpy(), rtol=1e-8)


def test_both_ends_of_the_hessian():
    data, model = tiny_data(11), tiny_model(double=True, frozen=2)
    exact = torch.linalg.eigvalsh(oracles.hessian(model, batches(data)))
    assert exact.min() < -1e-3  # indefinite, or there is nothing to see

    spectrum = sample_of(Hessian(Objective(model)), data).spectrum()

    assert len(spectrum.eigenvalues) == 2
    assert spectrum.largest == pytest.approx(float(exact.max()), rel=0.02)
    assert spectrum.smallest == pytest.approx(float(exact.min()), rel=0.02)


def test_both_ends_of_a_hessian_too_small_for_lanczos():
    data, model = tiny_data(11), tiny_model(double=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "classifier.bias")
    exact = torch.linalg.eigvalsh(oracles.hessian(model, batches(data)))

    spectrum = sample_of(Hessian(Objective(model)), data).spectrum()

    np.testing.assert_allclose(spectrum.eigenvalues, exact[[-1, 0]].numpy(), atol=1e-12)


def test_product_and_residual_do_not_depend_on_the_batch_size():
    data, model = tiny_data(11), tiny_model(double=True)
    matrix = oracles.gauss_newton(model, batches(data))
    v, x = torch.randn(2, 3, len(matrix), dtype=torch.float64)
    expected = (v - x @ matrix - 0.3 * x).norm(dim=1) / v.norm(dim=1)

    for batch_size in (1, 4, 11):
        sample = sample_of(GaussNewton(Objective(model)), data, batch_size)
        torch.testing.assert_close(sample.residual(v, x, damping=0.3), expected)


def test_parts_of_the_processes_add_up():
    data, model = tiny_data(11), tiny_model(double=True, frozen=2)
    whole = sample_of(GaussNewton(Objective(model)), data)
    vectors = torch.randn(3, Objective(model).space.size, dtype=torch.float64)
    coefficients = torch.randn(3, 11, 2, dtype=torch.float64)
    parts = [
        CurvatureSample(whole.curvature, whole.examples, 11, 3, seed=0, accelerator=one_process(i, 3))
        for i in range(3)
    ]

    for name, argument in {
        "product": vectors,
        "jacobian_product": vectors,
        "jacobian_transpose_product": coefficients,
    }.items():
        summed = sum(getattr(part, name)(argument) for part in parts)
        torch.testing.assert_close(summed, getattr(whole, name)(argument))


def test_sample_is_a_seeded_part_of_the_training_set():
    examples, curvature = batches(tiny_data(30)), GaussNewton(Objective(tiny_model()))

    def rows(seed):
        return np.concatenate(CurvatureSample(curvature, examples, 10, 4, seed, accelerator()).batches)

    assert len(set(rows(0))) == 10
    assert (rows(0) == rows(0)).all()
    assert set(rows(0)) != set(rows(1))


def test_residual_on_samples_estimates_that_on_the_whole():
    data, model = tiny_data(60), tiny_model(double=True, frozen=2)
    examples, curvature = batches(data), GaussNewton(Objective(model))
    matrix = oracles.gauss_newton(model, examples)
    damping = 0.05 * float(torch.linalg.eigvalsh(matrix).max())
    v = oracles.loss_gradients(model, examples)[:1]
    x = 0.7 * torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=v.dtype), v.T).T
    whole = float((v - x @ matrix - damping * x).norm() / v.norm())

    samples = [CurvatureSample(curvature, examples, 20, 10, seed, accelerator()) for seed in range(60)]
    squares = [float(sample.residual(v, x, damping)) ** 2 for sample in samples]
    naive = [float((v - s.product(x) - damping * x).norm() / v.norm()) ** 2 for s in samples]

    assert whole == pytest.approx(0.3, abs=1e-6)
    assert np.mean(squares) == pytest.approx(whole**2, rel=0.5)
    assert np.mean(naive) > 1.5 * whole**2


@pytest.mark.parametrize("curvature", [GaussNewton, Hessian])
def test_nan_in_training_losses_is_an_error(curvature):
    model = tiny_model()
    model.classifier.weight.data[0, 0] = float("nan")

    with pytest.raises(ValueError, match="train_dataset.*NaN"):
        sample_of(curvature(Objective(model)), tiny_data(5)).spectrum()


def spectrum_of(*eigenvalues: float) -> Spectrum:
    return Spectrum(np.array(eigenvalues))


def test_ends_of_a_spectrum():
    assert spectrum_of(20.0, 3.0, 1e-3).largest == 20
    assert spectrum_of(20.0, 3.0, 1e-3).smallest == 0
    assert spectrum_of(20.0, -1.0).smallest == -1


def test_effective_dimension_counts_the_eigenvalues_above_the_damping():
    assert spectrum_of(9.0, 4.0, 1.0, 0.0).effective_dimension(1.0) == pytest.approx(0.9 + 0.8 + 0.5)
    assert spectrum_of(9.0, 4.0, 1.0, 0.0).effective_dimension(1e-9) == pytest.approx(3)
    assert spectrum_of(9.0, 4.0, 1.0, 0.0).effective_dimension(1e9) == pytest.approx(0, abs=1e-7)


def test_effective_dimension_is_the_trace_of_the_shrinkage():
    data, model = tiny_data(11), tiny_model(double=True, frozen=2)
    matrix = oracles.gauss_newton(model, batches(data))
    damped = matrix + 0.3 * torch.eye(len(matrix), dtype=matrix.dtype)

    spectrum = sample_of(GaussNewton(Objective(model)), data).spectrum()

    assert spectrum.effective_dimension(0.3) == pytest.approx(float(torch.linalg.solve(damped, matrix).trace()))


def test_damping_follows_the_spectrum():
    assert spectrum_of(20.0, 3.0).damping("auto") == pytest.approx(0.06)
    assert spectrum_of(20.0, -1.0).damping("auto") == pytest.approx(1.5)
    assert spectrum_of(20.0, -1.0).damping(1.2) == 1.2
    assert spectrum_of(20.0, 0.0).damping(1e-6) == 1e-6
    with pytest.raises(ValueError, match=r"damping=0\.5.*eigenvalue of -1.*above 1\.1"):
        spectrum_of(20.0, -1.0).damping(0.5)
    with pytest.raises(ValueError, match="damping='auto'"):
        spectrum_of(0.0, 0.0).damping("auto")


def test_squared_residual_is_unbiased_for_samples_of_a_small_set():
    """Over all halves of all samples of 4 of 6 vectors, the mean is the square of the mean vector."""
    vectors = torch.randn(6, 5, dtype=torch.float64) + 1
    estimates = []
    for rows in itertools.permutations(range(6), 4):
        one, two = vectors[list(rows[:2])].mean(dim=0), vectors[list(rows[2:])].mean(dim=0)
        estimates.append(float(squared_residual(one[None], two[None], share=4 / 6)))
    assert np.mean(estimates) == pytest.approx(float(vectors.mean(dim=0).square().sum()))
