"""Measure whether losses change as influence predicts when a model is retrained without influential examples.

Section 5.4 and appendix B.3 of the paper, figures 3c and 10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from hf_fastif.analysis import (
    AnalysisResult,
    Retrained,
    digests,
    influence_manifest,
    open_analysis_results,
    without_rows,
)
from hf_fastif.artifacts.plots import (
    NEUTRAL,
    add_legend,
    colors_of,
    draw_level,
    draw_points,
    mark_sizes,
    name_panel,
    new_figure,
)
from hf_fastif.data import without_indexes
from hf_fastif.experiments.sampling import GROUPS, mean_and_interval, random_rows, strongest_rows
from hf_fastif.influence import unit_of_scores
from hf_fastif.scoring import DIRECTIONS
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANDOM = "random"


@dataclass(frozen=True)
class Removal:
    """Training examples to remove, for a single query or, if they are random, for all queries.

    Attributes:
        system (`str`): The way in which the examples were chosen.
        direction (`str`): "helpful", "harmful", or the label of random examples.
        m (`int`): Number of removed examples.
        queries (`Sequence[int]`): The queries whose loss is measured.
        rows (`np.ndarray` of shape `(m,)`): The removed rows of the training set.
    """

    system: str
    direction: str
    m: int
    queries: Sequence[int]
    rows: np.ndarray


@dataclass(frozen=True)
class Retraining(AnalysisResult):
    """Changes of the loss on queries after retraining without some examples.

    Attributes:
        changes (`list[dict]`): Rows with `system` (the way to find influential examples, or "random"), `direction`
            ("helpful" or "harmful", or the label of the random examples), `m` (the number of removed examples),
            `query`, `repeat`, `change` (the loss minus that of the model of the same repeat that was trained on all
            examples), and `predicted` (the sum of the predicted changes of the removed examples; None for a solver
            without curvature, which predicts none).
        losses (`list[float]`): Loss on each query after training on all examples, averaged over repeats.
        right (`list[bool]`): Whether the model predicted each query right.
        num_train (`int`): Number of training examples N.
    """

    changes: list[dict[str, Any]]
    losses: list[float]
    right: list[bool]
    num_train: int

    def summary(self, seed: int = 0) -> list[dict[str, Any]]:
        """Average the changes over queries and repeats.

        The 95 % intervals come from resampling queries and repeats. They are NaN for a single number, and too narrow
        for few queries or repeats.

        Args:
            seed (`int`, *optional*, defaults to 0): Seed of the bootstrap samples.

        Returns:
            `list[dict]`: Rows with `group` ("all" queries, "predicted wrong" or "predicted right"), `system`,
                `direction`, `m`, `change`, and the ends `low` and `high` of its interval.

        Example:
            ```python
            print(pd.DataFrame(result.summary()))
            ```
        """
        changes = pd.DataFrame(self.changes)
        right = np.array(self.right)[changes["query"]]
        groups = {"all": changes} | {name: changes[right == value] for name, value in GROUPS.items()}
        summary = []
        for group, rows in groups.items():
            for (system, direction, m), selected in rows.groupby(["system", "direction", "m"], sort=False):
                values = selected.pivot(index="query", columns="repeat", values="change").to_numpy()
                numbers = dict(zip(("change", "low", "high"), mean_and_interval(values, seed), strict=True))
                summary.append({"group": group, "system": system, "direction": direction, "m": int(m)} | numbers)
        return summary

    def calibration(self) -> list[dict[str, Any]]:
        """Compare the measured changes with the predicted ones.

        A group is the examples that are removed for a query, measured and predicted as means over the repeats. Groups
        that several systems remove count once in "all".

        Returns:
            `list[dict]`: Rows with `system` ("all", or one of several), `slope` (of measured on predicted, by least
                squares through the origin; 1 if predictions have the right size), `pearson` (the correlation of both)
                and `groups` (the number of groups); no rows if nothing was predicted.

        Example:
            ```python
            print(pd.DataFrame(result.calibration()))
            ```
        """
        groups = self._groups()
        if groups.empty:
            return []
        parts = {"all": groups.drop_duplicates(["direction", "m", "query", "predicted", "change"])}
        parts |= dict(iter(groups.groupby("system", sort=False)))
        return [
            {
                "system": system,
                "slope": float(rows["predicted"] @ rows["change"] / (rows["predicted"] @ rows["predicted"])),
                "pearson": float(np.corrcoef(rows["predicted"], rows["change"])[0, 1]),
                "groups": len(rows),
            }
            for system, rows in parts.items()
        ]

    def _groups(self) -> pd.DataFrame:
        """Return the predicted and the measured change of each removed group, averaged over the repeats."""
        changes = pd.DataFrame(self.changes).dropna(subset="predicted")
        numbers = changes.astype({"predicted": float}).groupby(["system", "direction", "m", "query"], sort=False)
        return numbers[["predicted", "change"]].mean().reset_index()

    def __str__(self) -> str:
        lines = [
            f"Change of the loss on {len(self.losses)} queries (before: {np.mean(self.losses):.3f}) after retraining "
            f"without m of {self.num_train:,} examples, with 95 % intervals"
        ]
        for row in self.summary():
            removed = f"{row['system']}, {row['direction']}"
            change = f"{row['change']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
            lines.append(f"  {row['group']:16} {removed:28} m = {row['m']:<5} {change}")
        if calibration := self.calibration():
            lines.append("Measured change against the sum of the predicted changes, over the removed groups")
        for row in calibration:
            based_on = f"Pearson correlation {row['pearson']:.2f}, {row['groups']} groups"
            lines.append(f"  {row['system']:16} measured = {row['slope']:.2f} x predicted, {based_on}")
        return "\n".join(lines)

    def figures(self, name: str) -> dict[str, Figure]:
        """Return the figure, and `NAME-calibration`, the measured changes against the predicted ones."""
        calibrated = {f"{name}-calibration": self.calibration_figure()} if self.calibration() else {}
        return super().figures(name) | calibrated

    def calibration_figure(self) -> Figure:
        """Draw the measured change of the loss against the predicted one, a point for each removed group.

        Example:
            ```python
            result.calibration_figure().savefig("calibration.pdf")
            ```
        """
        groups, overall = self._groups(), self.calibration()[0]
        title = (
            f"Measured change = {overall['slope']:.2f} x predicted change (Pearson correlation "
            f"{overall['pearson']:.2f}, {overall['groups']} removed groups)"
        )
        figure, ((axes,),) = new_figure(6.6, 4.2, title=title)
        colors = colors_of(groups["direction"])
        for direction, rows in groups.groupby("direction", sort=False):
            axes.plot(rows["predicted"], rows["change"], "o", color=colors[direction], alpha=0.7, label=direction)
        draw_level(axes, 0)
        axes.axline((0, 0), slope=1, color=NEUTRAL, linewidth=0.9, linestyle=":", label="measured = predicted")
        axes.set(xlabel="predicted change of the loss", ylabel="measured change of the loss")
        add_legend(figure, axes)
        return figure

    def figure(self) -> Figure:
        """Draw the change of the loss against m, with one panel for wrongly and one for rightly predicted queries."""
        summary = pd.DataFrame(self.summary())
        groups = [name for name in GROUPS if name in {*summary["group"]}]
        size = {"columns": len(groups), "sharey": True, "title": self._conclusion(summary)}
        figure, panels = new_figure(4.2 * len(groups) + 2.4, 4.2, **size)
        series = ["system", "direction"]
        lines = summary.groupby(series, sort=False).ngroups
        colors = colors_of(summary["direction"])
        dashes = dict(zip(summary["system"].unique(), ("-", "--", "-.") * lines, strict=False)) | {RANDOM: ":"}
        for axes, group in zip(panels[0], groups, strict=True):
            of_group = summary[summary["group"] == group].groupby(series, sort=False)
            for number, ((system, direction), rows) in enumerate(of_group):
                style = {"marker": "o", "linestyle": dashes[system], "label": f"{system}, {direction}"}
                moved = rows["m"] * 1.03 ** (number - lines / 2)  # to keep error bars apart
                draw_points(axes, moved, rows["change"], rows["low"], rows["high"], color=colors[direction], **style)
            draw_level(axes, 0)
            axes.set_xlabel("examples removed")
            name_panel(axes, group)
            mark_sizes(axes, summary["m"])
        panels[0, 0].set_ylabel("change of the loss")
        add_legend(figure, axes)
        return figure

    def _conclusion(self, summary: pd.DataFrame) -> str:
        most = summary["m"].max()
        rows = summary.query("group == 'all' and m == @most and system != @RANDOM")
        changes = ", ".join(f"{row.direction} {row.change:+.3f} ({row.system})" for row in rows.itertuples())
        return f"Change of the loss after removing the {most} most influential examples: {changes}"


def retraining(
    trainer: InfluenceTrainer,
    queries: Dataset,
    right: Sequence[bool],
    *,
    train_on: Callable[[Dataset, int], np.ndarray],
    depends_on: Mapping[str, str],
    systems: Mapping[str, int | None] | None = None,
    num_removed: Sequence[int] = (1, 5, 25, 50, 100),
    num_repeats: int = 2,
) -> Retraining:
    """Remove the m most helpful or harmful examples of each query, or m random ones of a label, and retrain.

    The changes of the losses are compared with the predicted ones.

    Random examples do not depend on the query, so a single model without them serves all queries. Models are also
    shared between queries and systems that remove the same examples. The influential examples are saved in
    `output_dir/retraining` and the losses of every model in `output_dir/retrained`, so that an interrupted call
    resumes.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer of the model whose influential examples are removed.
        queries (`datasets.Dataset`): The Q queries.
        right (`Sequence[bool]`): Whether the model predicts each query right, to report both groups separately.
        train_on (`Callable`): Trains a model and returns its losses (Q,) on the queries, given training examples and
            the number of the repeat, which serves as the seed.
        depends_on (`Mapping[str, str]`): Everything else that `train_on` depends on. Saved losses are reused only if
            it is equal.
        systems (`Mapping[str, int | None]`, *optional*): The ways to find influential examples by name: the number k
            of nearest neighbors to score, or None for all examples. The default is `{"full": None}`.
        num_removed (`Sequence[int]`, *optional*): Numbers m of examples to remove.
        num_repeats (`int`, *optional*, defaults to 2): Number of models for each removal, which differ in their seed.

    Returns:
        [`Retraining`]: The changes of the loss.

    Raises:
        InfluenceError: If a query has fewer than m examples of a direction, or a label has fewer than m examples.

    Example:
        ```python
        rows, right = balanced_queries(trainer, dev, 20)
        result = retraining(trainer, dev.select(rows), right, train_on=train_on, depends_on={"epochs": "3"})
        print(result)
        ```
    """
    train, seeds = without_indexes(trainer.train_dataset), range(num_repeats)
    sizes, all_queries = sorted(num_removed), range(len(queries))
    random = [random_rows(train, sizes[-1], trainer.args.seed + seed, "num_removed") for seed in seeds]
    tops = _influential(trainer, queries, systems or {"full": None}, sizes[-1])
    influential = [
        Removal(system, direction, m, [query], rows[query, :m])
        for (system, direction), rows in tops.items()
        for query in all_queries
        for m in sizes
    ]
    parts = open_analysis_results(
        trainer, "retrained", dict(depends_on) | digests(trainer, train=train, queries=queries)
    )
    retrained = Retrained(parts, train_on)

    removals = [  # of each repeat
        influential
        + [Removal(RANDOM, label, m, all_queries, rows[:m]) for label, rows in random[seed].items() for m in sizes]
        for seed in seeds
    ]
    predicted = _predicted(trainer, queries)
    nothing = np.array([], dtype=np.int64)
    retrained.train(
        without_rows(train, removed, repeat)
        for repeat in seeds
        for removed in [nothing, *(removal.rows for removal in removals[repeat])]
    )
    changes, base = [], []
    for repeat in seeds:
        base.append(retrained.measured(*without_rows(train, nothing, repeat)))
        for removal in removals[repeat]:
            after = retrained.measured(*without_rows(train, removal.rows, repeat))
            row = {"system": removal.system, "direction": removal.direction, "m": removal.m, "repeat": repeat}
            for query in removal.queries:
                numbers = {
                    "change": float(after[query] - base[-1][query]),
                    "predicted": None if predicted is None else float(predicted[query, removal.rows].sum()),
                }
                changes.append(row | {"query": query} | numbers)
    return Retraining(changes, np.mean(base, axis=0).tolist(), [bool(value) for value in right], len(train))


def _influential(
    trainer: InfluenceTrainer, queries: Dataset, systems: Mapping[str, int | None], count: int
) -> dict[tuple[str, str], np.ndarray]:
    """Find the rows (Q, count) of the most influential examples by system and direction, strongest first."""
    manifest = influence_manifest(trainer, queries=queries) | {"systems": str(systems), "count": str(count)}
    parts, strongest = open_analysis_results(trainer, "retraining", manifest), {}
    for number, (system, k) in enumerate(systems.items()):
        work = partial(strongest_rows, trainer, queries, count, k, "num_removed")
        rows = parts.get(f"strongest-{number}", work)
        strongest |= {(system, direction): rows[direction].cpu().numpy() for direction in DIRECTIONS}
    return strongest


def _predicted(trainer: InfluenceTrainer, queries: Dataset) -> np.ndarray | None:
    """Return the predicted changes (Q, N) of the losses without each example; None if the solver predicts none."""
    with trainer.session() as session:
        unit = unit_of_scores(session, session.candidates())
    if unit["change"] is None:
        return None
    parts = open_analysis_results(trainer, "predicted", influence_manifest(trainer, queries=queries))
    scores = parts.get("scores", lambda: {"scores": torch.from_numpy(trainer.compute_influence(queries))})
    return -scores["scores"].cpu().numpy() / unit["num_train"]
