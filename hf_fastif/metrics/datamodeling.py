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
    """Losses of queries under models that were trained on random parts of a training set.

    Attributes:
        members (`np.ndarray` of shape `(S, N)`, bool): Which examples each of S models was trained on.
        losses (`np.ndarray` of shape `(S, Q)`): Its loss on each query.
        ceiling (`float`, *optional*): What a perfect prediction would correlate with these losses, which chance in
            training has its part in; known where several models were trained on each part.
    """

    members: np.ndarray
    losses: np.ndarray
    ceiling: float | None = None

    def save(self, path: str | Path) -> Path:
        """Writes a safetensors file."""
        # safetensors writes the memory behind an array, whatever its strides.
        tensors = {"members": self.members.astype(np.uint8), "losses": np.ascontiguousarray(self.losses)}
        if self.ceiling is not None:
            tensors["ceiling"] = np.array(self.ceiling)
        return atomic_write(Path(path), lambda file: save_file(tensors, file))

    @classmethod
    def load(cls, path: str | Path) -> SubsetLosses:
        """Reads what `save` wrote."""
        tensors = load_file(path)
        ceiling = float(tensors["ceiling"]) if "ceiling" in tensors else None
        return cls(tensors["members"].astype(bool), tensors["losses"], ceiling)

    def __len__(self) -> int:
        return len(self.members)


@dataclass(frozen=True)
class Lds:
    """A linear datamodeling score.

    Attributes:
        mean (`float`): Spearman correlation over the subsets, as a mean over queries.
        low, high (`float`): 95 % interval, from drawing subsets and queries anew.
        per_query (`np.ndarray` of shape `(Q,)`): Of each query.
    """

    mean: float
    low: float
    high: float
    per_query: np.ndarray

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def lds(influence: np.ndarray, truth: SubsetLosses, num_draws: int = 1000, seed: int = 0) -> Lds:
    """The linear datamodeling score of some influences.

    Args:
        influence (`np.ndarray` of shape `(Q, N)`): What `trainer.compute_influence(queries)` returned: positive where
            training on an example raises the loss.
        truth ([`SubsetLosses`]): Of the same queries and training set.
        num_draws (`int`, *optional*, defaults to 1000): For the interval.
        seed (`int`, *optional*, defaults to 0): For the interval.

    Returns:
        [`Lds`]: 1 where influences order the models as their losses do, 0 where they tell nothing.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if influence.shape != (truth.losses.shape[1], truth.members.shape[1]):
        raise InfluenceError(
            f"influence has the shape {influence.shape}; the models were trained on parts of "
            f"{truth.members.shape[1]} examples and asked for {truth.losses.shape[1]} queries."
        )
    predicted = truth.members.astype(np.float64) @ influence.T.astype(np.float64)

    def drawn_means(models: np.ndarray, queries: np.ndarray) -> list[float]:
        pairs = zip(models, queries, strict=True)
        return [rank_correlations(predicted[rows], truth.losses[rows])[columns].mean() for rows, columns in pairs]

    per_query = rank_correlations(predicted, truth.losses)
    return Lds(float(per_query.mean()), *two_way_interval(drawn_means, truth.losses.shape, num_draws, seed), per_query)


def rank_correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's rho (Q,) between the columns of two tables (S, Q); 0 where one does not vary."""
    a, b = (ranks - ranks.mean(axis=0) for ranks in (rankdata(one, axis=0), rankdata(other, axis=0)))
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return (a * b).sum(axis=0) / np.where(scale > 0, scale, 1.0)
