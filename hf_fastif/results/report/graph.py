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
        subsets (`list[str]`): Names of the subsets of training examples, each with a circle of its own.
        query_indices (`np.ndarray` of shape `(Q,)`): Positions in the result, slice by slice.
        query_slices (`np.ndarray` of shape `(Q,)`): The slice of each query, ascending.
        train_indices (`np.ndarray` of shape `(M,)`): Positions among the candidates, ascending.
        train_subsets (`np.ndarray` of shape `(M,)`): The subset of each training example.
        edge_rows (`np.ndarray` of shape `(E,)`): Rows of `result.influences`.
        edge_queries (`np.ndarray` of shape `(E,)`): The query of each edge, as a position in `query_indices`.
        edge_trains (`np.ndarray` of shape `(E,)`): The training example of each, as a position in `train_indices`.
        influences (`np.ndarray` of shape `(E,)`): Positive is harmful, negative is helpful.
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

    @property
    def edge_slices(self) -> np.ndarray:
        """The slice (E,) of each edge."""
        return self.query_slices[self.edge_queries]

    @property
    def edge_subsets(self) -> np.ndarray:
        """The subset (E,) of each edge."""
        return self.train_subsets[self.edge_trains]

    def strengths(self) -> np.ndarray:
        """How strongly each edge (E,) is drawn: |influence| over the 99th percentile of its slice, at most 1.

        Sizes of influence compare within a slice only (table 5 of the paper says so, too).
        """
        size, slices, found = np.abs(self.influences), self.edge_slices, np.zeros(len(self.influences))
        for number in np.unique(slices):
            own = slices == number
            found[own] = np.minimum(size[own] / np.quantile(size[own], 0.99), 1)
        return found

    def strongest(self, ranks: np.ndarray, num_edges: int) -> InfluenceGraph:
        """The same graph with the m strongest edges of each query and direction, for the largest m that fits.

        Args:
            ranks (`np.ndarray` of shape `(E,)`): Of the edges, 1 being the strongest of a query and direction.
            num_edges (`int`): The most that are kept. One of each query and direction is kept in any case.
        """
        most = np.searchsorted(np.cumsum(np.bincount(ranks)), num_edges, side="right") - 1
        kept = np.flatnonzero(ranks <= max(most, 1))
        trains, numbers = np.unique(self.edge_trains[kept], return_inverse=True)
        return replace(
            self,
            train_indices=self.train_indices[trains],
            train_subsets=self.train_subsets[trains],
            edge_rows=self.edge_rows[kept],
            edge_queries=self.edge_queries[kept],
            edge_trains=numbers,
            influences=self.influences[kept],
        )


def influence_graph(
    result: ResultTables, slice_column: str | None = None, subset_column: str | None = None
) -> InfluenceGraph:
    """Makes the graph of a result: an edge for each of its rows.

    For the numbers of the paper keep every candidate that was scored: `find_influential(..., num_examples=None)`.

    Args:
        result ([`ResultTables`]): One result, or several that `ResultTables.join` made one.
        slice_column (`str`, *optional*): The column of the queries that names their slice. Unless given, the slices
            are the results that were joined; without any, all queries are one slice.
        subset_column (`str`, *optional*): The column of the training examples that names their subset.

    Raises:
        ValueError: If there is no such column, or no row.
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
    )


def _slices(result: ResultTables, column: str | None) -> tuple[list[str], np.ndarray]:
    """Names of the slices, and the slice of each query."""
    count = result.summary["num_queries"]
    if column is not None:
        first = np.unique(result.queries["query_index"], return_index=True)[1]  # anchors share an index
        return _named(result.queries, "slice_column", column, first)
    sizes = result.summary.get("slices", {"queries": count})
    if sum(sizes.values()) != count:
        raise InfluenceError(f"result.summary['slices'] is {sizes}, which is not {count} queries in all.")
    return list(sizes), np.repeat(np.arange(len(sizes)), list(sizes.values()))


def _subsets(influences: Dataset, column: str | None, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names of the subsets, and the subset of the training example of each row."""
    if column is None:
        return ["training examples"], np.zeros(len(rows), dtype=np.int64)
    return _named(influences, "subset_column", column, rows, "train_")


def _named(
    table: Dataset, argument: str, column: str, rows: np.ndarray, prefix: str = ""
) -> tuple[list[str], np.ndarray]:
    """The distinct values of a column in some rows by their names, sorted, and the number of each row's value."""
    if prefix + column not in table.column_names:
        known = [name.removeprefix(prefix) for name in table.column_names if name.startswith(prefix)]
        raise InfluenceError(f"{argument}={column!r}: there is no such column; give one of {', '.join(known)}.")
    values = with_label_names(table.select_columns(prefix + column).select(rows))[prefix + column]
    names, numbers = np.unique([str(value) for value in values], return_inverse=True)
    return names.tolist(), numbers
