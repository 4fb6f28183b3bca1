"""Are the training examples that state a fact among those that helped a model to complete it?"""

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
    """The share of the training examples stating a query's fact that is among its k most helpful ones.

    Attributes:
        table (`list[dict]`): `method`, `recall` (a mean over queries), `std_err` (of that mean; 0 of a single query).
        k (`int`): How many examples each method may name.
        num_queries (`int`): Queries that it is a mean over.
        num_candidates (`int`): N.
        num_relevant (`float`): Training examples that state the fact of a query, a mean.
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
        """Draws a bar for each method."""
        table = pd.DataFrame(self.table)
        best = table.loc[table["recall"].idxmax()]
        title = f"{best['method']} finds most of what states a fact: recall@{self.k} {best['recall']:.2f}"
        figure, ((axes,),) = new_figure(7, 1.3 + 0.4 * len(table), title=title)
        colors = [HELPFUL if name.startswith("influence") else NEUTRAL for name in table["method"]]
        axes.barh(
            table.index, table["recall"], height=0.6, xerr=table["std_err"], capsize=3, color=colors, ecolor=TEXT
        )
        axes.axvline(self.k / self.num_candidates, color=TEXT, linestyle=":")
        name_rows(axes, table["method"])
        axes.set(xlim=(0, 1), xlabel=f"recall@{self.k}, a mean over queries (dotted: by chance)")
        return figure


def retrieval(
    trainer: InfluenceTrainer,
    queries: Dataset,
    text_columns: Sequence[str],
    result: InfluenceResult | None = None,
    s_test: Solution | None = None,
    k: int = 10,
    column: str = "fact",
) -> Retrieval:
    """Compares influence with other ways to find the training examples that state the facts of some queries.

    The others are the product of gradients, the similarity of representations, and BM25 over the texts.

    Args:
        trainer ([`InfluenceTrainer`]): Whose settings say how influence is computed.
        queries (`datasets.Dataset`): Q examples, with the number of their fact in `column`. Those whose fact no
            training example states do not count.
        text_columns (`Sequence[str]`): Columns of texts, for BM25.
        result ([`InfluenceResult`], *optional*): What `trainer.find_influential(queries)` returned, of k examples in
            each direction or more; what it found among nearest neighbours is measured beside the full scan.
        s_test ([`Solution`], *optional*): What `trainer.compute_s_test(queries)` returned, if it was called before.
        k (`int`, *optional*, defaults to 10): How many examples each method may name.
        column (`str`, *optional*, defaults to `"fact"`): The number of what an example states, negative where it
            states nothing.

    Returns:
        [`Retrieval`]: `print` it.

    Raises:
        ValueError: If a dataset lacks the column, no training example states the fact of any query, or the result
            lists fewer than k examples.
    """
    relevant = _relevant(trainer.train_dataset, queries, column)
    asked = relevant.any(axis=1)
    listed = None if result is None else result.summary.num_examples
    if listed is not None and listed < k:
        raise InfluenceError(f"k={k}: the result lists {listed} examples in each direction; ask for num_examples={k}.")
    found = {}
    if result is not None and result.summary.num_neighbors is not None:
        found[f"influence, of {result.summary.num_neighbors:,} neighbours"] = _listed(result, k)
    ways: dict[str, Method] = {
        "influence": lambda trainer, queries: trainer.compute_influence(queries, s_test=s_test),
        **{name: METHODS[name] for name in BASELINES},
        "BM25": partial(text_overlap, columns=text_columns),
    }
    for name, way in ways.items():
        found[name] = np.argsort(way(trainer, queries), axis=1, kind="stable")[:, :k]
    table = []
    for name, rows in found.items():
        shares = [own[chosen].sum() / own.sum() for own, chosen in zip(relevant, rows, strict=True) if own.any()]
        error = sem(shares) if len(shares) > 1 else 0.0
        table.append({"method": name, "recall": float(np.mean(shares)), "std_err": float(error)})
    number = float(relevant[asked].sum(axis=1).mean())
    return Retrieval(table, k, int(asked.sum()), len(trainer.train_dataset), number)


def _relevant(train: Dataset, queries: Dataset, column: str) -> np.ndarray:
    """Whether each training example states the fact of each query, bool (Q, N)."""
    for name, dataset in (("train_dataset", train), ("queries", queries)):
        if column not in dataset.column_names:
            raise InfluenceError(f"column={column!r} is not in {name}, which has: {', '.join(dataset.column_names)}.")
    stated, asked = np.asarray(train[column]), np.asarray(queries[column])[:, None]
    found = (stated == asked) & (asked >= 0)
    if not found.any():
        raise InfluenceError(f"queries: no training example states the fact of any, by the numbers in {column!r}.")
    return found


def _listed(result: InfluenceResult, k: int) -> list[np.ndarray]:
    """The k most helpful rows that a result lists for each query, fewer where fewer help."""
    return [
        np.array(result.helpful(query)["train_index"][:k], dtype=np.int64)
        for query in range(result.summary.num_queries)
    ]
