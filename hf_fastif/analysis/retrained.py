"""Train models again on changed training sets, each one once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from datasets import Dataset

from hf_fastif.execution import PartialResults, Tensors, single_process


class Retrained:
    """Models that are trained again on changed training sets: each one once, and what is measured of it is kept.

    The models are dealt to the processes. Each is trained as by a single process, without DDP, so that several
    processes give the models of one; see `hf_fastif.execution.single_process` for what `train_on` must keep to.

    Args:
        parts (`PartialResults`): Where it is kept.
        train_on (`Callable`): Given training examples and the number of a repeat (for a seed), trains a model and
            returns numbers (n,) that are measured of it.
    """

    def __init__(self, parts: PartialResults, train_on: Callable[[Dataset, int], np.ndarray]):
        self.parts = parts
        self.train_on = train_on
        self._known: dict[str, np.ndarray] = {}

    def train(self, wanted: Iterable[tuple[str, int, Callable[[], Dataset]]]) -> None:
        """Trains those of some models that are missing, so that `measured` finds them; given as it takes them."""
        work = {_name(change, repeat): partial(self._work, repeat, train) for change, repeat, train in wanted}
        self.parts.compute_missing(work, "Training again")

    def measured(self, change: str, repeat: int, train: Callable[[], Dataset]) -> np.ndarray:
        """The numbers (n,) of the model that a changed training set gives.

        Args:
            change (`str`): A short name of the change, for a file.
            repeat (`int`): The number of the repeat.
            train (`Callable`): Makes the changed training set.
        """
        name = _name(change, repeat)
        if name not in self._known:
            found = self.parts.get(name, partial(self._work, repeat, train))
            self._known[name] = found["numbers"].cpu().numpy()
        return self._known[name]

    def _work(self, repeat: int, train: Callable[[], Dataset]) -> Tensors:
        with single_process():
            return {"numbers": torch.as_tensor(self.train_on(train(), repeat), dtype=torch.float64)}


def _name(change: str, repeat: int) -> str:
    return f"{change}-repeat-{repeat}"
