"""BM25 against numbers that were worked out by hand."""

from __future__ import annotations

from math import log
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from hf_fastif.experiments import bm25_scores
from hf_fastif.experiments.bm25 import text_overlap


pytest.importorskip("bm25s", reason="BM25 takes bm25s, of the extra 'experiments'")

TEXTS = ["the cat", "The cat, the dog!", "a bird and a dog and a fish"]  # 2, 4 and 8 words
# "cat" is in two texts of three: log(1 + 1.5 / 2.5); "bird" in one: log(1 + 2.5 / 1.5).
CAT, BIRD = log(1.6), log(8 / 3)
# The mean length is 14 / 3, so 1.5 (0.25 + 0.75 l / mean) is 0.857142..., 1.339285... and 2.303571...
SHORT, MIDDLE, LONG = (1.5 * (0.25 + 0.75 * length * 3 / 14) for length in (2, 4, 8))


def test_scores_of_single_words():
    np.testing.assert_allclose(
        bm25_scores(["cat", "bird"], TEXTS),
        [[CAT * 2.5 / (1 + SHORT), CAT * 2.5 / (1 + MIDDLE), 0], [0, 0, BIRD * 2.5 / (1 + LONG)]],
        rtol=1e-6,
    )
    assert bm25_scores(["cat"], TEXTS)[0, 0] == pytest.approx(0.63270, abs=1e-4)  # 0.470004 * 2.5 / 1.857143


def test_repeated_words_in_text_and_query():
    # "the" is in two texts, twice in the second one.
    expected = CAT * 2 * 2.5 / (2 + MIDDLE)
    assert bm25_scores(["the"], TEXTS)[0, 1] == pytest.approx(expected, rel=1e-6)
    assert bm25_scores(["THE the cat"], TEXTS)[0, 1] == pytest.approx(
        2 * expected + CAT * 2.5 / (1 + MIDDLE), rel=1e-6
    )


def test_the_length_of_texts_and_unknown_words():
    np.testing.assert_allclose(bm25_scores(["cat"], TEXTS, b=0.0)[0, :2], [CAT, CAT], rtol=1e-6)
    assert bm25_scores(["", "zebra ..."], TEXTS).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert bm25_scores(["cat"], ["", "cat"])[0, 0] == 0


def test_overlap_is_over_all_columns_and_negative_where_it_helps():
    train = Dataset.from_dict({"prompt": ["the cat", "a bird"], "completion": ["sat", None], "other": ["x", "sat"]})
    queries = Dataset.from_dict({"prompt": ["sat"], "completion": ["bird"]})
    found = text_overlap(SimpleNamespace(train_dataset=train), queries, ["prompt", "completion"])
    np.testing.assert_allclose(found, -bm25_scores(["sat bird"], ["the cat sat", "a bird"]))
    assert (found < 0).all()
