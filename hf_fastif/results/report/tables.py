"""Tables 5 and 6 of the paper: what the edges of an influence graph say about slices."""

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
    """Table 5: for each slice the number of its helpful and harmful edges, and how strong they are on average.

    Sizes compare within a slice only. With several subsets of training examples there is a row for each slice and
    subset as well, which tells which subset is influential on which slice.

    Returns:
        `pandas.DataFrame`: `slice`, `subset` ("all", or one of several), `queries`, `helpful_mean` and `harmful_mean`
        (mean of |influence|; NaN without edges), `helpful_edges` and `harmful_edges`.
    """
    slices, subsets, helpful = graph.edge_slices, graph.edge_subsets, graph.influences < 0
    rows = []
    for subset in [None, *(range(len(graph.subsets)) if len(graph.subsets) > 1 else [])]:
        for number, name in enumerate(graph.slices):
            own = (slices == number) & (True if subset is None else subsets == subset)
            low, high = -graph.influences[own & helpful], graph.influences[own & ~helpful]
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
    """Z (M, S): the mean signed influence of each training example on the queries of a slice that it has edges to.

    NaN where it has none (appendix C.2, "Details on Computing Correlations").
    """
    shape = len(graph.train_indices), len(graph.slices)
    cells = graph.edge_trains * shape[1] + graph.edge_slices
    sums, counts = (np.bincount(cells, weights, shape[0] * shape[1]) for weights in (graph.influences, None))
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0).reshape(shape)


def correlation_table(graph: InfluenceGraph) -> pd.DataFrame:
    """Table 6: do the training examples that influence one slice influence another one alike?

    For each two slices, over the training examples with edges to both, the correlation of their mean signed influence
    on one and on the other. The paper does not say which correlation it takes.

    Returns:
        `pandas.DataFrame`: `slice`, `other`, `pearson`, `spearman` (NaN where they are not defined) and `pairs`, the
        number of these training examples.
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
    """Writes `edges` (table 5) and `correlations` (table 6), each as CSV and as parquet, and returns their paths."""
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
