"""The experiment on corrections: its runs are those of `correct`, from one model, and its numbers are theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from figures import curves
from scipy.stats import ttest_1samp
from tiny import tiny_data, tiny_trainer

from hf_fastif.analysis import correct
from hf_fastif.analysis.corrector import Corrector
from hf_fastif.experiments import Corrections, corrections


SLICES = {name: (tiny_data(6, seed), tiny_data(15, seed + 1)) for name, seed in (("one", 1), ("two", 3))}
GUARD, POOL = tiny_data(12, seed=7), tiny_data(25, seed=8)
SETTINGS = {"steps": 2, "num_examples": 3, "learning_rate": 0.01, "num_anchors": 4}
SYSTEMS = ["helpful", "random", "anchors"]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return tiny_trainer(tmp_path_factory.mktemp("corrections"), train=tiny_data(40), solver="identity")


@pytest.fixture(scope="module")
def found(trainer):
    before = [p.detach().clone() for p in trainer.model.parameters()]
    result = corrections(trainer, SLICES, GUARD, candidates=POOL, systems=SYSTEMS, num_repeats=2, **SETTINGS)
    assert all(torch.equal(*pair) for pair in zip(before, trainer.model.parameters(), strict=True))
    return result


def test_runs_are_those_of_correct(trainer, found, monkeypatch):
    assert (found.slices, found.systems) == (["one", "two"], SYSTEMS) and len(found.runs) == 2 * 3 * 2
    for run in found.runs:
        anchors, test = SLICES[run["slice"]]
        monkeypatch.setattr(trainer.args, "seed", 42 + run["repeat"])
        others = {"guard": GUARD, "max_guard_drop": None, "measured": {"test": test}}
        correction = correct(trainer, anchors, POOL, system=run["system"], **others, **SETTINGS)
        correction.roll_back(trainer)
        for measure in ("loss", "accuracy"):
            for name in ("anchors", "test", "guard"):
                expected = [row[measure][name] for row in correction.log]
                assert run[measure][name] == pytest.approx(expected, rel=1e-5)
        assert run["learning_rate"] == [0.01, 0.01] and sum(run["labels"].values()) == 2 * (
            3 + (run["system"] == "anchors")
        )
    drawn = [run["loss"]["test"] for run in found.runs if (run["slice"], run["system"]) == ("one", "helpful")]
    assert drawn[0] != drawn[1]


def test_finished_runs_are_not_done_again(trainer, found, monkeypatch):
    correct_once, runs = Corrector.correct, []

    def counted(self, *args, **kwargs):
        runs.append(args)
        return correct_once(self, *args, **kwargs)

    monkeypatch.setattr(Corrector, "correct", counted)
    assert corrections(trainer, SLICES, GUARD, candidates=POOL, systems=SYSTEMS, num_repeats=2, **SETTINGS) == found
    assert not runs
    few = {"candidates": POOL, "systems": SYSTEMS[:1], "num_repeats": 1} | SETTINGS
    other = corrections(trainer, SLICES, GUARD.select(range(5)), **few)
    assert len(runs) == len(other.runs) == 2  # a slice each: another guard is another experiment


def test_a_run_that_its_guard_ends_stays_where_it_is(trainer):
    right = np.setdiff1d(np.arange(12), trainer.find_misclassified(GUARD))
    changes = SETTINGS | {"systems": ["harmful"], "num_repeats": 1, "learning_rate": 1e5, "max_guard_drop": 0.0}
    guard = GUARD.select(right)
    (run,) = corrections(trainer, {"one": SLICES["one"]}, guard, **changes).runs
    assert run["learning_rate"][-1] == 0 and run["accuracy"]["guard"] == [1.0] * 3
    assert len(set(run["loss"]["test"][-2:])) == 1


def made(values, guard=0.9):
    """Runs whose accuracy on the test examples rises by given numbers, {slice: {system: repeats}}."""
    runs = []
    for name, systems in values.items():
        for system, rises in systems.items():
            for repeat, rise in enumerate(rises):
                numbers = {"anchors": [0.4, 0.4, 0.5], "test": [0.5, 0.5, 0.5 + rise], "guard": [guard] * 3}
                about = {"slice": name, "system": system, "repeat": repeat, "labels": {}, "learning_rate": [1, 1]}
                runs.append(about | {"loss": {k: [-x for x in v] for k, v in numbers.items()}, "accuracy": numbers})
    return Corrections(runs, {"steps": 2, "num_examples": 3, "candidates": 9, "learning_rate": 1.0})


def test_means_intervals_and_differences_by_hand():
    rises = {"helpful": [[0.1, 0.2, 0.3], [0.2, 0.4, 0.3]], "random": [[0.0, 0.1, 0.1], [0.0, 0.0, 0.0]]}
    found = made({name: {s: rises[s][i] for s in rises} for i, name in enumerate(("one", "two"))})
    rows = {(r["slice"], r["system"], r["examples"], r["measure"]): r for r in found.summary()}
    assert rows["two", "helpful", "test", "accuracy"]["change"] == pytest.approx(0.3)
    assert rows["mean", "random", "guard", "loss"]["change"] == 0
    both = np.mean(rises["helpful"], axis=0)
    row = rows["mean", "helpful", "test", "accuracy"]
    interval = ttest_1samp(both, 0).confidence_interval(0.95)
    assert (row["change"], row["low"], row["high"]) == pytest.approx((both.mean(), interval.low, interval.high))
    difference = both - np.mean(rises["random"], axis=0)
    row = next(r for r in found.differences() if r["measure"] == "loss")
    interval = ttest_1samp(-difference, 0).confidence_interval(0.95)
    assert row["system"] == "random" and row["change"] == pytest.approx(-difference.mean())
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert np.isnan(made({"one": {"helpful": [0.1]}}).summary()[0]["low"])


def test_saved_read_and_drawn(found, tmp_path):
    path = found.write(tmp_path, "correction")
    assert Corrections.load(path) == found
    for figure, examples in ((found.figure(), "test"), (found.validation_figure(), "anchors")):
        (panel,) = (axes for axes in figure.axes if axes.get_ylabel() == f"loss ({examples})")  # of the first slice
        for system, points in curves(panel).items():
            runs = [run for run in found.runs if (run["slice"], run["system"]) == ("one", system)]
            assert points[:, 1] == pytest.approx(np.mean([run["loss"][examples] for run in runs], axis=0))
        assert list(curves(panel)) == SYSTEMS
    assert "Change after 2 steps on 3 of 25 candidates" in str(found) and "helpful - anchors: loss" in str(found)
