"""Do influence scores find wrong labels, and does training without them, or with the right ones, help?

Koh and Liang (2017), section 5.4, look through training examples in the order of their self-influence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from hf_fastif.analysis.result import AnalysisResult
from hf_fastif.analysis.retrained import Retrained
from hf_fastif.analysis.session_tools import changed, digests, influence_manifest, open_analysis_results
from hf_fastif.artifacts.plots import (
    HELPFUL,
    NEUTRAL,
    add_legend,
    colors_of,
    draw_curve,
    draw_level,
    draw_points,
    name_rows,
    new_figure,
)
from hf_fastif.data import hexdigest, relabelled, without_indexes
from hf_fastif.errors import InfluenceError, needs_extra
from hf_fastif.influence import QuerySet
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SELF, GRADIENT, HARMFUL = "self-influence", "squared gradient", "harmful influence"
LOSS, RANDOM = "loss", "random"
NOTHING, EVERYTHING = "nothing", "all wrong labels"
LOOKED_AT = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)  # worst shares of the training set
POINTS = 200  # of a curve that are kept


@dataclass(frozen=True)
class Mislabels(AnalysisResult):
    """How well scores find wrong labels, and what dropping or fixing the worst examples does for accuracy.

    Attributes:
        curves (`list[dict]`): `method` ("self-influence", "squared gradient", "harmful influence" on the loss of
            validation examples, "loss", all at the same checkpoints, or "random"), `average_precision`, and points of
            the curve, `precision` and `recall`.
        found (`list[dict]`): `method`, `share` (of the training set, the worst ones), and `found`, the share of the
            wrong labels that is among them.
        accuracies (`list[dict]`): `method` (or "nothing" or "all wrong labels"), `action` ("dropped" or "fixed"),
            `share`, `repeat` and `accuracy` of a model that was trained on what is left, or on the right labels.
        num_train (`int`): N.
        num_wrong (`int`): Wrong labels among them.
    """

    curves: list[dict[str, Any]]
    found: list[dict[str, Any]]
    accuracies: list[dict[str, Any]]
    num_train: int
    num_wrong: int

    def summary(self) -> list[dict[str, Any]]:
        """Accuracy by `method`, `action` and `share`: `accuracy`, the mean over repeats, `std_err` (NaN of one)."""
        columns = ["method", "action", "share"]
        groups = pd.DataFrame(self.accuracies, columns=[*columns, "accuracy"]).groupby(columns, sort=False)["accuracy"]
        return groups.agg(accuracy="mean", std_err="sem").reset_index().to_dict("records")

    def __str__(self) -> str:
        lines = [f"{self.num_wrong:,} of {self.num_train:,} labels are wrong ({self.num_wrong / self.num_train:.1%})"]
        looked_at = pd.DataFrame(self.found).groupby("method")
        for curve in self.curves:
            rows = looked_at.get_group(curve["method"])
            pairs = zip(rows["found"], rows["share"], strict=True)
            shares = ", ".join(f"{wrong:.0%} in the worst {share:.0%}" for wrong, share in pairs)
            lines.append(f"  {curve['method']:18} average precision {curve['average_precision']:.3f}; {shares}")
        for row in self.summary():
            error = "" if np.isnan(row["std_err"]) else f" ± {row['std_err']:.4f}"
            lines.append(f"  {_named(row):42} accuracy {row['accuracy']:.4f}{error}")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draws precision against recall, and the accuracies if models were trained again."""
        best = max(self.curves, key=lambda curve: curve["average_precision"])
        title = f"{best['method']} finds wrong labels best: average precision {best['average_precision']:.2f}"
        panels = 2 if self.accuracies else 1
        figure, ((axes, *others),) = new_figure(6.2 * panels + 1, 4.4, columns=panels, title=title)
        colors = colors_of([curve["method"] for curve in self.curves])
        for curve in self.curves:
            label = f"{curve['method']} ({curve['average_precision']:.2f})"
            draw_curve(axes, curve["recall"], curve["precision"], color=colors[curve["method"]], label=label)
        draw_level(axes, self.num_wrong / self.num_train)
        axes.set(xlabel="recall of the wrong labels", ylabel="precision", xlim=(0, 1), ylim=(0, 1.03))
        for below in others:
            self._draw_accuracies(below)
        add_legend(figure, axes, title="average precision")
        return figure

    def _draw_accuracies(self, axes: Axes) -> None:
        rows = pd.DataFrame(self.summary())
        accuracy, error = rows["accuracy"], rows["std_err"]
        draw_points(
            axes, accuracy, rows.index, accuracy - error, accuracy + error, sideways=True, fmt="o", color=HELPFUL
        )
        axes.axvline(accuracy[0], color=NEUTRAL, linewidth=0.9)  # nothing is done
        name_rows(axes, [_named(row) for row in self.summary()])
        axes.set_xlabel("accuracy after training again")


def _named(row: dict[str, Any]) -> str:
    """What was done to the training set."""
    what = f"worst {row['share']:.0%} by {row['method']}" if row["share"] else row["method"]
    return f"{what} {row['action']}"


def precision_recall(scores: np.ndarray, wrong: np.ndarray) -> dict[str, Any]:
    """Compute precision and recall of the examples whose score (N,) is at least t, for every t, from above.

    Of a long curve only `POINTS` are returned.

    Returns:
        `average_precision`, `precision` and `recall`, the last two as lists.
    """
    with needs_extra("experiments"):
        from sklearn.metrics import average_precision_score, precision_recall_curve
    precision, recall, _ = precision_recall_curve(wrong, scores)
    precision, recall = precision[-2::-1], recall[-2::-1]  # from above; the last point is of no example
    shown = np.unique(np.linspace(0, len(recall) - 1, POINTS).astype(int))
    points = {"precision": precision[shown].tolist(), "recall": recall[shown].tolist()}
    return {"average_precision": float(average_precision_score(wrong, scores))} | points


def suspicion(trainer: InfluenceTrainer, anchors: Dataset) -> dict[str, np.ndarray]:
    """Scores (N,) of the training examples by method, larger where a label is more likely to be wrong.

    Args:
        trainer ([`InfluenceTrainer`]): Of a model that was trained on them.
        anchors (`datasets.Dataset`): Validation examples; harmful is what raises their mean loss.
    """
    parts = open_analysis_results(trainer, "mislabels", influence_manifest(trainer, anchors=anchors))
    count = len(trainer.train_dataset)
    ways: dict[str, Callable[[], np.ndarray]] = {
        SELF: trainer.self_influence,
        GRADIENT: lambda: _squared_gradients(trainer),
        HARMFUL: lambda: trainer.compute_influence(QuerySet(anchors, reduce="mean"))[0],
        LOSS: lambda: _losses(trainer),
        RANDOM: lambda: np.random.default_rng(trainer.args.seed).random(count),
    }
    found = {name: parts.get(name, lambda way=way: {"scores": torch.from_numpy(way())}) for name, way in ways.items()}
    return {name: part["scores"].cpu().numpy() for name, part in found.items()}


def _squared_gradients(trainer: InfluenceTrainer) -> np.ndarray:
    """||grad L(z)||^2 (N,), the self-influence without curvature that TracIn (Pruthi et al., 2020) takes."""
    with changed(trainer, solver="identity", preconditioner=None):
        return trainer.self_influence()


def _losses(trainer: InfluenceTrainer) -> np.ndarray:
    """The loss (N,) of each training example, at the checkpoints that influence is taken at."""
    with trainer.session() as session:
        total = np.zeros(len(session.train), dtype=np.float32)
        for number in range(len(session.checkpoints)):
            with session.checkpoints.at(number) as weight:
                total += weight * session.predict(session.train).losses
    return total


def mislabels(
    trainer: InfluenceTrainer,
    anchors: Dataset,
    wrong: np.ndarray,
    labels: np.ndarray | None = None,
    train_on: Callable[[Dataset, int], float] | None = None,
    about: Mapping[str, str] | None = None,
    shares: Sequence[float] = (0.1,),
    num_repeats: int = 3,
) -> Mislabels:
    """Compares scores with what is known of the labels, and trains again without or with corrected worst examples.

    Fixing is what a person does who looks at the worst examples: those labels among them that are wrong become right.

    Args:
        trainer ([`InfluenceTrainer`]): Of a model that was trained on examples with wrong labels.
        anchors (`datasets.Dataset`): Validation examples for the harmful influence. They should not be those that
            `train_on` measures accuracy on.
        wrong (`np.ndarray` of shape `(N,)`, bool): Which labels are wrong.
        labels (`np.ndarray` of shape `(N,)`, *optional*): The right ones; without them nothing is fixed.
        train_on (`Callable`, *optional*): Given training examples and the number of a repeat, trains a model and
            returns its accuracy. Without it nothing is trained again.
        about (`Mapping[str, str]`, *optional*): What `train_on` depends on beside its arguments.
        shares (`Sequence[float]`, *optional*): Of the training set, the worst ones that are dropped or fixed.
        num_repeats (`int`, *optional*, defaults to 3): Models for each of these, which differ in their seed.

    Returns:
        [`Mislabels`]: Scores are kept in `output_dir/mislabels`, accuracies in `output_dir/relabelled`.

    Raises:
        ValueError: If `wrong` does not fit the training set, or names none or all of it.
        MissingExtraError: If scikit-learn is not installed.
    """
    count = len(trainer.train_dataset)
    if wrong.shape != (count,) or not 0 < wrong.sum() < count:
        raise InfluenceError(
            f"wrong: it has the shape {wrong.shape} and {int(wrong.sum())} wrong labels; give {count:,} booleans, of "
            "which some are true and some are not."
        )
    scores = suspicion(trainer, anchors)
    curves, found = [], []
    for method, values in scores.items():
        curves.append({"method": method} | precision_recall(values, wrong))
        shares_of_wrong = [wrong[_worst(values, share)].sum() / wrong.sum() for share in LOOKED_AT]
        for share, value in zip(LOOKED_AT, shares_of_wrong, strict=True):
            found.append({"method": method, "share": share, "found": float(value)})
    accuracies = []
    if train_on is not None:
        rows = {(method, share): _worst(values, share) for method, values in scores.items() for share in shares}
        accuracies = _accuracies(trainer, rows, wrong, labels, train_on, about or {}, num_repeats)
    return Mislabels(curves, found, accuracies, count, int(wrong.sum()))


def _worst(scores: np.ndarray, share: float) -> np.ndarray:
    """The rows with the highest scores."""
    return np.argsort(-scores, kind="stable")[: max(1, round(share * len(scores)))]


def _accuracies(
    trainer: InfluenceTrainer,
    worst: Mapping[tuple[str, float], np.ndarray],
    wrong: np.ndarray,
    labels: np.ndarray | None,
    train_on: Callable[[Dataset, int], float],
    about: Mapping[str, str],
    num_repeats: int,
) -> list[dict[str, Any]]:
    """Accuracies after doing nothing, after dropping or fixing the worst, and after doing so to all that are wrong."""
    train = without_indexes(trainer.train_dataset)
    parts = open_analysis_results(trainer, "relabelled", dict(about) | digests(trainer, train_dataset=train))
    retrained = Retrained(parts, train_on)
    given, actions = np.asarray(train["label"]), ("dropped",) if labels is None else ("dropped", "fixed")

    def left(action: str, rows: np.ndarray) -> Dataset:
        if action == "dropped":
            return train.select(np.setdiff1d(np.arange(len(train)), rows))
        fixed = given.copy()
        fixed[rows] = labels[rows]
        return relabelled(train, fixed)

    def model(action: str, rows: np.ndarray, repeat: int) -> tuple[str, int, Callable[[], Dataset]]:
        rows = rows if action == "dropped" else rows[wrong[rows]]  # the others are right already
        return f"{action}-{hexdigest([str(sorted(rows.tolist()))])}", repeat, lambda: left(action, rows)

    plan = [(NOTHING, "dropped", 0.0, np.array([], dtype=np.int64))]
    for action in actions:
        plan += [(method, action, share, rows) for (method, share), rows in worst.items()]
        plan.append((EVERYTHING, action, 0.0, np.flatnonzero(wrong)))
    retrained.train(model(action, rows, repeat) for repeat in range(num_repeats) for _, action, _, rows in plan)
    found = []
    for repeat in range(num_repeats):
        for method, action, share, rows in plan:
            value = retrained.measured(*model(action, rows, repeat))
            about_it = {"method": method, "action": action, "share": share, "repeat": repeat}
            found.append(about_it | {"accuracy": float(value)})
    return found
