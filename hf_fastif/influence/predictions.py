"""What a model says about the queries: predictions, losses and the gradients of the losses."""

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
        logits (`np.ndarray` of shape `(Q, C)`): Outputs; no columns where an example has several places (tokens).
        losses (`np.ndarray` of shape `(Q,)`): Losses.
        labels (`np.ndarray` of shape `(Q,)`): True classes as floats; NaN where the label is not one of several.
        right (`np.ndarray` of shape `(Q, 2)`, *optional*): Where an example has several places: at how many of its
            labels the model predicts them, and how many there are.
    """

    logits: np.ndarray
    losses: np.ndarray
    labels: np.ndarray
    right: np.ndarray | None = None

    def names(self, label_names: list[str]) -> list[str]:
        """The predicted label of each query; for regression the number; of several places how many are right."""
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
        """The probability (Q,) of the predicted label; NaN where it is not one."""
        if self.logits.shape[1] <= 1:
            return np.full(len(self.logits), np.nan)
        return softmax(self.logits, axis=1).max(axis=1)

    def wrong(self) -> np.ndarray:
        """Whether the label, or one of several, is not the predicted one, bool (Q,).

        Raises:
            ValueError: If the labels are not one of several classes.
        """
        if self.right is not None:
            return self.right[:, 0] < self.right[:, 1]
        if np.isnan(self.labels).any() or not self.logits.shape[1]:
            raise InfluenceError(
                "examples: the labels are not classes (one whole number a row), so no prediction is right or wrong."
            )
        return self.logits.argmax(axis=1) != self.labels


def predict(objective: Objective, examples: ExampleBatches, sweep: DatasetSweep) -> Predictions:
    """Runs the model on every example; all processes get the whole answer.

    Raises:
        ValueError: If the loss of an example is NaN or infinite.
    """
    own, head = objective.custom_loss is not None or objective.custom_compute_loss is not None, objective.head
    counted = head.has_token_outputs and not own  # how many labels are predicted
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
    found = Predictions(
        logits=outputs[:, 2 : 2 + width],
        losses=outputs[:, 0],
        labels=outputs[:, 1] if shown else np.full(len(outputs), np.nan),
        right=outputs[:, 1:] if counted else None,
    )
    if not np.isfinite(found.losses).all():
        row = int(np.flatnonzero(~np.isfinite(found.losses))[0])
        raise InfluenceError(
            f"examples: the loss of row {row} is {found.losses[row]}; look at its text and label, and at whether the "
            "model's weights are whole."
        )
    return found


def loss_gradients(objective: Objective, queries: ExampleBatches, rows: Sequence[int]) -> torch.Tensor:
    """grad L(z') for chosen queries, shape (Q, P): all at once where layers can tell them apart, else one by one."""
    layers = captured_layers(objective, queries.take(rows[:2])) if len(rows) > 1 else []
    if objective.weight_decay or len(covered_names(layers)) < len(objective.theta):
        return torch.stack([objective.gradient(queries.take([row])) for row in rows])
    found, own = objective.space.empty(len(rows))
    for capture in loss_captures(objective, queries.take(rows), layers):
        for name, gradients in capture.rows().items():
            own[name].copy_(gradients[0])
    return found


def sharded_gradients(
    objective: Objective, queries: ExampleBatches, rows: Sequence[int], accelerator: Accelerator | SingleProcess
) -> torch.Tensor:
    """`loss_gradients`, with the queries dealt to the processes; the same to the last bit on each of them."""
    if accelerator.num_processes == 1:
        return loss_gradients(objective, queries, rows)
    found = objective.space.zeros(len(rows), objective.space.size)
    own = shard_for_rank(range(len(rows)), accelerator)
    if own:
        found[own] = loss_gradients(objective, queries, [rows[i] for i in own])
    return accelerator.reduce(found, "sum")
