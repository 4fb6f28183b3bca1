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
from hf_fastif.objective import Objective


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


def predict(objective: Objective, examples: ExampleBatches, batch_size: int, accelerator: Accelerator) -> Predictions:
    """Runs the model on every example; batches are dealt to the processes, and all get the whole answer.

    Raises:
        ValueError: If the loss of an example is NaN or infinite.
    """
    outputs = torch.zeros(len(examples), objective.model.config.num_labels + 2, device=accelerator.device)
    batches = examples.grouped_by_length(np.arange(len(examples)), batch_size)
    with torch.no_grad():
        for rows in batches[accelerator.process_index :: accelerator.num_processes]:
            batch = examples.take(rows)
            logits = objective.logits(objective.theta, batch)
            losses = objective.losses_of_logits(logits, batch["labels"])
            labels = batch["labels"]
            classes = (
                labels if labels.ndim == 1 and not labels.is_floating_point() else torch.full_like(losses, math.nan)
            )
            found = torch.cat([logits, losses[:, None], classes[:, None]], dim=1)
            outputs[torch.from_numpy(rows).to(outputs.device)] = found.float()
    outputs = accelerator.reduce(outputs, "sum").cpu().numpy()
    found = Predictions(logits=outputs[:, :-2], losses=outputs[:, -2], labels=outputs[:, -1])
    if not np.isfinite(found.losses).all():
        row = int(np.flatnonzero(~np.isfinite(found.losses))[0])
        raise ValueError(
            f"examples: the loss of row {row} is {found.losses[row]}; look at its text and label, and at whether the "
            "model's weights are whole."
        )
    return found


def loss_gradients(objective: Objective, queries: ExampleBatches, rows: Sequence[int]) -> torch.Tensor:
    """grad L(z') for chosen queries, shape (Q, P)."""
    return torch.stack([objective.gradient(queries.take([row])) for row in rows])
