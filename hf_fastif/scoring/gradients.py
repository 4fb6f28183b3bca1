"""Influence from the gradients of single examples, layer by layer: cheaper as soon as there are two queries."""

from __future__ import annotations

import torch

from hf_fastif.curvature import Capture, Damping, KroneckerFactors, Layer, loss_captures
from hf_fastif.model import Batch, Objective


def gradient_scores(objective: Objective, batch: Batch, s_test: torch.Tensor, layers: list[Layer]) -> torch.Tensor:
    """I(z, z') = - s_test(z') . grad L(z) for Q queries and the B examples z of a batch.

    One forward and one backward pass give what each layer received and got back; the gradients of single examples
    follow layer by layer, no more than one layer's at a time, and a query then costs a matrix product.

    Args:
        objective (`Objective`): The per-example loss.
        batch (`dict`): B examples.
        s_test (`torch.Tensor` of shape `(Q, P)`): One vector for each query.
        layers (`list[Layer]`): Layers that hold all trained parameters (`covering_layers`).

    Returns:
        `torch.Tensor` of shape `(Q, B)`: Positive is harmful, negative helpful.
    """
    vectors = objective.space.split(s_test)
    return -sum(capture.along(vectors)[:, 0] for capture in loss_captures(objective, batch, layers))


def self_influence(
    objective: Objective, batch: Batch, layers: list[Layer], factors: KroneckerFactors | None, damping: Damping
) -> torch.Tensor:
    """grad L(z)^T (C + lambda I)^-1 grad L(z) for the B examples z of a batch, with C as EK-FAC has it.

    Args:
        objective (`Objective`): The per-example loss.
        batch (`dict`): B examples.
        layers (`list[Layer]`): Layers that hold all trained parameters (`covering_layers`).
        factors (`KroneckerFactors`, *optional*): C. Without it the answer is ||grad L(z)||^2.
        damping (`float` or `Mapping[str, float]`): lambda, or one for each parameter, by name.

    Returns:
        `torch.Tensor` of shape `(B,)`, not negative.
    """
    return sum(_quadratic_form(capture, factors, damping)[0] for capture in loss_captures(objective, batch, layers))


def _quadratic_form(capture: Capture, factors: KroneckerFactors | None, damping: Damping) -> torch.Tensor:
    if factors is not None:
        return factors.quadratic_form(capture, damping)
    return (capture.as_matrix() if capture.layer.kind == "linear" else capture).squares()
