"""Tables 5 and 6 against loops over the rows of a result."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr
from synthetic import synthetic_result

from hf_fastif.results.report.graph import influence_graph
from hf_fastif.results.report.tables import correlation_table, edge_table, save_tables, slice_influences


@pytest.fixture(scope="module")
def result():
    return synthetic_result({"small": 3, "large": 5, "other": 4}, num_trains=40, k=30)


@pytest.fixture(scope="module")
def graph(result):
    return influence_graph(result, "group", "group")


def test_edges_of_each_slice_and_subset(result, graph):
    rows = result.to_pandas()
    table = edge_table(graph)
    assert len(table) == 3 + 3 * 3
    for found in table.to_dict("records"):
        own = rows[rows["query_group"] == found["slice"]]
        if found["subset"] != "all":
            own = own[own["train_group"] == found["subset"]]
        for direction in ("helpful", "harmful"):
            values = [abs(row["influence"]) for _, row in own.iterrows() if row["direction"] == direction]
            assert found[f"{direction}_edges"] == len(values) > 0
            assert found[f"{direction}_mean"] == pytest.approx(sum(values) / len(values))
        assert found["queries"] == {"small": 3, "large": 5, "other": 4}[found["slice"]]


def test_mean_signed_influence_of_each_example_on_each_slice(result, graph):
    rows, z = result.to_pandas(), slice_influences(graph)
    assert np.isnan(z).any()
    for i, train in enumerate(graph.train_indices):
        for j, name in enumerate(graph.slices):
            values = rows[(rows["train_index"] == train) & (rows["query_group"] == name)]["influence"]
            assert z[i, j] == pytest.approx(values.mean() if len(values) else np.nan, nan_ok=True)


def test_correlations_over_the_examples_that_influence_both(result, graph):
    rows = result.to_pandas()
    means = rows.groupby(["train_index", "query_group"])["influence"].mean().unstack()
    table = correlation_table(graph)
    assert len(table) == 9
    for found in table.to_dict("records"):
        both = means[[found["slice"], found["other"]]].dropna().to_numpy()
        assert found["pairs"] == len(both)
        assert found["pearson"] == pytest.approx(pearsonr(*both.T)[0])
        assert found["spearman"] == pytest.approx(spearmanr(*both.T)[0])
    assert table[table["slice"] == table["other"]]["pearson"].to_numpy() == pytest.approx(1)
    assert not (table["pairs"] == table["pairs"].max()).all()


def test_what_is_not_defined_is_empty():
    graph = influence_graph(synthetic_result({"one": 1, "two": 1}, num_trains=500, k=1, seed=3), "group")
    table = correlation_table(graph)
    assert table["pairs"].tolist() == [1, 0, 0, 1]
    assert table[["pearson", "spearman"]].isna().all(axis=None)
    edges = edge_table(graph)
    assert (edges["helpful_edges"] + edges["harmful_edges"]).tolist() == [1, 1]
    assert np.isnan(edges["helpful_mean"]).tolist() == (edges["helpful_edges"] == 0).tolist()


def test_both_tables_are_written_twice(graph, tmp_path):
    paths = save_tables(graph, tmp_path / "new")
    assert [path.name for path in paths] == ["edges.csv", "edges.parquet", "correlations.csv", "correlations.parquet"]
    for path, table in zip(paths[1::2], (edge_table(graph), correlation_table(graph)), strict=True):
        pd.testing.assert_frame_equal(pd.read_parquet(path), table)
        pd.testing.assert_frame_equal(pd.read_csv(path.with_suffix(".csv")), table)
