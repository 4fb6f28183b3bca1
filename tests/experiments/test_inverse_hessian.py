"""Errors of s_test on the way, against solvers that stop there, and a clock that looking does not move."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from figures import curves
from tiny import tiny_data, tiny_trainer

from hf_fastif.analysis.session_tools import changed
from hf_fastif.checkpoints.checkpoint import Checkpoint, save_checkpoint
from hf_fastif.experiments import InverseHessian, inverse_hessian
from hf_fastif.experiments.inverse_hessian import OTHERS
from hf_fastif.experiments.stopwatch import SolverStopwatch


QUERIES, RIGHT = tiny_data(3, seed=1), [False, True, True]
SETTINGS = {"depths": [2, 5], "batch_sizes": [1, 4], "repeats": [1, 2]}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inverse_hessian")
    sizes = {"sdca_visits": 12, "influence_batch_size": 4, "cg_steps": 3, "ekfac_samples": 30}
    return tiny_trainer(folder, train=tiny_data(30), damping=0.5, **sizes)


@pytest.fixture(scope="module")
def found(trainer):
    return inverse_hessian(trainer, QUERIES, RIGHT, **SETTINGS, others=OTHERS, reference={"solver": "exact"})


def errors_of(trainer, **settings) -> np.ndarray:
    with changed(trainer, solver="exact"):
        truth = trainer.compute_s_test(QUERIES).vectors
    with changed(trainer, **settings):
        return ((trainer.compute_s_test(QUERIES).vectors - truth).norm(dim=1) / truth.norm(dim=1)).numpy()


@pytest.mark.parametrize(("size", "repeats", "depth"), [(1, 1, 2), (4, 1, 5), (4, 2, 2), (1, 2, 5)])
def test_errors_on_the_way_are_those_of_a_run_that_ends_there(trainer, found, size, repeats, depth):
    row = next(r for r in found.table if (r["B"], r["T"], r["J"]) == (size, repeats, depth))
    expected = errors_of(trainer, solver="lissa", lissa_batch_size=size, num_repeats=repeats, lissa_depth=depth)
    assert row["error"] == pytest.approx(expected.mean(), rel=1e-3)
    assert row["error_std"] == pytest.approx(expected.std(), rel=1e-2)
    assert row["error_wrong"] == pytest.approx(expected[0], rel=1e-3)
    assert row["error_right"] == pytest.approx(expected[1:].mean(), rel=1e-3)


def test_other_solvers_are_looked_at_at_the_end(trainer, found):
    for name, settings in OTHERS.items():
        own = [row for row in found.table if row["solver"] == name]
        assert own[-1]["error"] == pytest.approx(errors_of(trainer, **settings).mean(), rel=1e-3)
    assert [row["J"] for row in found.table if row["solver"] == "SDCA"] == [1, 2, 3]
    assert [row["J"] for row in found.table if row["solver"] == "EK-FAC"] == [0]
    plain = next(row for row in found.table if row["solver"] == "gradient / lambda")
    with changed(trainer, solver="exact"):
        truth = trainer.compute_s_test(QUERIES).vectors
    with changed(trainer, solver="identity"):
        distance = trainer.compute_s_test(QUERIES).vectors / 0.5 - truth
    assert plain["error"] == pytest.approx(float((distance.norm(dim=1) / truth.norm(dim=1)).mean()), rel=1e-3)
    times = [row["seconds"] for row in found.table if row["solver"] == "SDCA"]
    assert 0 < times[0] < times[1] < times[2]


def test_ekfac_is_compared_at_the_lambda_of_the_others(trainer):
    settings = {"depths": [2], "batch_sizes": [4], "repeats": [1], "others": {"EK-FAC": OTHERS["EK-FAC"]}}
    with changed(trainer, damping="auto"):
        found = inverse_hessian(trainer, QUERIES, RIGHT, **settings, reference={"solver": "exact"})
        by_layer = errors_of(trainer, solver="ekfac").mean()
    with changed(trainer, damping=found.damping):
        expected = errors_of(trainer, solver="ekfac").mean()
    assert found.table[-1]["error"] == pytest.approx(expected, rel=1e-3)
    assert abs(by_layer / expected - 1) > 0.01


def test_what_is_finished_is_not_measured_again(trainer, found, tmp_path):
    again = inverse_hessian(trainer, QUERIES, RIGHT, **SETTINGS, others=OTHERS, reference={"solver": "exact"})
    assert again == found  # seconds and all
    assert found.reference == "exact inverse for 30 examples"
    path = found.write(tmp_path, "inverse_hessian")
    assert InverseHessian.load(path) == found
    drawn = curves(found.figure().axes[2])
    for name, points in drawn.items():
        rows = [row for row in found.table if name in (row["solver"], f"B = {row['B']}, T = {row['T']}")]
        assert points.tolist() == [[row["seconds"], row["error"]] for row in rows] and rows
    assert "B = 4, T = 2" in drawn and OTHERS.keys() < drawn.keys()
    assert "LiSSA, B = 4, T = 2" in str(found)


def test_the_costliest_setting_is_the_reference_unless_given_also_for_the_hessian(trainer):
    settings = {"depths": [2, 5], "batch_sizes": [4], "repeats": [1, 2]}
    with changed(trainer, curvature="hessian", damping=50.0):
        found = inverse_hessian(trainer, QUERIES, RIGHT, **settings)
    table = {(row["T"], row["J"]): row for row in found.table}
    assert table[2, 5]["error"] == pytest.approx(0, abs=1e-5)  # repeats one after another are averaged
    assert table[1, 5]["error"] > 1e-4
    assert found.reference.startswith("the costliest LiSSA, LiSSA, J = 5 steps, B = 4")


def test_a_setting_that_diverges_is_reported(trainer):
    with changed(trainer, lissa_scale=0.01, damping=0.4):
        found = inverse_hessian(
            trainer, QUERIES, RIGHT, depths=[2, 60], batch_sizes=[4], repeats=[1], reference={"solver": "exact"}
        )
    assert len(found.table) < 2
    assert found.diverged[0].startswith("LiSSA, B = 4, T = 1, in step ")
    assert "diverged: " in str(found)


def test_looking_takes_no_part_in_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def look(values):
        now[0] += 100  # slow
        return values

    watch = SolverStopwatch([1, 3], runs=2, look=look)
    for factor in (1.0, 3.0):
        for step in (1, 2, 3):
            now[0] += 1
            watch(step, torch.tensor([factor * step]))
    assert watch.seconds == {1: 2, 3: 6}
    assert {step: float(value) for step, value in watch.seen.items()} == {1: 2, 3: 6}


def test_it_is_measured_at_the_checkpoint(trainer, tmp_path):
    theta = {name: p.detach() + 0.2 for name, p in trainer.model.named_parameters() if p.requires_grad}
    save_checkpoint(tmp_path, theta, Checkpoint(step=1))
    path = str(tmp_path / "step-00000001.safetensors")
    exact = {"exact": {"solver": "exact"}}
    few = {"depths": [1], "batch_sizes": [4], "repeats": [1], "reference": {"solver": "exact"}, "others": exact}
    with changed(trainer, checkpoints=[path]):
        found = inverse_hessian(trainer, QUERIES, RIGHT, **few)
    assert found.table[-1]["error"] < 1e-4 < found.table[0]["error"]
    with changed(trainer, checkpoints=[path, path]), pytest.raises(ValueError, match="checkpoints=.* compared at one"):
        inverse_hessian(trainer, QUERIES, RIGHT, **few)


def test_one_process_only(trainer, monkeypatch):
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    with pytest.raises(ValueError, match="num_processes"):
        inverse_hessian(trainer, QUERIES, RIGHT)
