"""Measure the linear datamodeling score: whether sums of influence predict the losses of models retrained on subsets.

Park et al. (2023), TRAK, section 2: models are trained on random halves of the training set. For each query, the
losses of these models are rank-correlated with the summed influence of the examples that each model was trained on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from datasets import Dataset

from hf_fastif.analysis.loss_rise import LossRises
from hf_fastif.analysis.methods import METHODS, at_checkpoint, check_methods, members_of
from hf_fastif.analysis.result import AnalysisResult
from hf_fastif.analysis.session_tools import influence_manifest, open_analysis_results
from hf_fastif.artifacts.plots import add_legend, colors_of, draw_level, draw_points, new_figure
from hf_fastif.checkpoints import Checkpoint
from hf_fastif.execution import PartialResults, Tensors
from hf_fastif.metrics import SubsetLosses, lds
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LdsOfMethods(AnalysisResult):
    """Linear datamodeling scores of several methods at several moments of training.

    Attributes:
        table (`list[dict]`): Rows with `moment`, `method`, `lds`, `low` and `high` (see [`Lds`]), and `seconds` for
            the influence of all training examples on all queries; `rise`, `rise_low` and `rise_high` (see
            [`LossRises`]) if they were measured.
        num_subsets (`int`): Number of subsets S that models were retrained on.
        num_queries (`int`): Number of queries Q.
        num_train (`int`): Number of training examples N.
        ceiling (`float`, *optional*): The `ceiling` of [`SubsetLosses`].
    """

    table: list[dict[str, Any]]
    num_subsets: int
    num_queries: int
    num_train: int
    ceiling: float | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.num_queries} queries, {self.num_train:,} training examples, models retrained on "
            f"{self.num_subsets} random subsets; 95 % intervals"
            f"{'' if self.ceiling is None else f'; ceiling {self.ceiling:.2f}'}"
        ]
        for row in self.table:
            score = f"{row['lds']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
            share = "" if self.ceiling is None else f", {row['lds'] / self.ceiling:.0%} of the ceiling"
            line = f"  {row['moment']:24} {row['method']:26} LDS {score}{share}   {row['seconds']:,.0f} s"
            if "rise" in row:
                line += (
                    f"   loss {row['rise']:+.3f} ({row['rise_low']:.3f} to {row['rise_high']:.3f}) without its top 1 %"
                )
            lines.append(line)
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw the score of every method at every moment, with its 95 % interval."""
        table = pd.DataFrame(self.table)
        best = table.loc[table["lds"].idxmax()]
        title = (
            f"Losses after retraining are best predicted by {best['method']} at {best['moment']}: "
            f"LDS {best['lds']:.2f} ({best['low']:.2f} to {best['high']:.2f})"
        )
        moments, methods = (list(table[name].unique()) for name in ("moment", "method"))
        figure, ((axes,),) = new_figure(4 + 1.1 * len(moments), 4.2, title=title)
        colors = colors_of(methods)
        for number, (method, rows) in enumerate(table.groupby("method", sort=False)):
            places = rows["moment"].map(moments.index) + 0.7 * ((number + 0.5) / len(methods) - 0.5)
            draw_points(
                axes, places, rows["lds"], rows["low"], rows["high"], fmt="o", color=colors[method], label=method
            )
        draw_level(axes, 0)
        if self.ceiling is not None:
            draw_level(axes, self.ceiling, linestyle="--", label="ceiling")
        axes.set_xticks(range(len(moments)), moments, rotation=25, ha="right")
        axes.set_ylabel("linear datamodeling score")
        axes.grid(visible=False, axis="x")
        add_legend(figure, axes)
        return figure


def lds_of_methods(
    trainer: InfluenceTrainer,
    queries: Dataset,
    truth: SubsetLosses,
    methods: Sequence[str],
    moments: Mapping[str, Sequence[str]],
    rises: LossRises | None = None,
) -> LdsOfMethods:
    """Compute the linear datamodeling score of every method at every moment of training.

    The influence of each method at each checkpoint is saved in `output_dir/methods`. Later calls with other moments or
    more retrained models reuse it.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer of a model that was trained on all examples.
        queries (`datasets.Dataset`): The Q queries.
        truth ([`SubsetLosses`]): The return value of `retrain_on_subsets` for these queries and this training set.
        methods (`Sequence[str]`): Keys of `hf_fastif.analysis.METHODS`.
        moments (`Mapping[str, Sequence[str]]`): The checkpoints of each moment by its name, as in
            `InfluenceConfig.checkpoints`.
        rises ([`LossRises`], *optional*): Also measures the loss without the most helpful examples, which needs a
            model for each query and method.

    Returns:
        [`LdsOfMethods`]: The scores.

    Raises:
        InfluenceError: If a method is unknown, or `truth` belongs to another number of queries or training examples.

    Example:
        ```python
        truth = retrain_on_subsets(train_on, trainer.train_dataset, "subsets")
        moments = {"final model": ["final"], "all epochs": ["epochs"]}
        print(lds_of_methods(trainer, queries, truth, ["EK-FAC", "gradient product"], moments))
        ```
    """
    check_methods(methods)
    table = []
    for moment, checkpoints in moments.items():
        members, weights = members_of(trainer, checkpoints)
        folders = [_folder_of(trainer, queries, member) for member in members]
        for method in methods:
            pairs = zip(members, folders, strict=True)
            parts = [_influence_at(trainer, queries, method, member, folder) for member, folder in pairs]
            influence = sum(weight * part["influence"] for weight, part in zip(weights, parts, strict=True))
            score = lds(influence.cpu().numpy(), truth)
            seconds = float(sum(part["seconds"] for part in parts))
            numbers = {"lds": score.mean, "low": score.low, "high": score.high, "seconds": seconds}
            measured = {} if rises is None else rises.of(influence.cpu().numpy())
            table.append({"moment": moment, "method": method} | numbers | measured)
    return LdsOfMethods(table, len(truth), len(queries), len(trainer.train_dataset), truth.ceiling)


def _folder_of(trainer: InfluenceTrainer, queries: Dataset, member: Checkpoint) -> PartialResults:
    """Open the store of the influence of all methods at one checkpoint."""
    with at_checkpoint(trainer, member):
        return open_analysis_results(trainer, "methods", influence_manifest(trainer, queries=queries))


def _influence_at(
    trainer: InfluenceTrainer, queries: Dataset, method: str, member: Checkpoint, folder: PartialResults
) -> Tensors:
    """Read or compute the `influence` (Q, N) of a method at one checkpoint, and the `seconds` that it took.

    Moments share checkpoints; the influence of a moment is the weighted sum over its checkpoints.
    """

    def timed() -> Tensors:
        start = time.perf_counter()
        influence = torch.from_numpy(METHODS[method](trainer, queries))
        return {"influence": influence, "seconds": torch.tensor(time.perf_counter() - start)}

    with at_checkpoint(trainer, member):
        return folder.get(method.replace(" ", "-"), timed)
