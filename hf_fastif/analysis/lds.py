"""Measure the linear datamodeling score: whether sums of influence predict the losses of models retrained on subsets.

Park et al. (2023), TRAK, section 2: models are trained on random halves of the training set. For each query, the
losses of these models are rank-correlated with the summed influence of the examples that each model was trained on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import tqdm
from datasets import Dataset
from safetensors import SafetensorError

from hf_fastif.analysis.methods import METHODS, at_checkpoint, check_methods, members_of
from hf_fastif.analysis.result import AnalysisResult
from hf_fastif.analysis.session_tools import influence_manifest, open_analysis_results
from hf_fastif.artifacts.plots import add_legend, colors_of, draw_level, draw_points, new_figure
from hf_fastif.checkpoints import Checkpoint
from hf_fastif.data import without_indexes
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import PartialResults, Tensors, from_main, shard_for_rank, single_process
from hf_fastif.metrics import SubsetLosses, lds, rank_correlations
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST_SUBSETS = 100_000  # the seeds of the second repeat start here


def retrain_on_subsets(
    train_on: Callable[[Dataset, int], np.ndarray],
    train_dataset: Dataset,
    folder: str | Path,
    *,
    num_subsets: int = 100,
    share: float = 0.5,
    seed: int = 0,
    overwrite: bool = False,
    repeats: int = 1,
) -> SubsetLosses:
    """Train a model on each of several random subsets of a training set and measure its losses.

    The losses of finished models are saved, so that an interrupted call resumes. The models are divided among the
    processes. Each is trained by a single process without DDP, so that neither the batch size nor the result depends
    on the number of processes; `hf_fastif.execution.single_process` says what `train_on` must observe.

    Args:
        train_on (`Callable`): Trains a model and returns its losses (Q,) on the queries, given a subset and a number
            that serves as the seed.
        train_dataset (`datasets.Dataset`): The N training examples.
        folder (`str` or `Path`): Folder for the losses of each model, and for those of all models in
            `subsets.safetensors`.
        num_subsets (`int`, *optional*, defaults to 100): Number of subsets S. A later call with a larger number adds
            to the same folder.
        share (`float`, *optional*, defaults to 0.5): Fraction of the training set in each subset, between 0 and 1.
        seed (`int`, *optional*, defaults to 0): Seed of the subsets.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to retrain models that the folder already holds.
        repeats (`int`, *optional*, defaults to 1): Number of models trained on each subset. Their losses are averaged,
            because the order of the examples and the initial head change a loss as much as the subset does.

    Returns:
        [`SubsetLosses`]: Subsets and losses, the same on every process.

    Raises:
        InfluenceError: If `share` or `repeats` is out of range, or the folder holds models of other subsets.

    Example:
        ```python
        def train_on(subset, seed):
            return query_losses(make_trained_trainer(subset, seed), queries)


        truth = retrain_on_subsets(train_on, trainer.train_dataset, "subsets", num_subsets=50)
        ```
    """
    if not 0 < share < 1:
        raise InfluenceError(f"share={share}: give a number between 0 and 1, such as 0.5.")
    if repeats < 1:
        raise InfluenceError(f"repeats={repeats}: give at least 1.")
    folder, count, processes = Path(folder), len(train_dataset), PartialState()
    members = np.zeros((num_subsets, count), dtype=bool)
    for number, is_member in enumerate(members):
        is_member[np.random.default_rng((seed, number)).choice(count, round(share * count), replace=False)] = True
    models = [(number, repeat) for repeat in range(repeats) for number in range(num_subsets)]

    def path_of(number: int, repeat: int) -> Path:
        return folder / f"subset-{number:05d}{f'-{repeat}' if repeat else ''}.safetensors"

    def unfinished() -> list[tuple[int, int]]:
        folder.mkdir(parents=True, exist_ok=True)
        return [model for model in models if overwrite or not _is_finished(path_of(*model), members[model[0]])]

    rows = without_indexes(train_dataset)
    models_of_this_process = shard_for_rank(from_main(unfinished, processes), processes)
    for number, repeat in tqdm(models_of_this_process, desc="Retraining"):
        with single_process():
            losses = train_on(rows.select(np.flatnonzero(members[number])), number + repeat * MOST_SUBSETS)
        SubsetLosses(members[[number]], np.asarray(losses)[None]).save(path_of(number, repeat))
    processes.wait_for_everyone()

    def join() -> SubsetLosses:
        losses = np.concatenate([SubsetLosses.load(path_of(*model)).losses for model in models])
        losses = losses.reshape(repeats, num_subsets, -1)
        joined = SubsetLosses(members, losses.mean(axis=0), _ceiling(losses))
        joined.save(folder / "subsets.safetensors")
        return joined

    return from_main(join, processes)


def _ceiling(losses: np.ndarray) -> float | None:
    """Compute the square root of the reliability of the mean over repeats (R, S, Q) by the Spearman-Brown formula.

    It is None for a single repeat.
    """
    count = len(losses)
    if count == 1:
        return None
    shared = np.mean([rank_correlations(one, other) for one, other in combinations(losses, 2)])
    return float(max(0.0, count * shared / (1 + (count - 1) * shared)) ** 0.5)


def _is_finished(path: Path, members: np.ndarray) -> bool:
    """Tell whether a file holds the losses of the model trained on a subset; a truncated file does not count.

    Raises:
        InfluenceError: If the file belongs to another subset.
    """
    try:
        saved = SubsetLosses.load(path)
    except (FileNotFoundError, SafetensorError):
        return False
    if not np.array_equal(saved.members[0], members):
        raise InfluenceError(
            f"folder: {path} belongs to another subset, since seed, share or the number of training examples "
            "differed; give another folder."
        )
    return True


def query_losses(trainer: InfluenceTrainer, queries: Dataset) -> np.ndarray:
    """Compute the loss (Q,) of the trainer's current model on each query.

    Example:
        ```python
        print(query_losses(trainer, queries).mean())
        ```
    """
    with trainer.session() as session:
        return session.predict(session.examples("queries", queries)).losses


@dataclass(frozen=True)
class LdsOfMethods(AnalysisResult):
    """Linear datamodeling scores of several methods at several moments of training.

    Attributes:
        table (`list[dict]`): Rows with `moment`, `method`, `lds`, `low` and `high` (see [`Lds`]), and `seconds` for
            the influence of all training examples on all queries.
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
            lines.append(f"  {row['moment']:24} {row['method']:26} LDS {score}   {row['seconds']:,.0f} s")
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
            table.append({"moment": moment, "method": method} | numbers)
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
