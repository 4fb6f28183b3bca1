"""Compute influence from per-example gradients, layer by layer; cheaper than forward mode from two queries on."""

from __future__ import annotations

import torch

from hf_fastif.curvature import Capture, Damping, KroneckerFactors, Layer, loss_captures
from hf_fastif.model import Batch, Objective


def gradient_scores(objective: Objective, batch: Batch, s_test: torch.Tensor, layers: list[Layer]) -> torch.Tensor:
    """Compute I(z, z') = - s_test(z') . grad L(z) (equation 1 of the paper) for Q queries z' and B candidates z.

    One forward and one backward pass capture the inputs and output gradients of each layer. Per-example gradients are
    formed from them, one layer at a time, and each query costs a matrix product.

    Args:
        objective (`Objective`): The per-example loss.
        batch (`dict`): The B candidates.
        s_test (`torch.Tensor` of shape `(Q, P)`): One vector per query.
        layers (`list[Layer]`): Layers that together hold all trained parameters (see `covering_layers`).

    Returns:
        `torch.Tensor` of shape `(Q, B)`: Positive is harmful, negative is helpful.
    """
    vectors = objective.space.split(s_test)
    return -sum(capture.along(vectors)[:, 0] for capture in loss_captures(objective, batch, layers))


def self_influence(
    objective: Objective, batch: Batch, layers: list[Layer], factors: KroneckerFactors | None, damping: Damping
) -> torch.Tensor:
    """Compute grad L(z)^T (C + lambda I)^-1 grad L(z) for the B examples z of a batch, with EK-FAC's C.

    Args:
        objective (`Objective`): The per-example loss.
        batch (`dict`): The B examples.
        layers (`list[Layer]`): Layers that together hold all trained parameters (see `covering_layers`).
        factors (`KroneckerFactors`, *optional*): The factors of C. Without them, the result is ||grad L(z)||^2.
        damping (`float` or `Mapping[str, float]`): lambda, or one value per parameter name.

    Returns:
        `torch.Tensor` of shape `(B,)`: Nonnegative values.
    """
    return sum(_quadratic_form(capture, factors, damping)[0] for capture in loss_captures(objective, batch, layers))


def _quadratic_form(capture: Capture, factors: KroneckerFactors | None, damping: Damping) -> torch.Tensor:
    if factors is not None:
        return factors.quadratic_form(capture, damping)
    return (capture.as_matrix() if capture.layer.kind == "linear" else capture).squares()
