"""Train models on random subsets of a training set, and measure their losses."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import tqdm
from datasets import Dataset
from safetensors import SafetensorError

from hf_fastif.data import without_indexes
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import from_main, shard_for_rank, single_process
from hf_fastif.metrics import SubsetLosses, rank_correlations
from hf_fastif.trainer import InfluenceTrainer


MOST_SUBSETS = 100_000  # the seeds of the second repeat start here
SAME_SEED = "same-seed"


def retrain_on_subsets(
    train_on: Callable[[Dataset, int | None], np.ndarray],
    train_dataset: Dataset,
    folder: str | Path,
    *,
    num_subsets: int = 100,
    share: float = 0.5,
    seed: int = 0,
    overwrite: bool = False,
    repeats: int = 1,
    same_seed: bool = False,
) -> SubsetLosses:
    """Train models on each of several random subsets of a training set and measure their losses.

    The losses of finished models are saved, so that an interrupted call resumes. The models are divided among the
    processes. Each is trained by a single process without DDP, so that neither the batch size nor the result depends
    on the number of processes; `hf_fastif.execution.single_process` says what `train_on` must observe.

    Args:
        train_on (`Callable`): Trains a model and returns its losses (Q,) on the queries, given a subset and a number
            that serves as the seed, or None for the seed of the model that is explained.
        train_dataset (`datasets.Dataset`): The N training examples.
        folder (`str` or `Path`): Folder for the losses of each model, and for those of all models in
            `subsets.safetensors`.
        num_subsets (`int`, *optional*, defaults to 100): Number of subsets S. A later call with a larger number adds
            to the same folder.
        share (`float`, *optional*, defaults to 0.5): Fraction of the training set in each subset, between 0 and 1.
        seed (`int`, *optional*, defaults to 0): Seed of the subsets.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to retrain models that the folder already holds.
        repeats (`int`, *optional*, defaults to 1): Number of models trained on each subset. Their losses are averaged,
            because the order of the examples and the initial head change a loss as much as the subset does. The
            ceiling is known if there are several.
        same_seed (`bool`, *optional*, defaults to `False`): Whether the first model of each subset has the seed of the
            model that is explained. The losses are then those of this model alone, so that only the data differ, and
            the other models tell the ceiling.

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
    kinds = [SAME_SEED, *range(repeats - 1)] if same_seed else list(range(repeats))
    models = [(number, kind) for kind in kinds for number in range(num_subsets)]

    def path_of(number: int, kind: int | str) -> Path:
        return folder / f"subset-{number:05d}{f'-{kind}' if kind else ''}.safetensors"

    def unfinished() -> list[tuple[int, int | str]]:
        folder.mkdir(parents=True, exist_ok=True)
        return [model for model in models if overwrite or not _is_finished(path_of(*model), members[model[0]])]

    rows = without_indexes(train_dataset)
    models_of_this_process = shard_for_rank(from_main(unfinished, processes), processes)
    for number, kind in tqdm(models_of_this_process, desc="Retraining"):
        model_seed = None if kind == SAME_SEED else number + int(kind) * MOST_SUBSETS
        with single_process():
            losses = train_on(rows.select(np.flatnonzero(members[number])), model_seed)
        SubsetLosses(members[[number]], np.asarray(losses)[None]).save(path_of(number, kind))
    processes.wait_for_everyone()

    def join() -> SubsetLosses:
        losses = np.concatenate([SubsetLosses.load(path_of(*model)).losses for model in models])
        losses = losses.reshape(repeats, num_subsets, -1)
        truth = losses[0] if same_seed else losses.mean(axis=0)
        joined = SubsetLosses(members, truth, _ceiling(losses, averaged=1 if same_seed else repeats))
        joined.save(folder / "subsets.safetensors")
        return joined

    return from_main(join, processes)


def _ceiling(losses: np.ndarray, averaged: int) -> float | None:
    """Compute the square root of the reliability of the mean of several repeats by the Spearman-Brown formula.

    Args:
        losses (`np.ndarray` of shape `(R, S, Q)`): The losses of all repeats; the ceiling is None for a single one.
        averaged (`int`): Number of repeats whose mean is to be predicted.
    """
    if len(losses) == 1:
        return None
    shared = np.mean([rank_correlations(one, other) for one, other in combinations(losses, 2)])
    return float(max(0.0, averaged * shared / (1 + (averaged - 1) * shared)) ** 0.5)


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
