"""The page that `trainer.diagnose` prints, and its figure."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from figures import curves
from matplotlib.figure import Figure
from tiny import batches, tiny_data, tiny_model, tiny_trainer

from hf_fastif.checkpoints import Checkpoint
from hf_fastif.diagnosis.signals import CheckpointSignal
from hf_fastif.solvers.setup import SolverSetup


TRAIN, QUERIES = tiny_data(40), tiny_data(3, seed=1)


def diagnosis_of(tmp_path, **settings):
    settings = {"solver": "sdca", "sdca_visits": 80, "influence_batch_size": 8} | settings
    return tiny_trainer(tmp_path, tiny_model(frozen=2), TRAIN, **settings).diagnose(QUERIES)


def test_numbers_on_the_page_are_those_of_the_curvature(tmp_path):
    found = diagnosis_of(tmp_path, num_repeats=2)
    eigenvalues = torch.linalg.eigvalsh(oracles.gauss_newton(tiny_model(frozen=2, double=True), batches(TRAIN)))
    largest = float(eigenvalues[-1])
    assert found.spectrum.largest == pytest.approx(largest, rel=1e-3)
    assert found.damping == pytest.approx(0.003 * largest, rel=1e-3)
    assert found.lissa_scale >= 0.9 * largest
    assert found.lissa_depth == pytest.approx(np.log(20) * found.lissa_scale / found.damping, abs=1)
    page = str(found)
    assert "lambda = " in page and "0.30% of the largest eigenvalue" in page
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


def numbers(page: str, pattern: str) -> list[float]:
    """The numbers that a pattern has groups for, of the one place of a page that it matches."""
    (place,) = re.findall(pattern, page)
    return [float(number) for number in (place if isinstance(place, tuple) else place.split(", "))]


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are saved."""
    figures, save = [], Figure.savefig

    def noted(self, *args, **named):
        figures.append(self)
        save(self, *args, **named)

    monkeypatch.setattr(Figure, "savefig", noted)
    return figures


@pytest.mark.parametrize(
    ("settings", "described"),
    [
        ({"solver": "sdca"}, "SDCA, at most 80 examples visited"),
        (
            {"solver": "lissa", "lissa_depth": 5, "curvature": "hessian", "damping": 5.0},
            "LiSSA, J = 5 steps, B = 32 examples a step, T = 1 repeats",
        ),
        ({"solver": "cg", "cg_steps": 5}, "conjugate gradient on 40 examples"),
        ({"solver": "ekfac", "damping": 0.5}, "EK-FAC fitted to 40 examples"),
        ({"solver": "identity", "damping": 0.5}, "none (product of gradients)"),
    ],
)
def test_page_and_figure_of_every_solver_say_what_the_matrix_says(tmp_path, drawn, settings, described):
    trainer = tiny_trainer(tmp_path, tiny_model(frozen=2), TRAIN, **{"sdca_visits": 80} | settings)
    s_test = trainer.compute_s_test(QUERIES)
    diagnosis = trainer.diagnose(QUERIES, s_test)
    page = str(diagnosis)

    model, hessian = tiny_model(frozen=2, double=True), settings.get("curvature") == "hessian"
    matrix = (oracles.hessian if hessian else oracles.gauss_newton)(model, batches(TRAIN))
    eigenvalues = torch.linalg.eigvalsh(matrix).flip(0)
    largest = float(eigenvalues[0])
    damping = settings.get("damping", 0.003 * largest)
    assert numbers(page, r"lambda = (\S+), (\S+)% of the largest") == pytest.approx(
        [damping, 100 * damping / largest], rel=1e-2
    )
    if hessian:
        ends = numbers(page, r"Largest eigenvalue (\S+), smallest (\S+)\.\n")
        assert ends == pytest.approx([largest, float(eigenvalues[-1])], rel=1e-2)
    else:
        shown = numbers(page, r"Eigenvalues number 1, 2, 4, 8, \.\.\.: (.*)\.\n")
        assert shown[:6] == pytest.approx(eigenvalues[[0, 1, 3, 7, 15, 31]].tolist(), rel=1e-2)
        pattern = r"It swamps (\S+)% of the curvature \((\d+) of (\d+) eigenvalues\); the effective dimension is (\d+)"
        share, swamped, count, dimension = numbers(page, pattern)
        assert count - swamped == int((eigenvalues >= damping).sum())
        below = float(eigenvalues[eigenvalues < damping].sum() / eigenvalues.sum())
        assert share == pytest.approx(100 * below, abs=0.6)
        assert dimension == pytest.approx(float((eigenvalues / (eigenvalues + damping)).sum()), abs=0.6)

    assert f"Solver\n  {described}.\n" in page
    v, x = oracles.loss_gradients(model, batches(QUERIES)), s_test.vectors.double()
    residual = (v - x @ matrix - damping * x).norm(dim=1) / v.norm(dim=1)
    diagnosis.plot(tmp_path / "diagnosis.png")
    spectrum, way = drawn[0].axes
    if described.startswith("none"):
        assert "s_test is within 1 % of grad / lambda" in page and not re.search(r"on the sample: \d", page)
    else:
        ends = numbers(page, r"on the sample: (\S+) to (\S+) \(")
        assert ends == pytest.approx([float(residual.min()), float(residual.max())], rel=0.05)
        dots = torch.tensor(way.lines[-1].get_ydata())
        torch.testing.assert_close(dots.double(), residual, rtol=1e-2, atol=1e-4)
        ends = numbers(page, r"their cosine is (\S+) to (\S+)\.\n")
        cosine = torch.cosine_similarity(x, v)
        assert ends == pytest.approx([float(cosine.min()), float(cosine.max())], abs=2e-3)
    np.testing.assert_allclose(spectrum.lines[0].get_ydata()[0], largest, rtol=1e-3)
    assert curves(spectrum)[f"$\\lambda$ = {diagnosis.damping:.3g}"][:, 1] == pytest.approx([damping] * 2, rel=1e-3)


def test_the_default_is_diagnosed_in_its_index(tmp_path, drawn):
    diagnosis = diagnosis_of(tmp_path, solver="auto")
    page = str(diagnosis)
    eigenvalues = torch.linalg.eigvalsh(oracles.gauss_newton(tiny_model(frozen=2, double=True), batches(TRAIN)))
    largest = float(eigenvalues[-1])
    assert numbers(page, r"lambda = (\S+), (\S+)% of the largest") == pytest.approx([0.003 * largest, 0.3], rel=1e-2)
    assert "estimated on 40 of 40 training examples" in page
    assert "exact inverse along" in page and "What the index leaves out of the gradients of 3 queries" in page
    diagnosis.plot(tmp_path / "diagnosis.png")
    drawn_spectrum = drawn[0].axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(drawn_spectrum[:10], eigenvalues.flip(0)[:10], rtol=1e-2)


def test_queries_are_drawn_where_none_are_given(tmp_path):
    trainer = tiny_trainer(tmp_path, tiny_model(frozen=2), TRAIN, sdca_visits=16)
    assert len(trainer.diagnose().solution.residual) == 4


def test_a_solution_at_hand_is_not_solved_again(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, tiny_model(frozen=2), TRAIN, solver="sdca", sdca_visits=16)
    s_test = trainer.compute_s_test(QUERIES)
    monkeypatch.setattr(SolverSetup, "solver", lambda _: pytest.fail("solved again"))
    found = trainer.diagnose(QUERIES, s_test)
    assert torch.equal(found.solution.residual, s_test.residual)
    with pytest.raises(ValueError, match="s_test holds 3 vectors"):
        trainer.diagnose(QUERIES.select([0]), s_test)


@pytest.mark.parametrize("solver", ["auto", "identity"])
def test_signal_of_each_checkpoint(tmp_path, solver):
    settings = {"num_train_epochs": 3, "learning_rate": 3e-2, "per_device_train_batch_size": 8}
    settings |= {"save_strategy": "no", "logging_strategy": "no", "solver": solver, "damping": 0.1}
    trainer = tiny_trainer(tmp_path, tiny_model(frozen=0), tiny_data(40), **settings)
    only_final = trainer.diagnose(QUERIES)
    assert [signal.checkpoint.path for signal in only_final.signals] == [None]
    trainer.args.checkpoints = ["epochs"]
    trainer.train()
    found = trainer.diagnose(QUERIES)
    assert [signal.checkpoint.epoch for signal in found.signals] == [1.0, 2.0, None]
    assert [signal.is_automatic for signal in found.signals] == [True, True, False]
    batch = batches(TRAIN).take(range(40))
    logits = trainer.model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    distance = logits.softmax(dim=1) - torch.nn.functional.one_hot(batch["labels"], 3)
    assert found.signals[-1].residual == pytest.approx(float(distance.norm(dim=1).mean()), rel=1e-4)
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"])
    assert found.signals[-1].loss == pytest.approx(float(loss), rel=1e-4)
    for _name, p in trainer.model.named_parameters():
        p.data = p.data.double()
    trace = torch.trace(oracles.gauss_newton(trainer.model, batches(TRAIN)))
    assert found.signals[-1].trace == pytest.approx(float(trace), rel=1e-2)


def test_residuals_that_have_vanished_name_the_checkpoint_to_use(tmp_path):
    page = diagnosis_of(tmp_path)
    first, final = (
        CheckpointSignal(Checkpoint(step=5, epoch=0.5), True, 0.5, 0.4, 30.0),
        CheckpointSignal(Checkpoint(), False, 0.01, 0.02, 20.0),
    )
    text = str(replace(page, signals=[first, final]))
    assert "Residuals have fallen to 5% since" in text and "checkpoints='auto'" in text
    assert "fallen" not in str(replace(page, signals=[first, replace(final, residual=0.3)]))
    latest = replace(first, checkpoint=Checkpoint(step=20, epoch=2.0), residual=0.03)
    assert "fallen to 5% since" in str(
        replace(page, signals=[replace(latest, is_automatic=False), first, latest, final])
    )
    assert "have almost no gradient" in str(replace(page, signals=[final]))
    assert "have almost no gradient" not in str(page)
