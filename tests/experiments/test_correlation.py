"""Correlation of fast and full scores against scipy, and what is said about lambda."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau, pearsonr, spearmanr
from tiny import tiny_data, tiny_trainer

from hf_fastif.analysis.session_tools import changed
from hf_fastif.experiments import Correlation, correlation


QUERIES, N = tiny_data(4, seed=1), 30
EXACT = {"solver": "exact"}
FAST = {"solver": "sdca", "sdca_visits": 8, "influence_batch_size": 4, "index_features": "pooled"}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return tiny_trainer(tmp_path_factory.mktemp("correlation"), train=tiny_data(N), **FAST)


@pytest.fixture(scope="module")
def found(trainer):
    return correlation(trainer, QUERIES, [10], EXACT, [1e6, 0.01])


def test_rows_are_scipys_over_the_candidates(trainer, found):
    with changed(trainer, damping=0.01):
        solution = trainer.compute_s_test(QUERIES)
        fast = trainer.compute_influence(QUERIES, s_test=solution)
        rows = trainer.find_candidates(QUERIES, 10, s_test=solution)
    with changed(trainer, damping=0.01, **EXACT):
        full = trainer.compute_influence(QUERIES)
    with changed(trainer, solver="identity"):
        plain = trainer.compute_influence(QUERIES)
    for method, scores in (("fast", fast), ("gradient product", plain)):
        for k, own in ((10, rows), (N, np.tile(np.arange(N), (4, 1)))):
            row = next(r for r in found.table if (r["asked"], r["method"], r["k"]) == ("0.01", method, k))
            for name, measure in (("pearson", pearsonr), ("spearman", spearmanr), ("kendall", kendalltau)):
                values = [measure(scores[q, own[q]], full[q, own[q]]).statistic for q in range(4)]
                assert row[name] == pytest.approx(np.mean(values), abs=1e-5)
                assert row[f"{name}_std"] == pytest.approx(np.std(values), abs=1e-5)


def test_a_huge_lambda_is_said_to_be_no_more_than_the_gradient(found):
    huge, small = found.dampings
    assert huge["cosine"] == pytest.approx(1, abs=1e-5) and small["cosine"] < 0.95
    assert huge["damping"] == 1e6 and small["residual"] < 1e-4
    of_huge, of_small = found.explain()
    assert "nearly the plain gradient" in of_huge and "the curvature matters" in of_small
    assert f"{1 / small['largest']:.3g} % of the largest eigenvalue" in of_small
    plain = next(r for r in found.table if (r["asked"], r["method"]) == ("1000000.0", "gradient product"))
    assert plain["spearman"] > 0.999
    assert of_huge in str(found) and "k = 10 " in str(found)


def test_finished_parts_are_not_computed_again(trainer, found, monkeypatch):
    monkeypatch.setattr(trainer, "compute_s_test", None)
    monkeypatch.setattr(trainer, "compute_influence", None)
    assert correlation(trainer, QUERIES, [10], EXACT, [1e6, 0.01]) == found


def test_saved_read_and_drawn(found, tmp_path):
    path = found.write(tmp_path / "new", "correlation")
    assert Correlation.load(path) == found
    assert (tmp_path / "new" / "correlation.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "new" / "correlation.svg").read_text("utf-8")


def test_refused_before_the_work(trainer):
    with pytest.raises(ValueError, match="num_neighbors=31: there are 30 candidates"):
        correlation(trainer, QUERIES, [31], EXACT)
    with pytest.raises(ValueError, match="damping=0"):
        correlation(trainer, QUERIES, [10], EXACT, ["auto", 0])
