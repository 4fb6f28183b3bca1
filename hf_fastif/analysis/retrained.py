"""Retrain models on changed training sets, each model once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from datasets import Dataset

from hf_fastif.data import hexdigest
from hf_fastif.execution import PartialResults, Tensors, single_process


class Retrained:
    """A cache of measurements of models that are retrained on changed training sets.

    Every model is trained once. The models are divided among the processes. Each is trained by a single process
    without DDP, so that the number of processes does not change it; `hf_fastif.execution.single_process` says what
    `train_on` must observe.

    Args:
        parts (`PartialResults`): Store of the measurements.
        train_on (`Callable`): Trains a model and returns measurements (n,) of it, given training examples and the
            number of the repeat, which serves as the seed.

    Example:
        ```python
        parts = open_analysis_results(trainer, "retrained", digests(trainer, train=train))
        retrained = Retrained(parts, train_on)
        losses = retrained.measured("without-first", 0, lambda: train.select(range(1, len(train))))
        ```
    """

    def __init__(self, parts: PartialResults, train_on: Callable[[Dataset, int], np.ndarray]):
        self.parts = parts
        self.train_on = train_on
        self._known: dict[str, np.ndarray] = {}

    def train(self, wanted: Iterable[tuple[str, int, Callable[[], Dataset]]]) -> None:
        """Train every requested model whose measurements are not cached yet.

        Args:
            wanted (`Iterable[tuple]`): Tuples of the arguments of `measured`.
        """
        work = {_name(change, repeat): partial(self._work, repeat, train) for change, repeat, train in wanted}
        self.parts.compute_missing(work, "Retraining")

    def measured(self, change: str, repeat: int, train: Callable[[], Dataset]) -> np.ndarray:
        """Return the measurements (n,) of the model trained on a changed training set, training it if necessary.

        Args:
            change (`str`): Short name of the change, which becomes part of a file name.
            repeat (`int`): Number of the repeat.
            train (`Callable`): Returns the changed training set.
        """
        name = _name(change, repeat)
        if name not in self._known:
            part = self.parts.get(name, partial(self._work, repeat, train))
            self._known[name] = part["numbers"].cpu().numpy()
        return self._known[name]

    def _work(self, repeat: int, train: Callable[[], Dataset]) -> Tensors:
        with single_process():
            return {"numbers": torch.as_tensor(self.train_on(train(), repeat), dtype=torch.float64)}


def without_rows(train: Dataset, rows: np.ndarray, repeat: int = 0) -> tuple[str, int, Callable[[], Dataset]]:
    """Return the arguments of `Retrained.measured` for a training set without some rows.

    Args:
        train (`datasets.Dataset`): The N training examples.
        rows (`np.ndarray` of shape `(m,)`): The rows to remove, in any order.
        repeat (`int`, *optional*, defaults to 0): The number of the repeat.

    Example:
        ```python
        losses = retrained.measured(*without_rows(train, np.array([3, 8])))
        ```
    """
    name = f"without-{len(rows)}-{hexdigest([str(sorted(rows.tolist()))])}"
    return name, repeat, lambda: train.select(np.setdiff1d(np.arange(len(train)), rows))


def _name(change: str, repeat: int) -> str:
    return f"{change}-repeat-{repeat}"
