"""What a model says about the queries: predictions, losses and the gradients of the losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from scipy.special import softmax

from hf_fastif.batches import ExampleBatches
from hf_fastif.curvature import captured_layers, covered_names
from hf_fastif.curvature.captures import loss_captures
from hf_fastif.objective import Batch, Objective
from hf_fastif.passes import Passes
from hf_fastif.processes import Alone


@dataclass(frozen=True)
class Predictions:
    """Outputs and losses of Q examples, in their order.

    Attributes:
        logits (`np.ndarray` of shape `(Q, C)`): Outputs.
        losses (`np.ndarray` of shape `(Q,)`): Losses.
        labels (`np.ndarray` of shape `(Q,)`): True classes as floats; NaN where the label is not one of several.
    """

    logits: np.ndarray
    losses: np.ndarray
    labels: np.ndarray

    def wrong(self) -> np.ndarray:
        """Whether the label is not the predicted one, bool (Q,).

        Raises:
            ValueError: If the labels are not one of several classes.
        """
        if np.isnan(self.labels).any():
            raise ValueError(
                "examples: the labels are not classes (one whole number a row), so no prediction is right or wrong."
            )
        return self.logits.argmax(axis=1) != self.labels

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


def predict(objective: Objective, examples: ExampleBatches, passes: Passes) -> Predictions:
    """Runs the model on every example; all processes get the whole answer.

    Raises:
        ValueError: If the loss of an example is NaN or infinite.
    """

    def compute(batch: Batch) -> torch.Tensor:
        labels = batch["labels"]
        with torch.no_grad():
            logits = objective.logits(objective.theta, batch)
            losses = objective.losses_of_logits(logits, labels)
        one_class = labels.ndim == 1 and not labels.is_floating_point()
        classes = labels if one_class else torch.full_like(losses, math.nan)
        return torch.cat([logits, losses[:, None], classes[:, None]], dim=1)

    width = objective.model.config.num_labels + 2
    outputs = passes.over(examples, np.arange(len(examples)), width, compute, "Predicting")
    found = Predictions(logits=outputs[:, :-2], losses=outputs[:, -2], labels=outputs[:, -1])
    if not np.isfinite(found.losses).all():
        row = int(np.flatnonzero(~np.isfinite(found.losses))[0])
        raise ValueError(
            f"examples: the loss of row {row} is {found.losses[row]}; look at its text and label, and at whether the "
            "model's weights are whole."
        )
    return found


def loss_gradients(objective: Objective, queries: ExampleBatches, rows: Sequence[int]) -> torch.Tensor:
    """grad L(z') for chosen queries, shape (Q, P): all at once where layers can tell them apart, else one by one."""
    layers = captured_layers(objective, queries.take(rows[:2])) if len(rows) > 1 else []
    if objective.weight_decay or len(covered_names(layers)) < len(objective.theta):
        return torch.stack([objective.gradient(queries.take([row])) for row in rows])
    found = {}
    for capture in loss_captures(objective, queries.take(rows), layers):
        found |= {name: gradients[0] for name, gradients in capture.rows().items()}
    return objective.space.join([found[name] for name in objective.theta], lead=(len(rows),))


def dealt_gradients(
    objective: Objective, queries: ExampleBatches, rows: Sequence[int], accelerator: Accelerator | Alone
) -> torch.Tensor:
    """`loss_gradients`, with the queries dealt to the processes; the same to the last bit on each of them."""
    if accelerator.num_processes == 1:
        return loss_gradients(objective, queries, rows)
    parameter = next(iter(objective.theta.values()))
    found = parameter.new_zeros(len(rows), objective.space.size)
    own = slice(accelerator.process_index, None, accelerator.num_processes)
    if rows[own]:
        found[own] = loss_gradients(objective, queries, rows[own])
    return accelerator.reduce(found, "sum")
