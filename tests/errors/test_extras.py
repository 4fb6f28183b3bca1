"""Extras that are not installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from hf_fastif.analysis.mislabels import precision_recall
from hf_fastif.errors import InfluenceError, needs_extra
from hf_fastif.experiments import bm25_scores


def test_what_is_missing_and_how_to_get_it_is_said():
    message = r"not_there is not installed, which this needs: pip install 'hf_fastif\[some\]'"
    with pytest.raises(InfluenceError, match=message), needs_extra("some"):
        import not_there.inside  # noqa: F401


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("bm25s", lambda: bm25_scores(["a"], ["a b"])),
        ("sklearn.metrics", lambda: precision_recall(np.arange(2.0), np.array([True, False]))),
    ],
)
def test_experiments_name_their_extra(monkeypatch, package, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InfluenceError, match=rf"{package.partition('.')[0]} is not .*'hf_fastif\[experiments\]'"):
        call()
