"""The page that `trainer.diagnose` prints, and its figure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from tiny import batches, tiny_data, tiny_model, tiny_trainer

from hf_fastif.checkpoints import Checkpoint
from hf_fastif.diagnosis.signals import CheckpointSignal
from hf_fastif.solvers.setup import SolverSetup


TRAIN, QUERIES = tiny_data(40), tiny_data(3, seed=1)


def diagnosis_of(tmp_path, **settings):
    settings = {"sdca_visits": 80, "influence_batch_size": 8} | settings
    return tiny_trainer(tmp_path, tiny_model(frozen=2), TRAIN, **settings).diagnose(QUERIES)


def test_numbers_on_the_page_are_those_of_the_curvature(tmp_path):
    found = diagnosis_of(tmp_path, num_repeats=2)
    eigenvalues = torch.linalg.eigvalsh(oracles.gauss_newton(tiny_model(frozen=2, double=True), batches(TRAIN)))
    largest = float(eigenvalues[-1])
    assert found.spectrum.largest == pytest.approx(largest, rel=1e-3)
    assert found.damping == pytest.approx(0.01 * largest, rel=1e-3)
    assert found.lissa_scale >= 0.9 * largest
    assert found.lissa_depth == pytest.approx(np.log(20) * found.lissa_scale / found.damping, abs=1)
    page = str(found)
    assert "lambda = " in page and "1.00% of the largest eigenvalue" in page
    assert "SDCA, at most 80 examples visited, mean of T = 2 runs" in page
    assert f"5 % takes T = {found.repeats}" in page
    assert f"J = {found.lissa_depth:,} steps" in page
    assert "positive influence is harmful" in page
    assert found.solution.vectors.numel() == 0


def test_damping_that_swamps_everything_is_said(tmp_path):
    heavy = str(diagnosis_of(tmp_path, damping=1e6))
    assert "It swamps 100% of the curvature" in heavy
    assert "s_test is within 1 % of grad / lambda" in heavy
    assert "within 1 %" not in str(diagnosis_of(tmp_path))


def test_cosine_and_distance_to_the_gradient(tmp_path):
    found = diagnosis_of(tmp_path, solver="exact", damping=1.0)
    model = tiny_model(frozen=2, double=True)
    v = oracles.loss_gradients(model, batches(QUERIES))
    matrix = oracles.gauss_newton(model, batches(TRAIN))
    x = torch.linalg.solve(matrix + torch.eye(len(matrix), dtype=v.dtype), v.T).T
    torch.testing.assert_close(found.cosine.double(), torch.cosine_similarity(x, v), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.distance.double(), (x - v).norm(dim=1) / v.norm(dim=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"solver": "lissa", "lissa_depth": 5, "curvature": "hessian"},
        {"solver": "cg", "cg_steps": 5},
        {"solver": "ekfac"},
        {"solver": "identity"},
    ],
)
def test_every_solver_has_a_page_and_a_figure(tmp_path, settings):
    found = diagnosis_of(tmp_path, **settings)
    for title in ("Curvature", "Damping", "Solver", "If you choose LiSSA", "Sign"):
        assert f"{title}\n" in f"{found}\n"
    assert "nan" not in str(found)
    path = found.plot(tmp_path / "diagnosis.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5_000


def test_queries_are_drawn_where_none_are_given(tmp_path):
    trainer = tiny_trainer(tmp_path, tiny_model(frozen=2), TRAIN, sdca_visits=16)
    assert len(trainer.diagnose().solution.residual) == 4


def test_a_solution_at_hand_is_not_solved_again(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, tiny_model(frozen=2), TRAIN, sdca_visits=16)
    s_test = trainer.compute_s_test(QUERIES)
    monkeypatch.setattr(SolverSetup, "solver", lambda _: pytest.fail("solved again"))
    found = trainer.diagnose(QUERIES, s_test)
    assert torch.equal(found.solution.residual, s_test.residual)
    with pytest.raises(ValueError, match="s_test holds 3 vectors"):
        trainer.diagnose(QUERIES.select([0]), s_test)


def test_signal_of_each_checkpoint(tmp_path):
    settings = {"num_train_epochs": 3, "learning_rate": 3e-2, "per_device_train_batch_size": 8}
    settings |= {"save_strategy": "no", "logging_strategy": "no", "solver": "identity", "damping": 0.1}
    trainer = tiny_trainer(tmp_path, tiny_model(frozen=0), tiny_data(40), **settings)
    only_final = trainer.diagnose(QUERIES)
    assert [signal.checkpoint.path for signal in only_final.signals] == [None]
    trainer.args.checkpoints = ["epochs"]
    trainer.train()
    found = trainer.diagnose(QUERIES)
    assert [signal.checkpoint.epoch for signal in found.signals] == [1.0, 2.0, None]
    batch = batches(TRAIN).take(range(40))
    logits = trainer.model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    distance = logits.softmax(dim=1) - torch.nn.functional.one_hot(batch["labels"], 3)
    assert found.signals[-1].residual == pytest.approx(float(distance.norm(dim=1).mean()), rel=1e-4)
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"])
    assert found.signals[-1].loss == pytest.approx(float(loss), rel=1e-4)


def test_residuals_that_have_vanished_name_the_checkpoint_to_use(tmp_path):
    page = diagnosis_of(tmp_path)
    first, final = (
        CheckpointSignal(Checkpoint(step=5, epoch=1.0), 0.5, 0.4, 30.0),
        CheckpointSignal(Checkpoint(), 0.01, 0.02, 20.0),
    )
    text = str(replace(page, signals=[first, final]))
    assert "Residuals have fallen to 5% since" in text and "checkpoints='auto'" in text
    assert "fallen" not in str(replace(page, signals=[first, replace(final, residual=0.3)]))
    assert "have almost no gradient" in str(replace(page, signals=[final]))
    assert "have almost no gradient" not in str(page)
