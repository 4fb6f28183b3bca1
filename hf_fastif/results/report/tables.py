"""Tables 5 and 6 of the paper: edges of an influence graph by slice, and correlations between slices."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from hf_fastif.artifacts import atomic_write
from hf_fastif.results.report.graph import InfluenceGraph


EVERY = "all"  # in place of a subset


def edge_table(graph: InfluenceGraph) -> pd.DataFrame:
    """Return table 5 of the paper: the number and mean strength of helpful and harmful edges of each slice.

    Compare strengths only within a slice. With several subsets of training examples, there is an additional row for
    each slice and subset, which shows how influential each subset is on each slice.

    Returns:
        `pandas.DataFrame`: `slice`, `subset` ("all" or the name of a subset), `queries`, `helpful_mean` and
            `harmful_mean` (mean of |influence|; NaN without edges), `helpful_edges` and `harmful_edges`.
    """
    slices, subsets, helpful = graph.edge_slices, graph.edge_subsets, graph.influences < 0
    rows = []
    for subset in [None, *(range(len(graph.subsets)) if len(graph.subsets) > 1 else [])]:
        for number, name in enumerate(graph.slices):
            in_group = (slices == number) & (True if subset is None else subsets == subset)
            low, high = -graph.influences[in_group & helpful], graph.influences[in_group & ~helpful]
            rows.append(
                {
                    "slice": name,
                    "subset": EVERY if subset is None else graph.subsets[subset],
                    "queries": int((graph.query_slices == number).sum()),
                    "helpful_mean": low.mean() if len(low) else np.nan,
                    "harmful_mean": high.mean() if len(high) else np.nan,
                    "helpful_edges": len(low),
                    "harmful_edges": len(high),
                }
            )
    return pd.DataFrame(rows)


def slice_influences(graph: InfluenceGraph) -> np.ndarray:
    """Return Z (M, S), the mean signed influence of each training example on its adjacent queries in each slice.

    It is NaN where a training example has no edge to a slice (appendix C.2, "Details on Computing Correlations").
    """
    shape = len(graph.train_indices), len(graph.slices)
    cells = graph.edge_trains * shape[1] + graph.edge_slices
    sums, counts = (np.bincount(cells, weights, shape[0] * shape[1]) for weights in (graph.influences, None))
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0).reshape(shape)


def correlation_table(graph: InfluenceGraph) -> pd.DataFrame:
    """Return table 6 of the paper: how similarly training examples influence two slices.

    For each two slices, over the training examples with edges to both, it is the correlation of their mean signed
    influences on the slices. The paper does not specify the kind of correlation.

    Returns:
        `pandas.DataFrame`: `slice`, `other`, `pearson`, `spearman` (NaN if undefined) and `pairs`, the number of these
            training examples.
    """
    z = slice_influences(graph)
    rows = []
    for one, name in enumerate(graph.slices):
        for two, other in enumerate(graph.slices):
            a, b = z[~np.isnan(z[:, [one, two]]).any(axis=1)][:, [one, two]].T
            rows.append(
                {
                    "slice": name,
                    "other": other,
                    "pearson": _correlation(a, b),
                    "spearman": _correlation(rankdata(a), rankdata(b)),
                    "pairs": len(a),
                }
            )
    return pd.DataFrame(rows)


def save_tables(graph: InfluenceGraph, folder: str | os.PathLike[str]) -> list[Path]:
    """Write `edges` (table 5) and `correlations` (table 6), each as CSV and as parquet, and return their paths.

    Args:
        graph ([`InfluenceGraph`]): The graph that `influence_graph` returned.
        folder (`str` or `Path`): The folder, which is created if needed.

    Example:

    ```python
    from hf_fastif.results import influence_graph, save_tables

    save_tables(influence_graph(result), "tables")
    ```
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, table in (("edges", edge_table(graph)), ("correlations", correlation_table(graph))):
        paths.append(atomic_write(folder / f"{name}.csv", lambda path, table=table: table.to_csv(path, index=False)))
        paths.append(atomic_write(folder / f"{name}.parquet", table.to_parquet))
    return paths


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
