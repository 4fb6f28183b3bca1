"""Compute predictions, losses and loss gradients of queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from scipy.special import softmax

from hf_fastif.curvature import captured_layers, covered_names, loss_captures
from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import DatasetSweep, SingleProcess, shard_for_rank
from hf_fastif.model import IGNORED, Batch, Objective


@dataclass(frozen=True)
class Predictions:
    """Outputs and losses of Q examples, in their order.

    Attributes:
        logits (`np.ndarray` of shape `(Q, C)`): Outputs; C is 0 if examples have several labels (tokens).
        losses (`np.ndarray` of shape `(Q,)`): Losses.
        labels (`np.ndarray` of shape `(Q,)`): True classes as floats; NaN if labels are not classes.
        right (`np.ndarray` of shape `(Q, 2)`, *optional*): If examples have several labels: how many of them the
            model predicts, and how many there are.
    """

    logits: np.ndarray
    losses: np.ndarray
    labels: np.ndarray
    right: np.ndarray | None = None

    def names(self, label_names: list[str]) -> list[str]:
        """Return each prediction as text: the label, the number (regression), or how many of several are right."""
        if self.right is not None:
            return [f"{right:.0f} of {count:.0f} right" for right, count in self.right]
        if not self.logits.shape[1]:
            return [""] * len(self.logits)
        if self.logits.shape[1] == 1:
            return [f"{value:.4g}" for value in self.logits[:, 0]]
        classes = self.logits.argmax(axis=1)
        named = self.logits.shape[1] == len(label_names)
        return [label_names[label] if named else str(label) for label in classes.tolist()]

    def probabilities(self) -> np.ndarray:
        """Return the probability (Q,) of the predicted label; NaN if labels are not classes."""
        if self.logits.shape[1] <= 1:
            return np.full(len(self.logits), np.nan)
        return softmax(self.logits, axis=1).max(axis=1)

    def wrong(self) -> np.ndarray:
        """Tell for each example whether its label, or any of its labels, is not predicted, as booleans (Q,).

        Raises:
            InfluenceError: If the labels are not classes.
        """
        if self.right is not None:
            return self.right[:, 0] < self.right[:, 1]
        if np.isnan(self.labels).any() or not self.logits.shape[1]:
            raise InfluenceError(
                "examples: the labels are not classes (one whole number per row), so no prediction is right or wrong; "
                "give a dataset of a classification task."
            )
        return self.logits.argmax(axis=1) != self.labels

    def check_labels(self, name: str) -> None:
        """Refuse examples without a labelled token, which no training example can have influenced.

        Raises:
            InfluenceError: If an example has no label.
        """
        if self.right is not None and (self.right[:, 1] == 0).any():
            row = int(np.flatnonzero(self.right[:, 1] == 0)[0])
            raise InfluenceError(
                f"{name}: row {row} has no labelled token (all are -100), so that it has no loss; was its "
                "completion cut off by max_length?"
            )


def predict(
    objective: Objective, examples: ExampleBatches, sweep: DatasetSweep, name: str = "examples"
) -> Predictions:
    """Compute predictions and losses of all examples; every process gets the result for all of them.

    Args:
        objective (`Objective`): The loss.
        examples (`ExampleBatches`): N examples.
        sweep (`DatasetSweep`): Divides the pass into batches and processes.
        name (`str`, *optional*): The argument that the examples were given as, for messages.

    Raises:
        InfluenceError: If the loss of an example is NaN or infinite.
    """
    custom = objective.custom_loss is not None or objective.custom_compute_loss is not None
    head = objective.head
    counted = head.has_token_outputs and not custom  # whether to count the labels that are predicted
    with torch.no_grad():
        shown = objective.custom_compute_loss is None and not head.has_token_outputs
        width = objective.logits(objective.theta, examples.take([0])).shape[1] if shown else 0

    @torch.no_grad()
    def compute(batch: Batch) -> torch.Tensor:
        if not (counted or shown):
            return objective.losses(objective.theta, batch)[:, None]
        logits, labels = objective.logits(objective.theta, batch), objective.labels(batch)
        losses = objective.losses_of_logits(logits, labels)[:, None]
        if counted:
            known = labels != IGNORED
            right = (logits.argmax(dim=-1) == labels) & known
            return torch.cat([losses, torch.stack([right.sum(dim=1), known.sum(dim=1)], dim=1)], dim=1)
        one_class = labels.ndim == 1 and not labels.is_floating_point()
        classes = labels[:, None] if one_class else torch.full_like(losses, math.nan)
        return torch.cat([losses, classes, logits], dim=1)

    columns = 3 if counted else 2 + width if shown else 1
    outputs = sweep.over(examples, np.arange(len(examples)), columns, compute, "Predicting")
    predictions = Predictions(
        logits=outputs[:, 2 : 2 + width],
        losses=outputs[:, 0],
        labels=outputs[:, 1] if shown else np.full(len(outputs), np.nan),
        right=outputs[:, 1:] if counted else None,
    )
    losses = predictions.losses
    if not np.isfinite(losses).all():
        row = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise InfluenceError(
            f"{name}: the loss of row {row} is {losses[row]}; check its text and label, and the model's weights."
        )
    return predictions


def loss_gradients(objective: Objective, queries: ExampleBatches, rows: Sequence[int]) -> torch.Tensor:
    """Compute grad L(z') (Q, P) of the given queries: together if all layers can be captured, otherwise one by one."""
    layers = captured_layers(objective, queries.take(rows[:2])) if len(rows) > 1 else []
    if objective.weight_decay or len(covered_names(layers)) < len(objective.theta):
        return torch.stack([objective.gradient(queries.take([row])) for row in rows])
    gradients, by_name = objective.space.empty(len(rows))
    for capture in loss_captures(objective, queries.take(rows), layers):
        for name, values in capture.rows().items():
            by_name[name].copy_(values[0])
    return gradients


def sharded_gradients(
    objective: Objective, queries: ExampleBatches, rows: Sequence[int], accelerator: Accelerator | SingleProcess
) -> torch.Tensor:
    """Compute `loss_gradients` with the queries divided among the processes; all get bitwise the same result."""
    if accelerator.num_processes == 1:
        return loss_gradients(objective, queries, rows)
    gradients = objective.space.zeros(len(rows), objective.space.size)
    shard = shard_for_rank(range(len(rows)), accelerator)
    if shard:
        gradients[shard] = loss_gradients(objective, queries, [rows[i] for i in shard])
    return accelerator.reduce(gradients, "sum")
