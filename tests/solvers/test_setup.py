"""Every solver through the trainer: the same answer, fitted once, and clear errors."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from tiny import batches, tiny_data, tiny_model, tiny_trainer

from hf_fastif.curvature import CurvatureSample, KroneckerFit
from hf_fastif.solvers import ekfac, exact
from hf_fastif.solvers import setup as solving


TRAIN, QUERIES = tiny_data(40), tiny_data(3, seed=1)
CONVERGED = {
    "sdca": {"sdca_visits": 1600, "influence_batch_size": 8},
    "cg": {"cg_samples": 40, "cg_steps": 100, "solver_tolerance": 1e-5},
    "lissa": {"lissa_batch_size": 40, "lissa_depth": 250},
    "exact": {},
}


def trainer_of(tmp_path, model=None, **settings):
    return tiny_trainer(tmp_path, model if model is not None else tiny_model(frozen=2), TRAIN, damping=1.0, **settings)


def truth(damping=1.0):
    model = tiny_model(frozen=2, double=True)
    matrix = oracles.gauss_newton(model, batches(TRAIN))
    system = matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)
    return torch.linalg.solve(system, oracles.loss_gradients(model, batches(QUERIES)).T).T.float()


@pytest.mark.parametrize("solver", CONVERGED)
def test_every_solver_gives_the_damped_inverse(tmp_path, solver):
    found = trainer_of(tmp_path, solver=solver, **CONVERGED[solver]).compute_s_test(QUERIES)
    expected = truth()
    assert ((found.vectors - expected).norm(dim=1) < 5e-3 * expected.norm(dim=1)).all()
    assert found.residual.max() < 0.03


def test_a_whole_sketch_gives_its_scores_on_the_training_set(tmp_path):
    trainer = trainer_of(tmp_path, solver="sketch", index_factory="Flat")
    gradients = oracles.loss_gradients(tiny_model(frozen=2, double=True), batches(TRAIN)).float()
    expected = (-truth() @ gradients.T).numpy()
    tolerance = {"rtol": 0.01, "atol": 2e-3 * np.abs(expected).max()}
    np.testing.assert_allclose(trainer.compute_influence(QUERIES), expected, **tolerance)
    found = trainer.compute_s_test(QUERIES)
    np.testing.assert_allclose(-found.vectors @ gradients.T, expected, **tolerance)
    assert found.residual.max() < 0.1  # nearly nothing is outside of the sketch


@pytest.mark.parametrize("solver", ["lissa", "cg"])
def test_preconditioned_solvers_give_it_too(tmp_path, solver):
    settings = CONVERGED[solver] | {"preconditioner": "ekfac"}
    found = trainer_of(tmp_path, solver=solver, **settings).compute_s_test(QUERIES)
    expected = truth()
    assert ((found.vectors - expected).norm(dim=1) < 2e-2 * expected.norm(dim=1)).all()


def test_dual_of_the_trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "MAX_PRIMAL", 10)
    found = trainer_of(tmp_path, solver="exact").compute_s_test(QUERIES)
    torch.testing.assert_close(found.vectors, truth(), rtol=1e-3, atol=1e-4)


def test_weight_decay_as_part_of_lambda(tmp_path):
    trainer = trainer_of(tmp_path, solver="exact", weight_decay=0.5, weight_decay_in_damping=True)
    found = trainer.compute_s_test(QUERIES)
    assert found.damping == 1.5
    torch.testing.assert_close(found.vectors, truth(1.5), rtol=1e-3, atol=1e-4)


def test_identity_is_the_product_of_gradients(tmp_path):
    scores = trainer_of(tmp_path, solver="identity").compute_influence(QUERIES)
    model = tiny_model(frozen=2, double=True)
    gradients = [oracles.loss_gradients(model, batches(data)) for data in (QUERIES, TRAIN)]
    np.testing.assert_allclose(scores, -(gradients[0] @ gradients[1].T), rtol=1e-3, atol=1e-4)


def few_in_layers():
    """A model most of whose parameters are in no layer, so that a capture does not see them."""
    model = tiny_model(frozen=1)
    model.adapter = torch.nn.Parameter(torch.ones(100_000))
    return model


def test_auto_is_the_sketch_where_gradients_are_captured_and_iterative_elsewhere(tmp_path):
    def chosen(model, **settings):
        trainer = trainer_of(tmp_path, model, **settings)
        with trainer.session() as session:
            setup = session.setup()
            return setup.name, setup.iterative

    assert chosen(tiny_model(frozen=1)) == ("sketch", "sdca")
    assert chosen(tiny_model(frozen=None)) == ("sketch", "lissa")
    assert chosen(few_in_layers()) == ("lissa", "lissa")
    assert chosen(tiny_model(frozen=1), curvature="hessian") == ("lissa", "lissa")
    with pytest.raises(ValueError, match="solver='sdca'.*freeze.*solver='lissa' or 'cg'"):
        trainer_of(tmp_path, tiny_model(frozen=None), solver="sdca").compute_s_test(QUERIES)


def test_factors_are_fitted_once_and_kept_on_disk(tmp_path, monkeypatch):
    first = trainer_of(tmp_path, solver="ekfac").compute_s_test(QUERIES)
    assert (tmp_path / "influence" / "ekfac.safetensors").is_file()

    monkeypatch.setattr(KroneckerFit, "bases", lambda _: pytest.fail("fitted again"))
    again = trainer_of(tmp_path, solver="ekfac").compute_s_test(QUERIES)
    assert torch.equal(first.vectors, again.vectors)

    monkeypatch.undo()
    model = tiny_model(frozen=2)
    model.classifier.bias.data[0] += 1
    changed = trainer_of(tmp_path, model, solver="ekfac").compute_s_test(QUERIES)
    assert not torch.allclose(changed.vectors, first.vectors, rtol=1e-2)


def test_residuals_of_ekfac_hold_few_queries_in_memory(tmp_path, monkeypatch):
    together = trainer_of(tmp_path, solver="ekfac").compute_s_test(QUERIES).residual
    residual, sizes = CurvatureSample.residual, []

    def watched(sample, vectors, *others):
        sizes.append(len(vectors))
        return residual(sample, vectors, *others)

    monkeypatch.setattr(CurvatureSample, "residual", watched)
    monkeypatch.setattr(ekfac, "AT_ONCE", 2)
    apart = trainer_of(tmp_path, solver="ekfac").compute_s_test(QUERIES).residual
    assert sizes == [2, 1]
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=0)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_ekfac_damps_each_layer_by_a_tenth_of_its_mean_eigenvalue(tmp_path, decay):
    model = tiny_model(frozen=1)
    model.unused = torch.nn.Parameter(torch.ones(3))  # without any curvature
    settings = {"weight_decay": decay, "weight_decay_in_damping": decay > 0}
    trainer = tiny_trainer(tmp_path, model, TRAIN, solver="ekfac", **settings)
    gradients = trainer_of(tmp_path, model, solver="identity").compute_s_test(QUERIES).vectors
    found = trainer.compute_s_test(QUERIES)
    with trainer.session() as session:
        factors, space = session.setup().factors(), session.objective.space
        means = {block.layer.names: block.eigenvalues.mean() for block in factors.blocks}
        means |= {(name,): values.mean() for name, values in factors.diagonal.items() if name != "unused"}
        directions = torch.zeros_like(gradients)
        for names, mean in means.items():
            damping = float(0.1 * mean + decay)
            solved = space.split(factors.solve(space, gradients, damping))
            for name in names:
                space.split(directions)[name].copy_(solved[name])
        # The length of each solution minimizes its quadratic form, with the damping of other solvers.
        curved = directions @ oracles.gauss_newton(model, batches(TRAIN)) + session.setup().damping * directions
        lengths = (gradients * directions).sum(dim=1) / (curved * directions).sum(dim=1)
        torch.testing.assert_close(found.vectors, lengths[:, None] * directions, rtol=1e-3, atol=1e-5)
        assert (space.split(found.vectors)["unused"] == 0.0).all()
        sizes = {names: sum(space.parameters[name].numel() for name in names) for names in means}
    expected = sum(0.1 * float(mean) * sizes[names] for names, mean in means.items()) / sum(sizes.values())
    assert found.damping == pytest.approx(expected + decay, rel=1e-2)
    assert torch.isfinite(found.residual).all()
    summary = trainer.find_influential(QUERIES, num_neighbors=None).summary
    assert summary.solver == "EK-FAC fitted to 40 examples, each layer damped by a tenth of its mean eigenvalue"
    assert summary.damping_by_layer and summary.damping == pytest.approx(found.damping)


def test_spectrum_is_computed_once_for_a_model(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, tiny_model(frozen=2), TRAIN, solver="sdca", sdca_visits=8)
    trainer.compute_s_test(QUERIES)
    monkeypatch.setattr(solving.CurvatureSample, "spectrum", lambda _: pytest.fail("computed again"))
    trainer.compute_s_test(QUERIES)
    trainer.model.classifier.bias.data += 1
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        trainer.compute_s_test(QUERIES)


def test_bf16_ranks_as_float32_does_and_leaves_float32_exact(tmp_path):
    exact_scores = trainer_of(tmp_path, solver="exact").compute_influence(QUERIES)
    trainer = trainer_of(tmp_path, solver="sdca", influence_bf16=True, **CONVERGED["sdca"])
    rough = trainer.compute_influence(QUERIES)
    assert min(np.corrcoef(one, other)[0, 1] for one, other in zip(exact_scores, rough, strict=True)) > 0.98
    assert not np.allclose(exact_scores, rough, rtol=1e-4)
    trainer.args.influence_bf16, trainer.args.solver = False, "exact"
    np.testing.assert_allclose(trainer.compute_influence(QUERIES), exact_scores, rtol=1e-4, atol=1e-6)


def test_model_trained_in_bf16_gives_float32_products(tmp_path):
    trainer = trainer_of(tmp_path, solver="exact", bf16=True, max_steps=1, learning_rate=0.0, save_strategy="no")
    trainer.train()
    plain = trainer_of(tmp_path, solver="exact").compute_influence(QUERIES)
    np.testing.assert_allclose(trainer.compute_influence(QUERIES), plain, rtol=1e-4, atol=1e-6)


def test_description_names_the_settings(tmp_path):
    trainer = trainer_of(tmp_path, solver="cg", preconditioner="ekfac")
    with trainer.session() as session:
        assert session.setup().describe() == "conjugate gradient on 40 examples, preconditioned by EK-FAC"
