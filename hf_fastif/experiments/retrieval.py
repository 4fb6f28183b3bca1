"""Measure whether the training examples that state a fact are among those that helped a model to complete it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.stats import sem

from hf_fastif.analysis import METHODS, AnalysisResult, Method
from hf_fastif.artifacts.plots import HELPFUL, NEUTRAL, TEXT, name_rows, new_figure
from hf_fastif.errors import InfluenceError
from hf_fastif.experiments.bm25 import text_overlap
from hf_fastif.results import InfluenceResult
from hf_fastif.solvers import Solution
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINES = ("gradient product", "representation similarity")


@dataclass(frozen=True)
class Retrieval(AnalysisResult):
    """The fraction of the training examples stating a query's fact that are among its k most helpful examples.

    Attributes:
        table (`list[dict]`): Rows with `method`, `recall` (the mean over queries) and `std_err` (its standard error, 0
            for a single query).
        k (`int`): Number of examples that each method retrieves.
        num_queries (`int`): Number of queries with at least one relevant training example.
        num_candidates (`int`): Number of training examples N.
        num_relevant (`float`): Mean number of training examples that state the fact of a query.
    """

    table: list[dict[str, str | float]]
    k: int
    num_queries: int
    num_candidates: int
    num_relevant: float

    def __str__(self) -> str:
        lines = [
            f"{self.num_queries} queries, {self.num_relevant:.3g} of {self.num_candidates:,} training examples state "
            f"the fact of each; by chance recall@{self.k} would be {self.k / self.num_candidates:.2g}"
        ]
        lines += [
            f"  {row['method']}: recall@{self.k} {row['recall']:.2f} ± {row['std_err']:.2f}" for row in self.table
        ]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw the recall of every method as a bar."""
        table = pd.DataFrame(self.table)
        best = table.loc[table["recall"].idxmax()]
        title = f"Examples that state a fact are best found by {best['method']}: recall@{self.k} {best['recall']:.2f}"
        figure, ((axes,),) = new_figure(7, 1.3 + 0.4 * len(table), title=title)
        colors = [HELPFUL if name.startswith("influence") else NEUTRAL for name in table["method"]]
        axes.barh(
            table.index, table["recall"], height=0.6, xerr=table["std_err"], capsize=3, color=colors, ecolor=TEXT
        )
        axes.axvline(self.k / self.num_candidates, color=TEXT, linestyle=":")
        name_rows(axes, table["method"])
        axes.set(xlim=(0, 1), xlabel=f"recall@{self.k}, mean over queries (dotted: by chance)")
        return figure


def retrieval(
    trainer: InfluenceTrainer,
    queries: Dataset,
    text_columns: Sequence[str],
    *,
    result: InfluenceResult | None = None,
    s_test: Solution | None = None,
    k: int = 10,
    column: str = "fact",
) -> Retrieval:
    """Compare influence with baselines in finding the training examples that state the facts of queries.

    The baselines are the product of gradients, the similarity of representations, and BM25 over the texts.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer, whose settings determine how influence is computed.
        queries (`datasets.Dataset`): The Q queries, with the number of their fact in `column`. Queries whose fact no
            training example states are left out.
        text_columns (`Sequence[str]`): Columns of texts for BM25.
        result ([`InfluenceResult`], *optional*): The return value of `trainer.find_influential(queries)` with at least
            k examples in each direction. If it was limited to nearest neighbors, its recall is reported beside that of
            the full scan.
        s_test ([`Solution`], *optional*): The return value of `trainer.compute_s_test(queries)`, to reuse it.
        k (`int`, *optional*, defaults to 10): Number of examples that each method retrieves.
        column (`str`, *optional*, defaults to `"fact"`): Column with the number of the fact that an example states,
            negative if it states none.

    Returns:
        [`Retrieval`]: The recall of every method.

    Raises:
        InfluenceError: If a dataset lacks the column, no training example states the fact of any query, or the result
            lists fewer than k examples.
        MissingExtraError: If bm25s is not installed.

    Example:
        ```python
        print(retrieval(trainer, queries, ["prompt", "completion"], k=10))
        ```
    """
    relevant = _relevant(trainer.train_dataset, queries, column)
    has_relevant = relevant.any(axis=1)
    listed = None if result is None else result.summary.num_examples
    if listed is not None and listed < k:
        raise InfluenceError(f"k={k}: the result lists {listed} examples in each direction; ask for num_examples={k}.")
    retrieved = {}
    if result is not None and result.summary.num_neighbors is not None:
        retrieved[f"influence, of {result.summary.num_neighbors:,} neighbours"] = _listed(result, k)
    methods: dict[str, Method] = {
        "influence": lambda trainer, queries: trainer.compute_influence(queries, s_test=s_test),
        **{name: METHODS[name] for name in BASELINES},
        "BM25": partial(text_overlap, columns=text_columns),
    }
    for name, method in methods.items():
        retrieved[name] = np.argsort(method(trainer, queries), axis=1, kind="stable")[:, :k]
    table = []
    for name, rows in retrieved.items():
        shares = [mask[top].sum() / mask.sum() for mask, top in zip(relevant, rows, strict=True) if mask.any()]
        error = sem(shares) if len(shares) > 1 else 0.0
        table.append({"method": name, "recall": float(np.mean(shares)), "std_err": float(error)})
    num_relevant = float(relevant[has_relevant].sum(axis=1).mean())
    return Retrieval(table, k, int(has_relevant.sum()), len(trainer.train_dataset), num_relevant)


def _relevant(train: Dataset, queries: Dataset, column: str) -> np.ndarray:
    """Compute whether each training example states the fact of each query, bool (Q, N).

    Raises:
        InfluenceError: If a dataset lacks the column, or no training example states the fact of any query.
    """
    for name, dataset in (("train_dataset", train), ("queries", queries)):
        if column not in dataset.column_names:
            raise InfluenceError(
                f"column={column!r} is not in {name}; give one of its columns: {', '.join(dataset.column_names)}."
            )
    stated, queried = np.asarray(train[column]), np.asarray(queries[column])[:, None]
    relevant = (stated == queried) & (queried >= 0)
    if not relevant.any():
        raise InfluenceError(
            f"queries: no training example has the same number in {column!r} as any query; give queries whose fact "
            "the training set states."
        )
    return relevant


def _listed(result: InfluenceResult, k: int) -> list[np.ndarray]:
    """Return the rows of the k most helpful examples of each query, or fewer if fewer are helpful."""
    return [
        np.array(result.helpful(query)["train_index"][:k], dtype=np.int64)
        for query in range(result.summary.num_queries)
    ]
