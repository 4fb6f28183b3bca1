"""The `evaluate` modules, imported and loaded from their files, against counting and scipy."""

from __future__ import annotations

from pathlib import Path

import evaluate
import numpy as np
import pytest
from scipy.stats import kendalltau, pearsonr, spearmanr

from hf_fastif import metrics
from hf_fastif.metrics import InfluenceCorrelation, LinearDatamodelingScore, RecallAtM, SubsetLosses, lds


RANDOM = np.random.default_rng(0)
ONE, OTHER = RANDOM.standard_normal((2, 3, 12))
FOLDER = Path(metrics.__file__).parent


def both(made, name):
    """The metric as its class makes it, and as `evaluate` loads its file, offline."""
    return [made(keep_in_memory=True), evaluate.load(str(FOLDER / f"{name}.py"), keep_in_memory=True)]


def test_recall_is_counted():
    found, best = [[7, 2, 5], [1, 9, 3]], [[2, 9, 5, 1], [3, 1, 9, 4]]
    for metric in both(RecallAtM, "recall_at_m"):
        assert metric.compute(predictions=found, references=best) == {"recall": pytest.approx((2 / 4 + 3 / 4) / 2)}
        found_of_two = metric.compute(predictions=found, references=best, k=2, m=2)
        assert found_of_two == {"recall": pytest.approx((1 / 2 + 1 / 2) / 2)}
        with pytest.raises(ValueError, match="m=5: a query has only 4 references"):
            metric.compute(predictions=found, references=best, m=5)


def test_correlation_is_scipys():
    expected = {
        name: np.mean([measure(a, b).statistic for a, b in zip(ONE, OTHER, strict=True)])
        for name, measure in (("pearson", pearsonr), ("spearman", spearmanr), ("kendall", kendalltau))
    }
    for metric in both(InfluenceCorrelation, "influence_correlation"):
        assert metric.compute(predictions=ONE, references=OTHER) == pytest.approx(expected)
    flat = metric.compute(predictions=np.ones((1, 4)), references=ONE[:1, :4])
    assert flat == {"pearson": 0, "spearman": 0, "kendall": 0}


def test_linear_datamodeling_score_is_that_of_the_analysis():
    members = np.stack([RANDOM.permutation(12) < 6 for _ in range(20)])
    losses = members @ ONE.T + RANDOM.standard_normal((20, 3))
    expected = lds(ONE, SubsetLosses(members, losses), num_draws=50)
    for metric in both(LinearDatamodelingScore, "linear_datamodeling_score"):
        found = metric.compute(predictions=ONE, references=losses.T, members=members, num_draws=50)
        assert found == {"lds": expected.mean, "low": expected.low, "high": expected.high}
    assert 0.2 < found["lds"] < 1
