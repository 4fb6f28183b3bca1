"""The `evaluate` modules, imported and loaded from their files, against numbers by hand."""

from __future__ import annotations

from pathlib import Path

import evaluate
import numpy as np
import pytest

from hf_fastif import metrics
from hf_fastif.metrics import InfluenceCorrelation, LinearDatamodelingScore, RecallAtM


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


def test_correlation_by_hand():
    """Of the first query r = 10 / sqrt(50 * 20), rho = 1 - 6 * 6 / (4 * 15) and tau = (4 - 2) / 6."""
    one, other = [[1.0, 2.0, 3.0, 10.0], [1.0, 2.0, 3.0, 4.0]], [[2.0, 8.0, 4.0, 6.0], [8.0, 6.0, 4.0, 2.0]]
    expected = {"pearson": (0.1**0.5 - 1) / 2, "spearman": (0.4 - 1) / 2, "kendall": (1 / 3 - 1) / 2}
    for metric in both(InfluenceCorrelation, "influence_correlation"):
        assert metric.compute(predictions=one, references=other) == pytest.approx(expected)
        flat = metric.compute(predictions=np.ones((1, 4)), references=other[:1])
        assert flat == {"pearson": 0, "spearman": 0, "kendall": 0}


def test_linear_datamodeling_score_by_hand():
    """Sums of influence over what four models were trained on are 3, 5, 6, 7, and of the other query -3, 1, 2, 0.

    Their ranks differ from those of the losses by 0, 1, 1, 0, and by 1, 0, 3, 2: rho is 1 - 6 * 2 / (4 * 15), and
    1 - 6 * 14 / (4 * 15).
    """
    members = [[True, True, False], [True, False, True], [False, True, True], [True, True, True]]
    influence = [[1.0, 2.0, 4.0], [-2.0, -1.0, 3.0]]
    losses = [[0.1, 0.3, 0.2, 0.9], [0.5, 0.6, 0.1, 0.7]]
    for metric in both(LinearDatamodelingScore, "linear_datamodeling_score"):
        score = metric.compute(predictions=influence, references=losses, members=members)
        assert score["lds"] == pytest.approx((0.8 - 0.4) / 2)
        assert -1 <= score["low"] < score["lds"] < score["high"] <= 1
