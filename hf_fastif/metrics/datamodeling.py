"""The linear datamodeling score (Park et al., 2023): do sums of influences predict losses after retraining?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.stats import rankdata

from hf_fastif.artifacts import atomic_write
from hf_fastif.errors import InfluenceError
from hf_fastif.metrics.intervals import two_way_interval


@dataclass(frozen=True)
class SubsetLosses:
    """Losses of queries under models trained on random subsets of a training set.

    Attributes:
        members (`np.ndarray` of shape `(S, N)`, bool): Which of N examples each of S models was trained on.
        losses (`np.ndarray` of shape `(S, Q)`): Loss of each model on each query.
        ceiling (`float`, *optional*): The correlation of a perfect prediction with these losses, which is below 1
            because training is random. It is known if several models were trained on each subset.

    Example:
        ```python
        truth = retrain_on_subsets(train_on, trainer.train_dataset, "subsets")
        truth.save("subsets.safetensors")
        truth = SubsetLosses.load("subsets.safetensors")
        ```
    """

    members: np.ndarray
    losses: np.ndarray
    ceiling: float | None = None

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file and return its path."""
        # safetensors writes the memory of an array and ignores its strides.
        tensors = {"members": self.members.astype(np.uint8), "losses": np.ascontiguousarray(self.losses)}
        if self.ceiling is not None:
            tensors["ceiling"] = np.array(self.ceiling)
        return atomic_write(Path(path), lambda file: save_file(tensors, file))

    @classmethod
    def load(cls, path: str | Path) -> SubsetLosses:
        """Read a file that `save` wrote."""
        tensors = load_file(path)
        ceiling = float(tensors["ceiling"]) if "ceiling" in tensors else None
        return cls(tensors["members"].astype(bool), tensors["losses"], ceiling)

    def __len__(self) -> int:
        return len(self.members)


@dataclass(frozen=True)
class Lds:
    """A linear datamodeling score.

    Attributes:
        mean (`float`): Spearman correlation over the subsets, averaged over queries.
        low, high (`float`): Its 95 % interval, from resampling subsets and queries.
        per_query (`np.ndarray` of shape `(Q,)`): The correlation for each query.
    """

    mean: float
    low: float
    high: float
    per_query: np.ndarray

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def lds(influence: np.ndarray, truth: SubsetLosses, num_draws: int = 1000, seed: int = 0) -> Lds:
    """Compute the linear datamodeling score of influence scores (Park et al., 2023, section 2).

    Args:
        influence (`np.ndarray` of shape `(Q, N)`): The return value of `trainer.compute_influence(queries)`: positive
            where training on an example raises the loss.
        truth ([`SubsetLosses`]): Losses of retrained models for the same queries and training set.
        num_draws (`int`, *optional*, defaults to 1000): Number of bootstrap samples for the interval.
        seed (`int`, *optional*, defaults to 0): Seed of the bootstrap samples.

    Returns:
        [`Lds`]: The score. 1 means that influence ranks the models as their losses do, 0 that it is uninformative.

    Raises:
        InfluenceError: If the numbers of queries or training examples differ.

    Example:
        ```python
        truth = retrain_on_subsets(train_on, trainer.train_dataset, "subsets")
        print(lds(trainer.compute_influence(queries), truth))
        ```
    """
    if influence.shape != (truth.losses.shape[1], truth.members.shape[1]):
        raise InfluenceError(
            f"influence has the shape {influence.shape}; give {(truth.losses.shape[1], truth.members.shape[1])}: the "
            f"models were trained on subsets of {truth.members.shape[1]} examples and evaluated on "
            f"{truth.losses.shape[1]} queries."
        )
    predicted = truth.members.astype(np.float64) @ influence.T.astype(np.float64)

    def drawn_means(models: np.ndarray, queries: np.ndarray) -> list[float]:
        pairs = zip(models, queries, strict=True)
        return [rank_correlations(predicted[rows], truth.losses[rows])[columns].mean() for rows, columns in pairs]

    per_query = rank_correlations(predicted, truth.losses)
    return Lds(float(per_query.mean()), *two_way_interval(drawn_means, truth.losses.shape, num_draws, seed), per_query)


def rank_correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Compute Spearman's rho (Q,) between corresponding columns of two tables (S, Q).

    It is 0 for a column that is constant in either table.

    Example:
        ```python
        rho = rank_correlations(losses_of_one_seed, losses_of_another_seed)
        ```
    """
    a, b = (ranks - ranks.mean(axis=0) for ranks in (rankdata(one, axis=0), rankdata(other, axis=0)))
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return (a * b).sum(axis=0) / np.where(scale > 0, scale, 1.0)
