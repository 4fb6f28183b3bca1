"""Measure whether influence scores find wrong labels, and whether dropping or fixing those labels helps.

Koh and Liang (2017), section 5.4, inspect training examples in the order of their self-influence.
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

SUSPICION, SELF, GRADIENT, HARMFUL = "suspicion", "self-influence", "squared gradient", "harmful influence"
LOSS, RANDOM = "loss", "random"
NOTHING, EVERYTHING = "nothing", "all wrong labels"
LOOKED_AT = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)  # inspected fractions of the training set, worst examples first
POINTS = 200  # maximal number of points of a saved curve


@dataclass(frozen=True)
class Mislabels(AnalysisResult):
    """How well scores find wrong labels, and how dropping or fixing the worst examples changes accuracy.

    Attributes:
        curves (`list[dict]`): Rows with `method` ("suspicion" of `trainer.suspects()`, or "self-influence", "squared
            gradient", "harmful influence" on the loss of validation examples, "loss", all at the same checkpoints, or
            "random"), `average_precision`, and the points `precision` and `recall` of the curve.
        detection (`list[dict]`): Rows with `method`, `share` (the fraction of the training set that is inspected,
            worst examples first), and `found`, the fraction of the wrong labels among the inspected examples.
        accuracies (`list[dict]`): Rows with `method` (or "nothing" or "all wrong labels"), `action` ("dropped" or
            "fixed"), `share`, `repeat`, and `accuracy` of the model that was retrained without these examples or with
            their right labels.
        num_train (`int`): Number of training examples N.
        num_wrong (`int`): Number of wrong labels among them.
    """

    curves: list[dict[str, Any]]
    detection: list[dict[str, Any]]
    accuracies: list[dict[str, Any]]
    num_train: int
    num_wrong: int

    def summary(self) -> list[dict[str, Any]]:
        """Summarize the accuracies over repeats.

        Returns:
            `list[dict]`: Rows with `method`, `action`, `share`, `accuracy` (the mean) and `std_err` (its standard
                error, NaN for a single repeat).

        Example:
            ```python
            print(pd.DataFrame(result.summary()))
            ```
        """
        columns = ["method", "action", "share"]
        groups = pd.DataFrame(self.accuracies, columns=[*columns, "accuracy"]).groupby(columns, sort=False)["accuracy"]
        return groups.agg(accuracy="mean", std_err="sem").reset_index().to_dict("records")

    def __str__(self) -> str:
        lines = [f"{self.num_wrong:,} of {self.num_train:,} labels are wrong ({self.num_wrong / self.num_train:.1%})"]
        looked_at = pd.DataFrame(self.detection).groupby("method")
        for curve in self.curves:
            rows = looked_at.get_group(curve["method"])
            pairs = zip(rows["found"], rows["share"], strict=True)
            shares = ", ".join(f"{wrong:.0%} in the worst {share:.0%}" for wrong, share in pairs)
            lines.append(f"  {curve['method']:18} average precision {curve['average_precision']:.3f}; {shares}")
        for row in self.summary():
            error = "" if np.isnan(row["std_err"]) else f" ± {row['std_err']:.4f}"
            lines.append(f"  {_describe(row):42} accuracy {row['accuracy']:.4f}{error}")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw precision against recall, and the accuracies if models were retrained."""
        best = max(self.curves, key=lambda curve: curve["average_precision"])
        title = f"Wrong labels are best found by {best['method']}: average precision {best['average_precision']:.2f}"
        panels = 2 if self.accuracies else 1
        figure, ((axes, *axes_of_accuracies),) = new_figure(6.2 * panels + 1, 4.4, columns=panels, title=title)
        colors = colors_of([curve["method"] for curve in self.curves])
        for curve in self.curves:
            label = f"{curve['method']} ({curve['average_precision']:.2f})"
            draw_curve(axes, curve["recall"], curve["precision"], color=colors[curve["method"]], label=label)
        draw_level(axes, self.num_wrong / self.num_train)
        axes.set(xlabel="recall of the wrong labels", ylabel="precision", xlim=(0, 1), ylim=(0, 1.03))
        for second in axes_of_accuracies:
            self._draw_accuracies(second)
        add_legend(figure, axes, title="average precision")
        return figure

    def _draw_accuracies(self, axes: Axes) -> None:
        rows = pd.DataFrame(self.summary())
        accuracy, error = rows["accuracy"], rows["std_err"]
        draw_points(
            axes, accuracy, rows.index, accuracy - error, accuracy + error, sideways=True, fmt="o", color=HELPFUL
        )
        axes.axvline(accuracy[0], color=NEUTRAL, linewidth=0.9)  # the unchanged training set
        name_rows(axes, [_describe(row) for row in self.summary()])
        axes.set_xlabel("accuracy after retraining")


def _describe(row: dict[str, Any]) -> str:
    """Describe the change of the training set, such as "worst 10% by loss fixed"."""
    examples = f"worst {row['share']:.0%} by {row['method']}" if row["share"] else row["method"]
    return f"{examples} {row['action']}"


def precision_recall(scores: np.ndarray, wrong: np.ndarray) -> dict[str, Any]:
    """Compute precision and recall of wrong labels at every threshold of the scores, from the highest down.

    Args:
        scores (`np.ndarray` of shape `(N,)`): Scores, larger for more suspicious examples.
        wrong (`np.ndarray` of shape `(N,)`, bool): Which labels are wrong.

    Returns:
        `dict`: `average_precision`, and `precision` and `recall` as lists of at most `POINTS` points.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
    """
    with needs_extra("experiments"):
        from sklearn.metrics import average_precision_score, precision_recall_curve
    precision, recall, _ = precision_recall_curve(wrong, scores)
    precision, recall = precision[-2::-1], recall[-2::-1]  # highest threshold first, without the point of no examples
    shown = np.unique(np.linspace(0, len(recall) - 1, POINTS).astype(int))
    points = {"precision": precision[shown].tolist(), "recall": recall[shown].tolist()}
    return {"average_precision": float(average_precision_score(wrong, scores))} | points


def suspicion(trainer: InfluenceTrainer, anchors: Dataset) -> dict[str, np.ndarray]:
    """Compute scores (N,) of the training examples by method, larger for labels that are more likely wrong.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer of a model that was trained on these examples.
        anchors (`datasets.Dataset`): Validation examples. An example that raises their mean loss is harmful.
    """
    parts = open_analysis_results(trainer, "mislabels", influence_manifest(trainer, anchors=anchors))
    count = len(trainer.train_dataset)
    methods: dict[str, Callable[[], np.ndarray]] = {
        SUSPICION: lambda: _suspicions(trainer),
        SELF: trainer.self_influence,
        GRADIENT: lambda: _squared_gradients(trainer),
        HARMFUL: lambda: trainer.compute_influence(QuerySet(anchors, reduce="mean"))[0],
        LOSS: lambda: _losses(trainer),
        RANDOM: lambda: np.random.default_rng(trainer.args.seed).random(count),
    }
    return {
        name: parts.get(name, lambda score=score: {"scores": torch.from_numpy(score())})["scores"].cpu().numpy()
        for name, score in methods.items()
    }


def _suspicions(trainer: InfluenceTrainer) -> np.ndarray:
    """Return the estimated probability (N,) that each label is wrong."""
    return trainer.suspects().to_pandas().sort_values("train_index")["suspicion"].to_numpy()


def _squared_gradients(trainer: InfluenceTrainer) -> np.ndarray:
    """Compute ||grad L(z)||^2 (N,), the self-influence without curvature of TracIn (Pruthi et al., 2020)."""
    with changed(trainer, solver="identity", preconditioner=None):
        return trainer.self_influence()


def _losses(trainer: InfluenceTrainer) -> np.ndarray:
    """Compute the loss (N,) of each training example, averaged over the checkpoints of the influence."""
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
    *,
    labels: np.ndarray | None = None,
    train_on: Callable[[Dataset, int], float] | None = None,
    depends_on: Mapping[str, str] | None = None,
    shares: Sequence[float] = (0.1,),
    num_repeats: int = 3,
) -> Mislabels:
    """Compare suspicion scores with known wrong labels, and retrain without the worst examples or with fixed labels.

    Fixing simulates a person who reviews the worst examples and corrects those labels among them that are wrong.
    Scores are saved in `output_dir/mislabels` and accuracies in `output_dir/relabelled`, for later calls to reuse.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer of a model that was trained on examples with wrong labels.
        anchors (`datasets.Dataset`): Validation examples for the harmful influence. `train_on` should measure accuracy
            on other examples.
        wrong (`np.ndarray` of shape `(N,)`, bool): Which labels are wrong.
        labels (`np.ndarray` of shape `(N,)`, *optional*): The right labels. Without them, no labels are fixed.
        train_on (`Callable`, *optional*): Trains a model and returns its accuracy, given training examples and the
            number of the repeat, which serves as the seed. Without it, no models are retrained.
        depends_on (`Mapping[str, str]`, *optional*): Everything else that `train_on` depends on. Saved accuracies are
            reused only if it is equal.
        shares (`Sequence[float]`, *optional*): Fractions of the training set to drop or fix, worst examples first.
        num_repeats (`int`, *optional*, defaults to 3): Number of models for each change, which differ in their seed.

    Returns:
        [`Mislabels`]: Precision and recall of every score, and the accuracies.

    Raises:
        InfluenceError: If `wrong` has another shape, or none or all of the labels are wrong.
        MissingExtraError: If scikit-learn is not installed.

    Example:
        ```python
        result = mislabels(trainer, dev, wrong, labels=right_labels, train_on=train_and_evaluate)
        print(result)
        result.plot("mislabels.png")
        ```
    """
    count = len(trainer.train_dataset)
    if wrong.shape != (count,) or not 0 < wrong.sum() < count:
        raise InfluenceError(
            f"wrong: it has the shape {wrong.shape} and {int(wrong.sum())} wrong labels; give {count:,} booleans, "
            "some of them true and some false."
        )
    scores = suspicion(trainer, anchors)
    curves, inspections = [], []
    for method, values in scores.items():
        curves.append({"method": method} | precision_recall(values, wrong))
        shares_of_wrong = [wrong[_worst(values, share)].sum() / wrong.sum() for share in LOOKED_AT]
        for share, value in zip(LOOKED_AT, shares_of_wrong, strict=True):
            inspections.append({"method": method, "share": share, "found": float(value)})
    accuracies = []
    if train_on is not None:
        rows = {(method, share): _worst(values, share) for method, values in scores.items() for share in shares}
        accuracies = _accuracies(
            trainer, rows, wrong, labels, train_on=train_on, depends_on=depends_on or {}, num_repeats=num_repeats
        )
    return Mislabels(curves, inspections, accuracies, count, int(wrong.sum()))


def _worst(scores: np.ndarray, share: float) -> np.ndarray:
    """Return the rows of the highest scores, a given fraction of all and at least one, highest first."""
    return np.argsort(-scores, kind="stable")[: max(1, round(share * len(scores)))]


def _accuracies(
    trainer: InfluenceTrainer,
    worst: Mapping[tuple[str, float], np.ndarray],
    wrong: np.ndarray,
    labels: np.ndarray | None,
    *,
    train_on: Callable[[Dataset, int], float],
    depends_on: Mapping[str, str],
    num_repeats: int,
) -> list[dict[str, Any]]:
    """Measure accuracy with the unchanged training set, and after dropping or fixing the worst or all wrong labels.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer with the training set.
        worst (`Mapping`): The rows to drop or fix, by method and fraction of the training set.
        wrong, labels, train_on, num_repeats: See `mislabels`.
        depends_on (`Mapping[str, str]`): The argument `depends_on` of `mislabels`.

    Returns:
        `list[dict]`: The attribute `accuracies` of [`Mislabels`].
    """
    train = without_indexes(trainer.train_dataset)
    parts = open_analysis_results(trainer, "relabelled", dict(depends_on) | digests(trainer, train_dataset=train))
    retrained = Retrained(parts, train_on)
    given, actions = np.asarray(train["label"]), ("dropped",) if labels is None else ("dropped", "fixed")

    def changed_set(action: str, rows: np.ndarray) -> Dataset:
        if action == "dropped":
            return train.select(np.setdiff1d(np.arange(len(train)), rows))
        fixed = given.copy()
        fixed[rows] = labels[rows]
        return relabelled(train, fixed)

    def model(action: str, rows: np.ndarray, repeat: int) -> tuple[str, int, Callable[[], Dataset]]:
        rows = rows if action == "dropped" else rows[wrong[rows]]  # other labels are right already
        return f"{action}-{hexdigest([str(sorted(rows.tolist()))])}", repeat, lambda: changed_set(action, rows)

    plan = [(NOTHING, "dropped", 0.0, np.array([], dtype=np.int64))]
    for action in actions:
        plan += [(method, action, share, rows) for (method, share), rows in worst.items()]
        plan.append((EVERYTHING, action, 0.0, np.flatnonzero(wrong)))
    retrained.train(model(action, rows, repeat) for repeat in range(num_repeats) for _, action, _, rows in plan)
    accuracies = []
    for repeat in range(num_repeats):
        for method, action, share, rows in plan:
            accuracy = float(retrained.measured(*model(action, rows, repeat)))
            row = {"method": method, "action": action, "share": share, "repeat": repeat}
            accuracies.append(row | {"accuracy": accuracy})
    return accuracies
