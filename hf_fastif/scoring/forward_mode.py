"""Influence as a directional derivative: one forward pass with tangents scores a whole batch of candidates."""

from __future__ import annotations

import torch

from hf_fastif.model import Batch, Objective, derivatives_along


def forward_mode_scores(objective: Objective, batch: Batch, s_test: torch.Tensor) -> torch.Tensor:
    """I(z, z') = - s_test(z') . grad L(z) (equation 1 of the paper) for Q queries and the B examples z of a batch.

    s_test . grad L(z) is the derivative of L(z) along s_test. Forward mode gives it for all examples of a batch at
    about twice the cost of a forward pass, and no gradient is ever formed; the queries share the primal pass.

    Args:
        objective (`Objective`): The per-example loss.
        batch (`dict`): B examples.
        s_test (`torch.Tensor` of shape `(Q, P)`): One vector for each query.

    Returns:
        `torch.Tensor` of shape `(Q, B)`: Positive is harmful, negative helpful.
    """

    with torch.no_grad():
        return -derivatives_along(objective, lambda theta: objective.losses(theta, batch), s_test)[1]
