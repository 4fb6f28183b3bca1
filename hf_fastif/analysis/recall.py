"""Measure how many of the most influential examples an index finds (section 5.2 and figure 3a of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from scipy.stats import sem

from hf_fastif.analysis.result import AnalysisResult
from hf_fastif.analysis.session_tools import changed, influence_manifest, open_analysis_results
from hf_fastif.artifacts.plots import add_legend, colors_of, draw_points, mark_sizes, name_panel, new_figure
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import Tensors
from hf_fastif.settings import FeatureName
from hf_fastif.solvers import Solution
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIGN_OF_SELECTION = {"helpful": 1.0, "harmful": -1.0, "absolute": None}  # factor of the scores before sorting
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # default k as fractions of the candidates


@dataclass(frozen=True)
class Recall(AnalysisResult):
    """The fraction of the top m of the full scan that is among the k nearest neighbors, averaged over queries.

    Attributes:
        table (`list[dict]`): Rows with `direction` ("helpful", "harmful" or "absolute"), `m`, `k`, `recall` (the mean
            over queries) and `std_err` (its standard error).
        num_candidates (`int`): Number of candidates N.
        num_queries (`int`): Number of queries.
    """

    table: list[dict[str, str | int | float]]
    num_candidates: int
    num_queries: int

    def suggested_k(self, wanted: float = 0.95, m: int = 10, direction: str = "absolute") -> int | None:
        """Return the smallest k of the table whose recall is high enough, or None.

        Args:
            wanted (`float`, *optional*, defaults to 0.95): The recall to reach, from 0 to 1.
            m (`int`, *optional*, defaults to 10): Number of most influential examples to find, one of the `m` in
                `table`.
            direction (`str`, *optional*, defaults to `"absolute"`): "helpful", "harmful" or "absolute".

        Example:
            ```python
            k = recall(trainer, queries).suggested_k(0.99)
            result = trainer.find_influential(queries, num_neighbors=k)
            ```
        """
        enough = pd.DataFrame(self.table).query("direction == @direction and m == @m and recall >= @wanted")
        return None if enough.empty else int(enough["k"].min())

    def __str__(self) -> str:
        lines = [f"{self.num_queries} queries, {self.num_candidates:,} candidates"]
        for m, rows in pd.DataFrame(self.table).query("direction == 'absolute'").groupby("m", sort=False):
            points = zip(rows["k"], rows["recall"], strict=True)
            lines += [self._suggestion(m), "  " + ", ".join(f"k = {k}: {recall:.2f}" for k, recall in points)]
        return "\n".join(lines)

    def _suggestion(self, m: int) -> str:
        k = self.suggested_k(m=m)
        return f"95 % of the top {m} are among k = {k:,}" if k else f"no measured k holds 95 % of the top {m}"

    def figure(self) -> Figure:
        """Draw recall against k, with one panel for each direction."""
        table = pd.DataFrame(self.table)
        title = "; ".join(map(self._suggestion, table["m"].unique()))
        figure, panels = new_figure(10, 3.8, columns=len(SIGN_OF_SELECTION), title=title, sharey=True)
        for axes, direction in zip(panels[0], SIGN_OF_SELECTION, strict=True):
            _draw_recall(axes, table[table["direction"] == direction], "top {m}")
            axes.set_xlabel("k, neighbors scored")
            name_panel(axes, direction)
        panels[0, 0].set_ylabel("recall")
        add_legend(figure, axes)
        return figure


def _draw_recall(axes: Axes, table: pd.DataFrame, label: str) -> None:
    """Draw recall against k, with one color for each kind of features, or for each m if there is a single kind."""
    by_kind = "features" in table
    series = table["features"] if by_kind else table["m"].astype(str)
    colors, dashes = colors_of(series), dict(zip(table["m"].unique(), ("-", "--", ":", "-."), strict=False))
    for (name, m), rows in table.groupby([series.rename("series"), "m"], sort=False):
        recall, error = rows["recall"], rows["std_err"]
        style = {"color": colors[name], "linestyle": dashes.get(m, "-") if by_kind else "-", "marker": "o"}
        draw_points(
            axes, rows["k"], recall, recall - error, recall + error, **style, label=label.format(name=name, m=m)
        )
    mark_sizes(axes, table["k"])
    axes.set_ylim(0, 1.05)


def recall(
    trainer: InfluenceTrainer,
    queries: Dataset,
    top: Sequence[int] = (10, 100),
    *,
    ks: Sequence[int] | None = None,
    candidates: Dataset | None = None,
    s_test: Solution | None = None,
    query_features: np.ndarray | None = None,
    scan: np.ndarray | None = None,
) -> Recall:
    """Compare the nearest neighbors in the index with a full scan.

    If the index answers (`args.solver` is "auto" or "sketch"), its own ranking is compared with scores from exact
    gradients and an iterative solver. Otherwise both rank by the s_test of `args.solver`.

    Args:
        trainer ([`InfluenceTrainer`]): A trainer with an index of the candidates.
        queries (`datasets.Dataset`): The Q queries; a few tens are enough.
        top (`Sequence[int]`, *optional*): Numbers m of most influential examples to find.
        ks (`Sequence[int]`, *optional*): Numbers k of neighbors, by default from 0.1 % to 50 % of the candidates.
        candidates (`datasets.Dataset`, *optional*): The N candidates, by default `trainer.train_dataset`.
        s_test ([`Solution`], *optional*): The return value of `trainer.compute_s_test(queries)`, to reuse it.
        query_features (`np.ndarray` of shape `(Q, d)`, *optional*): Features of the queries, if the index was built
            from custom features.
        scan (`np.ndarray` of shape `(Q, N)`, *optional*): The return value of `trainer.compute_influence(queries)`, to
            reuse it.

    Returns:
        [`Recall`]: The recall for every direction, m and k. Printing it shows a suggested k.

    Raises:
        InfluenceError: If some m exceeds the number of candidates, or the candidates have no index.

    Example:
        ```python
        trainer.build_index()
        print(recall(trainer, dev.select(range(50))))
        ```
    """
    count = len(trainer.train_dataset if candidates is None else candidates)
    ks = _checked_ks(count, top, ks)
    by_index = s_test is None and _index_answers(trainer)
    solution = _exact_s_test(trainer, queries) if s_test is None and (scan is None or not by_index) else s_test
    given = None if by_index else solution
    neighbors = trainer.find_candidates(queries, ks[-1], candidates, given, query_features)
    scores = trainer.compute_influence(queries, candidates, solution) if scan is None else scan
    return Recall(_table(scores, neighbors, top, ks), count, len(scores))


def _index_answers(trainer: InfluenceTrainer) -> bool:
    """Tell whether queries are answered by the index alone."""
    with trainer.session() as session, session.checkpoints.at(0):
        return session.setup().name == "sketch"


def _exact_s_test(trainer: InfluenceTrainer, queries: Dataset) -> Solution:
    """Compute s_test over all parameters: by `args.solver`, or an iterative solver if that is the index."""
    with trainer.session() as session, session.checkpoints.at(0):
        setup = session.setup()
        solver = setup.iterative if setup.name == "sketch" else setup.name
    with changed(trainer, solver=solver):
        return trainer.compute_s_test(queries)


def _checked_ks(count: int, top: Sequence[int], ks: Sequence[int] | None) -> list[int]:
    if max(top) > count:
        raise InfluenceError(f"top={tuple(top)}: there are {count} candidates; give at most {count}.")
    return sorted(set(ks or (max(1, round(share * count)) for share in SHARES)))


def _table(
    scores: np.ndarray, neighbors: np.ndarray, top: Sequence[int], ks: Sequence[int]
) -> list[dict[str, str | int | float]]:
    """Return the rows of a `Recall`, given scores (Q, N) and the rows of the neighbors (Q, k), nearest first."""
    ranks = np.full(scores.shape, scores.shape[1])  # of each candidate among the neighbors; N if it is not one
    np.put_along_axis(ranks, neighbors, np.arange(neighbors.shape[1])[None], axis=1)
    table = []
    for direction, sign in SIGN_OF_SELECTION.items():
        order = np.argsort(-np.abs(scores) if sign is None else sign * scores, axis=1)
        for m in top:
            ranks_of_top = np.take_along_axis(ranks, order[:, :m], axis=1)
            for k in ks:
                shares = (ranks_of_top < k).mean(axis=1)
                error = float(sem(shares, ddof=0))
                table.append(
                    {"direction": direction, "m": m, "k": k, "recall": float(shares.mean()), "std_err": error}
                )
    return table


@dataclass(frozen=True)
class RecallOfFeatures(AnalysisResult):
    """Recall of every kind of index features for groups of queries.

    Attributes:
        table (`list[dict]`): The rows of [`Recall`] with the additional columns `features` (the kind), `group` and
            `num_queries`.
        num_candidates (`int`): Number of candidates N.
        damping (`float`): Damping lambda of the full scan.
    """

    table: list[dict[str, str | int | float]]
    num_candidates: int
    damping: float

    def recall_of(self, features: str, group: str) -> Recall:
        """Return the recall of one kind of features for one group of queries.

        Example:
            ```python
            k = recall_of_features(trainer, queries).recall_of("gradient_sketch", "all").suggested_k()
            ```
        """
        rows = pd.DataFrame(self.table).query("features == @features and group == @group").to_dict("records")
        return Recall(rows, self.num_candidates, rows[0]["num_queries"])

    def __str__(self) -> str:
        parts = pd.DataFrame(self.table).groupby(["features", "group"], sort=False).groups
        return "\n".join(f"{features}, {group}: {self.recall_of(features, group)}" for features, group in parts)

    def figure(self) -> Figure:
        """Draw recall against k, with a row of panels for each group of queries and a column for each direction."""
        table = pd.DataFrame(self.table)
        groups, rows, columns = list(table["group"].unique()), table["group"].nunique(), len(SIGN_OF_SELECTION)
        size = {"rows": rows, "columns": columns, "sharex": True, "sharey": True}
        figure, panels = new_figure(12, 3 * rows + 0.8, **size, title=self._conclusion(table))
        for line, group in zip(panels, groups, strict=True):
            for axes, direction in zip(line, SIGN_OF_SELECTION, strict=True):
                part = table[(table["group"] == group) & (table["direction"] == direction)]
                _draw_recall(axes, part, "{name}, top {m}")
                name_panel(axes, f"{direction}, {group}")
            line[0].set_ylabel("recall")
        for axes in panels[-1]:
            axes.set_xlabel("k, neighbors scored")
        add_legend(figure, panels[0, 0])
        return figure

    def _conclusion(self, table: pd.DataFrame) -> str:
        m = table["m"].min()
        part = table.query("group == @table.group[0] and direction == 'absolute' and m == @m")
        best = part.groupby("features", sort=False)["recall"].mean().idxmax()
        return f"The {m} most influential examples are best found with {best} (mean recall over all k)"


def recall_of_features(
    trainer: InfluenceTrainer,
    queries: Dataset,
    groups: Mapping[str, Sequence[bool]] | None = None,
    kinds: Sequence[str] = get_args(FeatureName),
    top: Sequence[int] = (10, 100),
    ks: Sequence[int] | None = None,
) -> RecallOfFeatures:
    """Build an index of every kind of features and compare its nearest neighbors with a full scan.

    s_test, scan and neighbors are saved in `output_dir/recall` for later calls to reuse.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer, whose settings determine solver and damping of the full scan, as
            in [`recall`].
        queries (`datasets.Dataset`): The Q queries.
        groups (`Mapping[str, Sequence[bool]]`, *optional*): Which queries belong to each named group, bool (Q,). The
            group "all" of all queries is added.
        kinds (`Sequence[str]`, *optional*): Kinds of features, as in `InfluenceConfig.index_features`, by default all.
        top (`Sequence[int]`, *optional*): See [`recall`].
        ks (`Sequence[int]`, *optional*): See [`recall`].

    Returns:
        [`RecallOfFeatures`]: The recall of every kind of features in every group.

    Raises:
        InfluenceError: If some m exceeds the number of candidates, or a kind of features does not exist.

    Example:
        ```python
        print(recall_of_features(trainer, dev.select(range(50)), kinds=["gradient_sketch", "pooled"]))
        ```
    """
    count = len(trainer.train_dataset)
    ks = _checked_ks(count, top, ks)
    for kind in kinds:
        with changed(trainer, index_features=kind):
            pass  # validate before the work starts
    parts = open_analysis_results(trainer, "recall", influence_manifest(trainer, queries=queries))
    solution = Solution.from_tensors(parts.get("s_test", lambda: _exact_s_test(trainer, queries).to_tensors()))

    def scan() -> Tensors:
        return {"scores": torch.from_numpy(trainer.compute_influence(queries, s_test=solution))}

    def find(kind: str) -> Tensors:
        with changed(trainer, index_features=kind):
            trainer.build_index()
            given = None if _index_answers(trainer) else solution
            return {"rows": torch.from_numpy(trainer.find_candidates(queries, ks[-1], s_test=given))}

    scores, table = parts.get("scan", scan)["scores"].cpu().numpy(), []
    groups = {"all": np.ones(len(queries), dtype=bool)} | {
        name: np.asarray(in_group) for name, in_group in (groups or {}).items()
    }
    for kind in kinds:
        neighbors = parts.get(f"candidates-{kind}-{ks[-1]}", lambda kind=kind: find(kind))["rows"].cpu().numpy()
        for group, in_group in groups.items():
            columns = {"features": kind, "group": group, "num_queries": int(in_group.sum())}
            table += [columns | row for row in _table(scores[in_group], neighbors[in_group], top, ks)]
    return RecallOfFeatures(table, count, solution.damping)
