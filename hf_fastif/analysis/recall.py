"""How many of the most influential examples an index finds (section 5.2 and figure 3a of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from datasets import Dataset

from hf_fastif.analysis.result import AnalysisResult
from hf_fastif.analysis.session_tools import changed, influence_manifest, open_analysis_results
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import Tensors
from hf_fastif.settings import FeatureName
from hf_fastif.solvers import Solution
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
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
        rows = [row for row in self.table if (row["direction"], row["m"]) == (direction, m)]
        return next((row["k"] for row in rows if row["recall"] >= wanted), None)

    def __str__(self) -> str:
        lines = [f"{self.num_queries} queries, {self.num_candidates:,} candidates"]
        for m in dict.fromkeys(row["m"] for row in self.table):
            k = self.suggested_k(m=m)
            found = f"k = {k} holds 95 % of the top {m}" if k else f"no k that was tried holds 95 % of the top {m}"
            own = [row for row in self.table if (row["direction"], row["m"]) == ("absolute", m)]
            lines += [found, "  " + ", ".join(f"k = {row['k']}: {row['recall']:.2f}" for row in own)]
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draws recall against k, a panel for each direction."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 3.6), layout="constrained")
        axes = figure.subplots(1, 3, sharey=True)
        for axis, direction in zip(axes, SIGN_OF_SELECTION, strict=True):
            for m in dict.fromkeys(row["m"] for row in self.table):
                own = [row for row in self.table if (row["direction"], row["m"]) == (direction, m)]
                k, values, errors = ([row[name] for row in own] for name in ("k", "recall", "std_err"))
                axis.errorbar(k, values, errors, marker="o", markersize=4, capsize=2, label=f"top {m}")
            axis.set(xscale="log", xlabel="k, neighbours scored", title=direction, ylim=(0, 1.05))
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("recall")
        axes[0].legend(loc="upper left")
        return figure


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
                error = float(shares.std() / np.sqrt(len(shares)))
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
        own = [row for row in self.table if (row["features"], row["group"]) == (features, group)]
        return Recall(own, self.num_candidates, own[0]["num_queries"])

    def __str__(self) -> str:
        parts = dict.fromkeys((row["features"], row["group"]) for row in self.table)
        return "\n".join(f"{features}, {group}: {self.recall_of(features, group)}" for features, group in parts)

    def figure(self) -> Figure:
        """Draws recall against k: a row of panels for each group of queries, a column for each direction."""
        from matplotlib.figure import Figure

        groups, kinds, sizes = (list(dict.fromkeys(row[n] for row in self.table)) for n in ("group", "features", "m"))
        figure = Figure(figsize=(12, 3 * len(groups) + 0.6), layout="constrained")
        panels = figure.subplots(len(groups), len(SIGN_OF_SELECTION), sharex=True, sharey=True, squeeze=False)
        for axes_of_group, group in zip(panels, groups, strict=True):
            for axes, direction in zip(axes_of_group, SIGN_OF_SELECTION, strict=True):
                for color, kind in enumerate(kinds):
                    for m, style in zip(sizes, ("-", "--", ":", "-.") * len(sizes), strict=False):
                        rows = self.recall_of(kind, group).table
                        own = [row for row in rows if (row["direction"], row["m"]) == (direction, m)]
                        k, values, errors = ([row[name] for row in own] for name in ("k", "recall", "std_err"))
                        axes.errorbar(k, values, errors, fmt=style, color=f"C{color}", label=f"{kind}, top {m}")
                axes.set(xscale="log", ylim=(0, 1.05), title=f"{direction}, {group}")
                axes.grid(alpha=0.3)
            axes_of_group[0].set_ylabel("recall")
        for axes in panels[-1]:
            axes.set_xlabel("k, neighbours scored")
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
        return figure


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
