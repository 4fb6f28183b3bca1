"""Extreme eigenvalues and residuals against dense linear algebra; what damping follows from them."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from tiny import accelerator, batches, tiny_data, tiny_model

from hf_fastif.curvature import CurvatureSample, GaussNewton, Hessian, Spectrum
from hf_fastif.objective import Objective


def sample_of(curvature, data, batch_size=3) -> CurvatureSample:
    return CurvatureSample(curvature, batches(data), len(data), batch_size, seed=0, accelerator=accelerator())


def test_largest_eigenvalue_of_gauss_newton():
    data, model = tiny_data(11), tiny_model(double=True)
    exact = torch.linalg.eigvalsh(oracles.gauss_newton(model, batches(data)))

    spectrum = sample_of(GaussNewton(Objective(model)), data).spectrum()

    assert spectrum.largest == pytest.approx(float(exact.max()), rel=0.02)
    assert spectrum.smallest == 0


def test_both_ends_of_the_hessian():
    data, model = tiny_data(11), tiny_model(double=True, frozen=2)
    exact = torch.linalg.eigvalsh(oracles.hessian(model, batches(data)))
    assert exact.min() < -1e-3  # indefinite, or there is nothing to see

    spectrum = sample_of(Hessian(Objective(model)), data).spectrum()

    assert spectrum.largest == pytest.approx(float(exact.max()), rel=0.02)
    assert spectrum.smallest == pytest.approx(float(exact.min()), rel=0.02)


def test_product_and_residual_do_not_depend_on_the_batch_size():
    data, model = tiny_data(11), tiny_model(double=True)
    matrix = oracles.gauss_newton(model, batches(data))
    v, x = torch.randn(2, 3, len(matrix), dtype=torch.float64)
    expected = (v - x @ matrix - 0.3 * x).norm(dim=1) / v.norm(dim=1)

    for batch_size in (1, 4, 11):
        sample = sample_of(GaussNewton(Objective(model)), data, batch_size)
        torch.testing.assert_close(sample.residual(v, x, damping=0.3), expected)


def test_sample_is_a_seeded_part_of_the_training_set():
    examples, curvature = batches(tiny_data(30)), GaussNewton(Objective(tiny_model()))

    def rows(seed):
        halves = CurvatureSample(curvature, examples, 10, 4, seed, accelerator()).halves
        return np.concatenate([*halves[0], *halves[1]])

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


def test_nan_in_training_losses_is_an_error():
    model = tiny_model()
    model.classifier.weight.data[0, 0] = float("nan")

    with pytest.raises(ValueError, match="train_dataset.*NaN"):
        sample_of(GaussNewton(Objective(model)), tiny_data(5)).spectrum()


def test_damping_follows_the_spectrum():
    assert Spectrum(largest=20.0).damping("auto") == pytest.approx(0.2)
    assert Spectrum(largest=20.0, smallest=-1.0).damping("auto") == pytest.approx(1.5)
    assert Spectrum(largest=20.0, smallest=-1.0).damping(1.2) == 1.2
    with pytest.raises(ValueError, match=r"damping=0\.5.*eigenvalue of -1.*above 1\.1"):
        Spectrum(largest=20.0, smallest=-1.0).damping(0.5)
    with pytest.raises(ValueError, match="damping='auto'"):
        Spectrum(largest=0.0).damping("auto")
