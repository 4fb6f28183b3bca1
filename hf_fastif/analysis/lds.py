"""The linear datamodeling score: do sums of influences predict what retraining on part of the data does?

Park et al. (2023), TRAK, section 2: models are trained on random halves of the training set; for each query the losses
of these models are compared, by rank, with the sums of the influences of the examples that each was trained on.
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


MOST_SUBSETS = 100_000  # models of the second repeat are numbered from here


def retrain_on_subsets(
    train_on: Callable[[Dataset, int], np.ndarray],
    train_dataset: Dataset,
    folder: str | Path,
    num_subsets: int = 100,
    share: float = 0.5,
    seed: int = 0,
    overwrite: bool = False,
    repeats: int = 1,
) -> SubsetLosses:
    """Trains a model on each of some random subsets; every finished model is kept, and not trained again.

    The models are dealt to the processes, and each trains its own as a single process would, without DDP: batch
    size and answer are those of one process. See `hf_fastif.execution.single_process` for what `train_on` must keep
    to.

    Args:
        train_on (`Callable`): Given a subset and a number (for a seed), trains a model and returns its losses (Q,)
            on the queries.
        train_dataset (`datasets.Dataset`): N examples.
        folder (`str` or `Path`): For the losses of each model, and `subsets.safetensors` of all of them.
        num_subsets (`int`, *optional*, defaults to 100): S. More can be added later to the same folder.
        share (`float`, *optional*, defaults to 0.5): Of the training set, in a subset.
        seed (`int`, *optional*, defaults to 0): Decides the subsets.
        overwrite (`bool`, *optional*, defaults to `False`): Trains again what the folder holds.
        repeats (`int`, *optional*, defaults to 1): Models of each subset. Their losses are averaged, since the order
            of the examples and the head that training starts from move a loss as much as the subset does.

    Raises:
        ValueError: If the folder holds models of other subsets.
    """
    if not 0 < share < 1:
        raise InfluenceError(f"share={share}: give a number between 0 and 1, such as 0.5.")
    if repeats < 1:
        raise InfluenceError(f"repeats={repeats}: give at least 1.")
    folder, count, processes = Path(folder), len(train_dataset), PartialState()
    members = np.zeros((num_subsets, count), dtype=bool)
    for number, own in enumerate(members):
        own[np.random.default_rng((seed, number)).choice(count, round(share * count), replace=False)] = True
    models = [(number, repeat) for repeat in range(repeats) for number in range(num_subsets)]

    def path_of(number: int, repeat: int) -> Path:
        return folder / f"subset-{number:05d}{f'-{repeat}' if repeat else ''}.safetensors"

    def left() -> list[tuple[int, int]]:
        folder.mkdir(parents=True, exist_ok=True)
        return [model for model in models if overwrite or not _is_finished(path_of(*model), members[model[0]])]

    rows = without_indexes(train_dataset)
    own = shard_for_rank(from_main(left, processes), processes)
    for number, repeat in tqdm(own, desc="Retraining"):
        with single_process():
            losses = train_on(rows.select(np.flatnonzero(members[number])), number + repeat * MOST_SUBSETS)
        SubsetLosses(members[[number]], np.asarray(losses)[None]).save(path_of(number, repeat))
    processes.wait_for_everyone()

    def join() -> SubsetLosses:
        losses = np.concatenate([SubsetLosses.load(path_of(*model)).losses for model in models])
        losses = losses.reshape(repeats, num_subsets, -1)
        whole = SubsetLosses(members, losses.mean(axis=0), _ceiling(losses))
        whole.save(folder / "subsets.safetensors")
        return whole

    return from_main(join, processes)


def _ceiling(losses: np.ndarray) -> float | None:
    """The square root of the reliability of the mean of repeats (R, S, Q), by Spearman and Brown's formula."""
    count = len(losses)
    if count == 1:
        return None
    shared = np.mean([rank_correlations(one, other) for one, other in combinations(losses, 2)])
    return float(max(0.0, count * shared / (1 + (count - 1) * shared)) ** 0.5)


def _is_finished(path: Path, members: np.ndarray) -> bool:
    """Whether the losses of a model are there, in a file that is whole."""
    try:
        found = SubsetLosses.load(path)
    except (FileNotFoundError, SafetensorError):
        return False
    if not np.array_equal(found.members[0], members):
        raise InfluenceError(
            f"{path} is of another subset (seed, share or the number of examples were others); give another folder."
        )
    return True


def query_losses(trainer: InfluenceTrainer, queries: Dataset) -> np.ndarray:
    """The loss (Q,) of the trainer's present model on each query."""
    with trainer.session() as session:
        return session.predict(session.examples("queries", queries)).losses


@dataclass(frozen=True)
class LdsOfMethods(AnalysisResult):
    """Linear datamodeling scores of several methods, at several moments of training.

    Attributes:
        table (`list[dict]`): `moment`, `method`, `lds`, `low` and `high` (see [`Lds`]), and `seconds` for the
            influence of all training examples on all queries.
        num_subsets (`int`): S, retrained models.
        num_queries (`int`): Q.
        num_train (`int`): N.
        ceiling (`float`, *optional*): That of [`SubsetLosses`].
    """

    table: list[dict[str, Any]]
    num_subsets: int
    num_queries: int
    num_train: int
    ceiling: float | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.num_queries} queries, {self.num_train:,} training examples, {self.num_subsets} models on random "
            f"parts of them; 95 % intervals{'' if self.ceiling is None else f'; at most {self.ceiling:.2f}'}"
        ]
        for row in self.table:
            score = f"{row['lds']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
            lines.append(f"  {row['moment']:24} {row['method']:26} LDS {score}   {row['seconds']:,.0f} s")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draws the scores of the methods at every moment."""
        table = pd.DataFrame(self.table)
        best = table.loc[table["lds"].idxmax()]
        title = (
            f"{best['method']} at {best['moment']} predicts the losses after retraining best: LDS {best['lds']:.2f} "
            f"({best['low']:.2f} to {best['high']:.2f})"
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
    """The linear datamodeling score of every method at every moment of training.

    Args:
        trainer ([`InfluenceTrainer`]): Of a model that was trained on all examples.
        queries (`datasets.Dataset`): Q examples.
        truth ([`SubsetLosses`]): What `retrain_on_subsets` returned for these queries and this training set.
        methods (`Sequence[str]`): Of `hf_fastif.analysis.METHODS`.
        moments (`Mapping`): By their names: the checkpoints, as in `InfluenceConfig.checkpoints`.

    Returns:
        [`LdsOfMethods`]: The influences at each checkpoint are kept in `output_dir/methods`, so that more moments or
            more retrained models repeat none of it.

    Raises:
        ValueError: If a method is not known.
    """
    check_methods(methods)
    table = []
    for moment, checkpoints in moments.items():
        members, weights = members_of(trainer, checkpoints)
        folders = [_folder_of(trainer, queries, member) for member in members]
        for method in methods:
            pairs = zip(members, folders, strict=True)
            found = [_kept_influence(trainer, queries, method, member, kept) for member, kept in pairs]
            influence = sum(weight * part["influence"] for weight, part in zip(weights, found, strict=True))
            score = lds(influence.cpu().numpy(), truth)
            seconds = float(sum(part["seconds"] for part in found))
            numbers = {"lds": score.mean, "low": score.low, "high": score.high, "seconds": seconds}
            table.append({"moment": moment, "method": method} | numbers)
    return LdsOfMethods(table, len(truth), len(queries), len(trainer.train_dataset), truth.ceiling)


def _folder_of(trainer: InfluenceTrainer, queries: Dataset, member: Checkpoint) -> PartialResults:
    """Where what methods say at one checkpoint is kept."""
    with at_checkpoint(trainer, member):
        return open_analysis_results(trainer, "methods", influence_manifest(trainer, queries=queries))


def _kept_influence(
    trainer: InfluenceTrainer, queries: Dataset, method: str, member: Checkpoint, kept: PartialResults
) -> Tensors:
    """What a method says at one checkpoint; influence at several is a sum over them, which moments share."""

    def timed() -> Tensors:
        start = time.perf_counter()
        influence = torch.from_numpy(METHODS[method](trainer, queries))
        return {"influence": influence, "seconds": torch.tensor(time.perf_counter() - start)}

    with at_checkpoint(trainer, member):
        return kept.get(method.replace(" ", "-"), timed)
