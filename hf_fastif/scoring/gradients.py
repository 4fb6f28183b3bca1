"""Influence from the gradients of single examples, layer by layer: cheaper as soon as there are two queries."""

from __future__ import annotations

import torch

from hf_fastif.curvature.captures import Layer, captures
from hf_fastif.objective import Batch, Objective


def batch_scores_by_rows(
    objective: Objective, batch: Batch, s_test: torch.Tensor, layers: list[Layer]
) -> torch.Tensor:
    """I(z, z') = - s_test(z') . grad L(z) for Q queries and the B examples z of a batch.

    One forward and one backward pass give what each layer received and got back; the gradients of single examples
    follow layer by layer, and a query then costs a matrix product.

    Args:
        objective (`Objective`): The per-example loss.
        batch (`dict`): B examples.
        s_test (`torch.Tensor` of shape `(Q, P)`): One vector for each query.
        layers (`list[Layer]`): Layers that hold all trained parameters (`captured_layers`).

    Returns:
        `torch.Tensor` of shape `(Q, B)`: Positive is harmful, negative helpful.
    """

    def loss_gradients(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        outputs = logits.requires_grad_()
        return torch.autograd.grad(objective.losses_of_logits(outputs, labels).sum(), outputs)[0][None]

    pieces = objective.space.split(s_test)
    total = s_test.new_zeros(len(s_test), len(batch["labels"]))
    for capture in captures(objective, batch, layers, loss_gradients):
        for name, gradients in capture.rows().items():
            total -= pieces[name].flatten(1) @ gradients[0].flatten(1).T
    return total
