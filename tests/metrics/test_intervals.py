"""The interval from drawing rows and columns anew, against the variance that it should have."""

from __future__ import annotations

import numpy as np
import pytest

from hf_fastif.metrics import two_way_interval


def test_both_ways_of_drawing_widen_the_interval():
    random = np.random.default_rng(0)
    rows, columns = random.normal(size=(60, 1)), 2 * random.normal(size=(1, 40))
    values = rows + columns

    def means(drawn_rows: np.ndarray, drawn_columns: np.ndarray) -> np.ndarray:
        return values[drawn_rows[:, :, None], drawn_columns[:, None, :]].mean(axis=(1, 2))

    low, high = two_way_interval(means, values.shape, num_draws=4000)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(rows.var() / 60 + columns.var() / 40), rel=0.1)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.1)
    assert two_way_interval(means, values.shape, seed=1) == two_way_interval(means, values.shape, seed=1)


@pytest.mark.parametrize(("shape", "num_draws"), [((1, 1), 100), ((3, 2), 0)])
def test_where_there_is_no_interval(shape, num_draws):
    assert np.isnan(two_way_interval(lambda rows, _: rows.sum(axis=1), shape, num_draws)).all()
