"""What is timed, what is extrapolated, and that it is the authors' algorithm; no test pins a time."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import tiny_data, tiny_trainer

from hf_fastif.analysis.session_tools import changed
from hf_fastif.config import FASTIF
from hf_fastif.experiments import Runtime, runtime
from hf_fastif.experiments.runtime import AUTHORS, _backward_passes, _lissa


N, QUERIES = 24, tiny_data(2, seed=1)
METHODS = (AUTHORS, "ours, one query", "ours, 2 queries at once", "ours, index for 10 queries")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtime")
    return tiny_trainer(folder, train=tiny_data(N), damping=0.5)


@pytest.fixture(scope="module")
def found(trainer):
    return runtime(trainer, QUERIES, [6], repeats=2, timed=8)


def test_every_way_is_timed_for_every_number_of_candidates(found):
    assert [(cost.method, cost.k) for cost in found.costs] == [(method, k) for method in METHODS for k in (N, 6)]
    assert all(cost.seconds > 0 and cost.processes == 1 for cost in found.costs)
    assert [cost.extrapolated for cost in found.costs] == [True] * 2 + [False] * 6
    assert [row["what"] for row in found.once] == ["our Kronecker bases", "our index"]
    assert all(row["seconds"] > 0 and row["forward_passes"] > 0 for row in found.once)


def test_the_index_is_counted_in_for_ten_queries(found):
    once = sum(row["seconds"] for row in found.once)
    alone, with_index = found.costs[2:4], found.costs[6:]
    for without, cost in zip(alone, with_index, strict=True):
        assert cost.seconds == pytest.approx(without.seconds + once / 10)
    assert found.times_faster(found.costs[3], 6) == found.costs[1].seconds / found.costs[3].seconds


def test_an_index_that_is_there_is_built_again(trainer, found, monkeypatch):
    built = []
    build = trainer.build_index
    monkeypatch.setattr(trainer, "build_index", lambda: built.append(trainer.args.overwrite) or build())
    runtime(trainer, QUERIES.select([1]), [6], timed=2)
    assert built == [False, True] and not trainer.args.overwrite  # the authors' and ours


def test_the_authors_s_test_is_that_of_the_preset(trainer):
    with changed(trainer, **FASTIF | {"lissa_depth": 7, "frozen_states_gb": 0.0}):
        expected = trainer.compute_s_test(QUERIES.select([1])).vectors
        with trainer.session() as session:
            solution, seconds = _lissa(session, QUERIES.select([1]), 7)
            whole = _lissa(session, QUERIES.select([1]), 7000)[1]
    np.testing.assert_allclose(solution.vectors, expected, rtol=1e-5)
    assert whole > 20 * seconds  # a thousand times as many steps


def test_the_authors_scores_take_a_pass_each(trainer, monkeypatch):
    solution, taken = trainer.compute_s_test(QUERIES.select([0])), []
    with trainer.session() as session:
        gradient = session.objective.gradient
        monkeypatch.setattr(session.objective, "gradient", lambda batch: taken.append(batch) or gradient(batch))
        clock = iter([0.0, 5.0])
        monkeypatch.setattr("time.perf_counter", lambda: next(clock))
        seconds = _backward_passes(session, solution, np.arange(20), timed=8)
    assert len(taken) == 8 and {len(batch["labels"]) for batch in taken} == {1}
    assert seconds == 5.0 * 20 / 8


def test_what_was_timed_is_kept_and_runs_are_joined(trainer, found, tmp_path):
    assert runtime(trainer, QUERIES, [6], repeats=2, timed=8) == found  # to the microsecond
    path = found.joined(found).write(tmp_path, "runtime")
    both = Runtime.load(path)
    assert both.table == found.table * 2
    drawn = {}
    for line in (container[0] for container in found.figure().axes[0].containers):
        hollow = line.get_markerfacecolor() == "none"
        drawn |= {int(row): (seconds, hollow) for seconds, row in line.get_xydata()}
    assert [drawn[row] for row in range(8)] == [(cost.seconds, cost.extrapolated) for cost in found.costs]
    assert "full scan" in str(both) and "k = 6 " in str(both) and "~" in str(both)


def test_more_neighbours_than_there_are(trainer):
    with pytest.raises(ValueError, match="num_neighbors=25: there are 24 candidates"):
        runtime(trainer, QUERIES, [25])
