"""Recall against counting by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from figures import curves
from tiny import tiny_data, tiny_trainer

from hf_fastif.analysis import Recall, changed, recall
from hf_fastif.errors import InfluenceError


QUERIES = tiny_data(4, seed=1)
KS = [3, 10, 40]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recall")
    found = tiny_trainer(folder, solver="ekfac", damping=0.5, ekfac_samples=40, index_features="pooled")
    found.build_index()
    return found


@pytest.fixture(scope="module")
def found(trainer):
    return recall(trainer, QUERIES, top=(2, 5), ks=KS)


@pytest.mark.parametrize(("direction", "sign"), [("helpful", 1), ("harmful", -1), ("absolute", None)])
def test_recall_is_counted(trainer, found, direction, sign):
    scores = trainer.compute_influence(QUERIES)
    proposed = trainer.find_candidates(QUERIES, 40)
    for m in (2, 5):
        for k in KS:
            shares = []
            for own, rows in zip(scores, proposed, strict=True):
                best = sorted(range(40), key=lambda row: -abs(own[row]) if sign is None else sign * own[row])[:m]  # noqa: B023
                shares.append(len(set(best) & set(rows[:k].tolist())) / m)
            row = next(r for r in found.table if (r["direction"], r["m"], r["k"]) == (direction, m, k))
            assert row["recall"] == pytest.approx(np.mean(shares))
            assert row["std_err"] == pytest.approx(np.std(shares) / 2)


def test_everything_holds_everything_and_the_smallest_k_is_suggested(found):
    assert all(row["recall"] == 1 for row in found.table if row["k"] == 40)
    smallest = min(
        row["k"] for row in found.table if row["recall"] >= 0.6 and (row["direction"], row["m"]) == ("helpful", 5)
    )
    assert found.suggested_k(0.6, 5, "helpful") == smallest
    assert "95 % of the top 5 are among k = " in str(found) and "4 queries, 40 candidates" in str(found)


def test_saved_and_drawn(found, tmp_path):
    found.save(tmp_path / "recall.json")
    assert json.loads((tmp_path / "recall.json").read_text())["table"] == found.table
    for panel in found.figure().axes:
        for m, points in curves(panel).items():
            rows = [r for r in found.table if (r["direction"], f"top {r['m']}") == (panel.get_title(), m)]
            assert points.tolist() == [[row["k"], row["recall"]] for row in rows] and rows


def test_without_matplotlib_the_numbers_are_written(found, tmp_path, without_matplotlib):
    assert Recall.load(found.write(tmp_path, "recall")) == found
    assert [path.name for path in tmp_path.iterdir()] == ["recall.json"]
    with pytest.raises(InfluenceError, match=r"pip install 'hf_fastif\[plots\]'"):
        found.plot(tmp_path / "recall.png")


def test_more_than_there_are(trainer):
    with pytest.raises(ValueError, match=r"top=\(41,\): there are 40 candidates"):
        recall(trainer, QUERIES, top=(41,))


def test_the_index_s_own_ranking_is_compared_with_exact_scores(tmp_path):
    trainer = tiny_trainer(tmp_path, damping=0.5)
    trainer.build_index()
    result = recall(trainer, QUERIES, top=(2,), ks=[4])
    rows = trainer.find_candidates(QUERIES, 4)  # not by the s_test below
    with changed(trainer, solver="sdca"):
        scores = trainer.compute_influence(QUERIES)
    best = np.argsort(-np.abs(scores), axis=1)[:, :2]
    shares = [len(np.intersect1d(*pair)) / 2 for pair in zip(best, rows, strict=True)]
    (row,) = (row for row in result.table if row["direction"] == "absolute")
    assert row["recall"] == np.mean(shares)
