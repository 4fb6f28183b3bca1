"""Does the loss change as influence says, once a model is trained again without the examples?

Section 5.4 and appendix B.3 of the paper, figures 3c and 10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from datasets import Dataset

from hf_fastif.analysis import (
    AnalysisResult,
    Retrained,
    digests,
    influence_manifest,
    open_analysis_results,
)
from hf_fastif.artifacts.plots import (
    add_legend,
    colors_of,
    draw_level,
    draw_points,
    mark_sizes,
    name_panel,
    new_figure,
)
from hf_fastif.data import hexdigest, without_indexes
from hf_fastif.experiments.sampling import GROUPS, mean_and_interval, random_rows, strongest_rows
from hf_fastif.scoring import DIRECTIONS
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANDOM = "random"


@dataclass(frozen=True)
class Removal:
    """What is removed: the first m of some `rows`, for one query or (random ones) for every one of them."""

    system: str
    direction: str
    m: int
    queries: Sequence[int]
    rows: np.ndarray


@dataclass(frozen=True)
class Retraining(AnalysisResult):
    """How the loss on queries changed when a model was trained again without some examples.

    Attributes:
        changes (`list[dict]`): `system` (a way to find influential examples, or "random"), `direction` ("helpful" or
            "harmful", or the label of the random examples), `m` (examples removed), `query`, `repeat`, and `change`
            of the loss, against a model of the same repeat that was trained on everything.
        losses (`list[float]`): Of each query under the models that were trained on everything, mean over repeats.
        right (`list[bool]`): Whether the model predicted each query right.
        num_train (`int`): N.
    """

    changes: list[dict[str, Any]]
    losses: list[float]
    right: list[bool]
    num_train: int

    def summary(self, seed: int = 0) -> list[dict[str, Any]]:
        """Means over queries and repeats: `group`, `system`, `direction`, `m`, `change`, `low` and `high`.

        The group is "all" queries, or those "predicted wrong" or "predicted right". From `low` to `high` is the 95 %
        interval from drawing queries and repeats anew: NaN for a single number, and too narrow where there are few.
        """
        changes = pd.DataFrame(self.changes)
        right = np.array(self.right)[changes["query"]]
        groups = {"all": changes} | {name: changes[right == value] for name, value in GROUPS.items()}
        summary = []
        for group, rows in groups.items():
            for (system, direction, m), changed in rows.groupby(["system", "direction", "m"], sort=False):
                values = changed.pivot(index="query", columns="repeat", values="change").to_numpy()
                numbers = dict(zip(("change", "low", "high"), mean_and_interval(values, seed), strict=True))
                summary.append({"group": group, "system": system, "direction": direction, "m": int(m)} | numbers)
        return summary

    def __str__(self) -> str:
        lines = [
            f"Change of the loss on {len(self.losses)} queries (before: {np.mean(self.losses):.3f}) after training "
            f"again without m of {self.num_train:,} examples, with 95 % intervals"
        ]
        for row in self.summary():
            chosen = f"{row['system']}, {row['direction']}"
            change = f"{row['change']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
            lines.append(f"  {row['group']:16} {chosen:28} m = {row['m']:<5} {change}")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draws the change against m: a panel for the queries predicted wrong, one for those predicted right."""
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
                moved = rows["m"] * 1.03 ** (number - lines / 2)  # else the bars would lie on each other
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
        return f"Change of the loss without the {most} most influential examples: {changes}"


def retraining(
    trainer: InfluenceTrainer,
    queries: Dataset,
    right: Sequence[bool],
    train_on: Callable[[Dataset, int], np.ndarray],
    about: Mapping[str, str],
    systems: Mapping[str, int | None] | None = None,
    num_removed: Sequence[int] = (1, 5, 25, 50, 100),
    num_repeats: int = 2,
) -> Retraining:
    """Removes the m most helpful or harmful examples of each query, or m random ones of a label, and trains again.

    Random examples have nothing to do with a query, so that one model without them serves all queries. Removing the
    same examples for another query or system takes no further model either.

    Args:
        trainer ([`InfluenceTrainer`]): Of the model whose influential examples are removed.
        queries (`datasets.Dataset`): Q examples.
        right (`Sequence[bool]`): Whether the model predicts each of them right; they are reported apart.
        train_on (`Callable`): Given training examples and a seed, trains a model and returns its losses (Q,) on the
            queries.
        about (`Mapping[str, str]`): What `train_on` depends on beside its arguments.
        systems (`Mapping`, *optional*): The ways to find influential examples by their names: k, the number of nearest
            neighbours that are scored, or None for all; by default `{"full": None}`.
        num_removed (`Sequence[int]`, *optional*): The m.
        num_repeats (`int`, *optional*, defaults to 2): Models for each removal, which differ in their seed.

    Returns:
        [`Retraining`]: What is finished, above all every model's losses, is kept in `output_dir/retraining` and
            `output_dir/retrained`.

    Raises:
        ValueError: If a query has fewer than m examples of a direction, or a label fewer than m.
    """
    train, seeds = without_indexes(trainer.train_dataset), range(num_repeats)
    sizes, everyone = sorted(num_removed), range(len(queries))
    random = [random_rows(train, sizes[-1], trainer.args.seed + seed, "num_removed") for seed in seeds]
    tops = _influential(trainer, queries, systems or {"full": None}, sizes[-1])
    chosen = [
        Removal(system, direction, m, [query], rows[query, :m])
        for (system, direction), rows in tops.items()
        for query in everyone
        for m in sizes
    ]
    parts = open_analysis_results(trainer, "retrained", dict(about) | digests(trainer, train=train, queries=queries))
    retrained = Retrained(parts, train_on)

    others = [
        [Removal(RANDOM, label, m, everyone, rows[:m]) for label, rows in random[seed].items() for m in sizes]
        for seed in seeds
    ]
    nothing = np.array([], dtype=np.int64)
    retrained.train(
        _model_without(train, removed, repeat)
        for repeat in seeds
        for removed in [nothing, *(one.rows for one in chosen + others[repeat])]
    )
    changes, base = [], []
    for repeat in seeds:
        base.append(retrained.measured(*_model_without(train, nothing, repeat)))
        for one in chosen + others[repeat]:
            after = retrained.measured(*_model_without(train, one.rows, repeat))
            about_it = {"system": one.system, "direction": one.direction, "m": one.m, "repeat": repeat}
            changes += [about_it | {"query": q, "change": float(after[q] - base[-1][q])} for q in one.queries]
    return Retraining(changes, np.mean(base, axis=0).tolist(), [bool(value) for value in right], len(train))


def _influential(
    trainer: InfluenceTrainer, queries: Dataset, systems: Mapping[str, int | None], count: int
) -> dict[tuple[str, str], np.ndarray]:
    """The rows (Q, count) of the most influential examples, by system and direction, strongest first."""
    manifest = influence_manifest(trainer, queries=queries) | {"systems": str(systems), "count": str(count)}
    parts, found = open_analysis_results(trainer, "retraining", manifest), {}
    for number, (system, k) in enumerate(systems.items()):
        work = partial(strongest_rows, trainer, queries, count, k, "num_removed")
        rows = parts.get(f"strongest-{number}", work)
        found |= {(system, direction): rows[direction].cpu().numpy() for direction in DIRECTIONS}
    return found


def _model_without(train: Dataset, removed: np.ndarray, repeat: int) -> tuple[str, int, Callable[[], Dataset]]:
    """The model of what is left of a training set when some rows are removed, as [`Retrained`] takes it."""
    name = f"without-{len(removed)}-{hexdigest([str(sorted(removed.tolist()))])}"
    return name, repeat, lambda: train.select(np.setdiff1d(np.arange(len(train)), removed))
