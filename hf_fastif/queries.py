"""What a model says about the queries: predictions, losses and the gradients of the losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax

from hf_fastif.batches import ExampleBatches
from hf_fastif.objective import Objective


@dataclass(frozen=True)
class Predictions:
    """Outputs and losses of Q queries, in their order.

    Attributes:
        logits (`np.ndarray` of shape `(Q, C)`): Outputs.
        losses (`np.ndarray` of shape `(Q,)`): Losses.
    """

    logits: np.ndarray
    losses: np.ndarray

    def names(self, label_names: list[str]) -> list[str]:
        """The predicted label of each query; for regression the number."""
        if self.logits.shape[1] == 1:
            return [f"{value:.4g}" for value in self.logits[:, 0]]
        return [label_names[int(label)] for label in self.logits.argmax(axis=1)]

    def probabilities(self) -> np.ndarray:
        """The probability (Q,) of the predicted label; NaN for regression."""
        if self.logits.shape[1] == 1:
            return np.full(len(self.logits), np.nan)
        return softmax(self.logits, axis=1).max(axis=1)


def predict(objective: Objective, queries: ExampleBatches, batch_size: int) -> Predictions:
    """Runs the model on every query.

    Raises:
        ValueError: If the loss of a query is NaN or infinite.
    """
    logits, losses = [], []
    with torch.no_grad():
        for start in range(0, len(queries), batch_size):
            batch = queries.take(range(start, min(start + batch_size, len(queries))))
            outputs = objective.logits(objective.theta, batch)
            logits.append(outputs.float().cpu().numpy())
            losses.append(objective.losses_of_logits(outputs, batch["labels"]).float().cpu().numpy())
    found = Predictions(np.concatenate(logits), np.concatenate(losses))
    if not np.isfinite(found.losses).all():
        query = int(np.flatnonzero(~np.isfinite(found.losses))[0])
        raise ValueError(
            f"examples: the loss of row {query} is {found.losses[query]}; look at its text and label, and at whether the "
            "model's weights are whole."
        )
    return found


def loss_gradients(objective: Objective, queries: ExampleBatches, rows: Sequence[int]) -> torch.Tensor:
    """grad L(z') for chosen queries, shape (Q, P)."""
    return torch.stack([objective.gradient(queries.take([row])) for row in rows])
