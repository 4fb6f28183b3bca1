"""How many of the most influential examples an index finds (section 5.2 and figure 3a of the paper)."""

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

SIGN_OF_SELECTION = {"helpful": 1.0, "harmful": -1.0, "absolute": None}  # the sign with which scores are sorted
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of the candidates, for k


@dataclass(frozen=True)
class Recall(AnalysisResult):
    """The share of the top m of the full scan that is among the k nearest neighbours, as a mean over queries.

    Attributes:
        table (`list[dict]`): `direction` ("helpful", "harmful", "absolute"), `m`, `k`, `recall`, `std_err` (of the
            mean over queries).
        num_candidates (`int`): N.
        num_queries (`int`): Queries that it is a mean over.
    """

    table: list[dict[str, str | int | float]]
    num_candidates: int
    num_queries: int

    def suggested_k(self, wanted: float = 0.95, m: int = 10, direction: str = "absolute") -> int | None:
        """The smallest k of the table with that recall, or None if none has it."""
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
        return f"k = {k} holds 95 % of the top {m}" if k else f"no k that was tried holds 95 % of the top {m}"

    def figure(self) -> Figure:
        """Draws recall against k, a panel for each direction."""
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
    """Draw recall against k: a color for each kind of features, or each m where there is one kind."""
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
    ks: Sequence[int] | None = None,
    candidates: Dataset | None = None,
    s_test: Solution | None = None,
    query_features: np.ndarray | None = None,
    scan: np.ndarray | None = None,
) -> Recall:
    """Compares the candidates that the index proposes with a full scan, for a sample of queries.

    Args:
        trainer ([`InfluenceTrainer`]): With an index.
        queries (`datasets.Dataset`): A few tens tell.
        top (`Sequence[int]`, *optional*): The m of "top m of the full scan".
        ks (`Sequence[int]`, *optional*): The numbers of neighbours to try, by default from 0.1 % to half of all.
        candidates (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given.
        s_test ([`Solution`], *optional*): What `trainer.compute_s_test(queries)` returned.
        query_features (`np.ndarray`, *optional*): Where the index is of your own features.
        scan (`np.ndarray`, *optional*): What `trainer.compute_influence(queries)` returned.

    Returns:
        [`Recall`]: `print` it for a suggested k.

    Raises:
        ValueError: If some m exceeds the candidates.
    """
    count = len(trainer.train_dataset if candidates is None else candidates)
    ks = _checked_ks(count, top, ks)
    solution = trainer.compute_s_test(queries) if s_test is None else s_test
    found = trainer.find_candidates(queries, ks[-1], candidates, solution, query_features)
    scores = trainer.compute_influence(queries, candidates, solution) if scan is None else scan
    return Recall(_table(scores, found, top, ks), count, len(scores))


def _checked_ks(count: int, top: Sequence[int], ks: Sequence[int] | None) -> list[int]:
    if max(top) > count:
        raise InfluenceError(f"top={tuple(top)}: there are {count} candidates.")
    return sorted(set(ks or (max(1, round(share * count)) for share in SHARES)))


def _table(
    scores: np.ndarray, found: np.ndarray, top: Sequence[int], ks: Sequence[int]
) -> list[dict[str, str | int | float]]:
    """The rows of a `Recall`, given scores (Q, N) and candidates (Q, k), nearest first."""
    places = np.full(scores.shape, scores.shape[1])  # where the index has each candidate
    np.put_along_axis(places, found, np.arange(found.shape[1])[None], axis=1)
    table = []
    for direction, sign in SIGN_OF_SELECTION.items():
        order = np.argsort(-np.abs(scores) if sign is None else sign * scores, axis=1)
        for m in top:
            held = np.take_along_axis(places, order[:, :m], axis=1)
            for k in ks:
                shares = (held < k).mean(axis=1)
                error = float(sem(shares, ddof=0))
                table.append(
                    {"direction": direction, "m": m, "k": k, "recall": float(shares.mean()), "std_err": error}
                )
    return table


@dataclass(frozen=True)
class RecallOfFeatures(AnalysisResult):
    """Recall of every kind of features of an index, for groups of queries.

    Attributes:
        table (`list[dict]`): The rows of [`Recall`], with `features` (the kind), `group` and `num_queries`.
        num_candidates (`int`): N.
        damping (`float`): lambda of the full scan.
    """

    table: list[dict[str, str | int | float]]
    num_candidates: int
    damping: float

    def recall_of(self, features: str, group: str) -> Recall:
        """The part of one kind of features and one group of queries."""
        rows = pd.DataFrame(self.table).query("features == @features and group == @group").to_dict("records")
        return Recall(rows, self.num_candidates, rows[0]["num_queries"])

    def __str__(self) -> str:
        parts = pd.DataFrame(self.table).groupby(["features", "group"], sort=False).groups
        return "\n".join(f"{features}, {group}: {self.recall_of(features, group)}" for features, group in parts)

    def figure(self) -> Figure:
        """Draws recall against k: a row of panels for each group of queries, a column for each direction."""
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
        return f"Over all k, {best} finds most of the {m} most influential examples"


def recall_of_features(
    trainer: InfluenceTrainer,
    queries: Dataset,
    groups: Mapping[str, Sequence[bool]] | None = None,
    kinds: Sequence[str] = get_args(FeatureName),
    top: Sequence[int] = (10, 100),
    ks: Sequence[int] | None = None,
) -> RecallOfFeatures:
    """Builds an index of every kind of features and compares its candidates with a full scan.

    Args:
        trainer ([`InfluenceTrainer`]): With the solver and damping of the full scan in its settings.
        queries (`datasets.Dataset`): Q examples.
        groups (`Mapping`, *optional*): Names of groups, and which queries are in them, bool (Q,); all are in "all".
        kinds (`Sequence[str]`, *optional*): Kinds of features, as in `InfluenceConfig.index_features`; all of them.
        top (`Sequence[int]`, *optional*): See [`recall`].
        ks (`Sequence[int]`, *optional*): See [`recall`].

    Returns:
        [`RecallOfFeatures`]: s_test, scan and candidates are kept in `output_dir/recall`.

    Raises:
        ValueError: If some m exceeds the candidates, or there is no such kind of features.
    """
    count = len(trainer.train_dataset)
    ks = _checked_ks(count, top, ks)
    for kind in kinds:
        with changed(trainer, index_features=kind):
            pass  # refused before the work
    parts = open_analysis_results(trainer, "recall", influence_manifest(trainer, queries=queries))
    solution = Solution.from_tensors(parts.get("s_test", lambda: trainer.compute_s_test(queries).to_tensors()))

    def scan() -> Tensors:
        return {"scores": torch.from_numpy(trainer.compute_influence(queries, s_test=solution))}

    def find(kind: str) -> Tensors:
        with changed(trainer, index_features=kind):
            trainer.build_index()
            return {"rows": torch.from_numpy(trainer.find_candidates(queries, ks[-1], s_test=solution))}

    scores, table = parts.get("scan", scan)["scores"].cpu().numpy(), []
    groups = {"all": np.ones(len(queries), dtype=bool)} | {
        name: np.asarray(own) for name, own in (groups or {}).items()
    }
    for kind in kinds:
        found = parts.get(f"candidates-{kind}-{ks[-1]}", lambda kind=kind: find(kind))["rows"].cpu().numpy()
        for group, own in groups.items():
            about = {"features": kind, "group": group, "num_queries": int(own.sum())}
            table += [about | row for row in _table(scores[own], found[own], top, ks)]
    return RecallOfFeatures(table, count, solution.damping)
