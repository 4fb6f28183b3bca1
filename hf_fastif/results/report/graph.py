"""The bipartite graph of queries and training examples (section 6.2 and appendix C.2 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from datasets import Dataset

from hf_fastif.data import with_label_names
from hf_fastif.errors import InfluenceError
from hf_fastif.results.tables import ResultTables


@dataclass(frozen=True)
class InfluenceGraph:
    """Q queries, M training examples, and an edge for each of E influences.

    Attributes:
        slices (`list[str]`): Names of the slices of queries, in their order around the circle.
        subsets (`list[str]`): Names of the subsets of training examples, each with a separate circle.
        query_indices (`np.ndarray` of shape `(Q,)`): Positions in the result, slice by slice.
        query_slices (`np.ndarray` of shape `(Q,)`): The slice of each query, ascending.
        train_indices (`np.ndarray` of shape `(M,)`): Positions among the candidates, ascending.
        train_subsets (`np.ndarray` of shape `(M,)`): The subset of each training example.
        edge_rows (`np.ndarray` of shape `(E,)`): Rows of `result.influences`.
        edge_queries (`np.ndarray` of shape `(E,)`): The query of each edge, as a position in `query_indices`.
        edge_trains (`np.ndarray` of shape `(E,)`): The training example of each edge, as a position in
            `train_indices`.
        influences (`np.ndarray` of shape `(E,)`): Positive is harmful, negative is helpful.
        measure (`str`): What they are an influence on: `"loss"`, or the measure in its place.
    """

    slices: list[str]
    subsets: list[str]
    query_indices: np.ndarray
    query_slices: np.ndarray
    train_indices: np.ndarray
    train_subsets: np.ndarray
    edge_rows: np.ndarray
    edge_queries: np.ndarray
    edge_trains: np.ndarray
    influences: np.ndarray
    measure: str

    @property
    def edge_slices(self) -> np.ndarray:
        """Return the slice (E,) of each edge."""
        return self.query_slices[self.edge_queries]

    @property
    def edge_subsets(self) -> np.ndarray:
        """Return the subset (E,) of each edge."""
        return self.train_subsets[self.edge_trains]

    def strengths(self) -> np.ndarray:
        """Return how strongly to draw each edge (E,): |influence| over the 99th percentile of its slice, at most 1.

        Influences are comparable only within a slice (see also table 5 of the paper).
        """
        size, slices, strengths = np.abs(self.influences), self.edge_slices, np.zeros(len(self.influences))
        for number in np.unique(slices):
            in_slice = slices == number
            strengths[in_slice] = np.minimum(size[in_slice] / np.quantile(size[in_slice], 0.99), 1)
        return strengths

    def strongest(self, ranks: np.ndarray, num_edges: int) -> InfluenceGraph:
        """Return the graph of the m strongest edges of each query and direction, for the largest m that fits.

        Args:
            ranks (`np.ndarray` of shape `(E,)`): Ranks of the edges, 1 being the strongest of a query and direction.
            num_edges (`int`): The maximum number of edges. At least one edge of each query and direction is kept.
        """
        most = np.searchsorted(np.cumsum(np.bincount(ranks)), num_edges, side="right") - 1
        chosen = np.flatnonzero(ranks <= max(most, 1))
        trains, numbers = np.unique(self.edge_trains[chosen], return_inverse=True)
        return replace(
            self,
            train_indices=self.train_indices[trains],
            train_subsets=self.train_subsets[trains],
            edge_rows=self.edge_rows[chosen],
            edge_queries=self.edge_queries[chosen],
            edge_trains=numbers,
            influences=self.influences[chosen],
        )


def influence_graph(
    result: ResultTables, slice_column: str | None = None, subset_column: str | None = None
) -> InfluenceGraph:
    """Return the graph of a result, with an edge for each of its rows.

    To reproduce the numbers of the paper, keep every scored candidate: `find_influential(..., num_examples=None)`.

    Args:
        result ([`InfluenceResult`]): A result, or several that `InfluenceResult.join` merged.
        slice_column (`str`, *optional*): The column of the queries that names their slice. By default, the results
            that were joined are the slices, or all queries form one slice.
        subset_column (`str`, *optional*): The column of the training examples that names their subset.

    Raises:
        InfluenceError: If there is no such column, or no row.

    Example:

    ```python
    from hf_fastif.results import influence_graph, plot_graph

    graph = influence_graph(result, slice_column="genre")
    plot_graph(graph, "graph.png")
    ```
    """
    columns = result.influences.with_format("arrow")[:]
    if not len(columns):
        raise InfluenceError("result.influences has no rows: no training example helps or harms any of the queries.")
    slices, of_query = _slices(result, slice_column)
    order = np.argsort(of_query, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    trains, first, numbers = np.unique(columns["train_index"].to_numpy(), return_index=True, return_inverse=True)
    subsets, of_train = _subsets(result.influences, subset_column, first)
    return InfluenceGraph(
        slices=slices,
        subsets=subsets,
        query_indices=order,
        query_slices=of_query[order],
        train_indices=trains,
        train_subsets=of_train,
        edge_rows=np.arange(len(columns)),
        edge_queries=place[columns["query_index"].to_numpy()],
        edge_trains=numbers,
        influences=columns["influence"].to_numpy().astype(np.float64),
        measure=result.summary.measure,
    )


def _slices(result: ResultTables, column: str | None) -> tuple[list[str], np.ndarray]:
    """Return the names of the slices, and the slice of each query."""
    count = result.summary.num_queries
    if column is not None:
        first = np.unique(result.queries["query_index"], return_index=True)[1]  # anchors share an index
        return _named(result.queries, "slice_column", column, first)
    sizes = result.summary.slices or {"queries": count}
    if sum(sizes.values()) != count:
        raise InfluenceError(f"result.summary.slices is {sizes}, which is not {count} queries in all.")
    return list(sizes), np.repeat(np.arange(len(sizes)), list(sizes.values()))


def _subsets(influences: Dataset, column: str | None, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the names of the subsets, and the subset of the training example of each row."""
    if column is None:
        return ["training examples"], np.zeros(len(rows), dtype=np.int64)
    return _named(influences, "subset_column", column, rows, "train_")


def _named(
    table: Dataset, argument: str, column: str, rows: np.ndarray, prefix: str = ""
) -> tuple[list[str], np.ndarray]:
    """Return the sorted distinct values of a column in some rows, as names, and the number of each row's value."""
    if prefix + column not in table.column_names:
        known = [name.removeprefix(prefix) for name in table.column_names if name.startswith(prefix)]
        raise InfluenceError(f"{argument}={column!r}: there is no such column; give one of {', '.join(known)}.")
    values = with_label_names(table.select_columns(prefix + column).select(rows))[prefix + column]
    names, numbers = np.unique([str(value) for value in values], return_inverse=True)
    return names.tolist(), numbers
