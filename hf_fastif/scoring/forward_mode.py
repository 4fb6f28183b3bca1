"""Compute influence as a directional derivative: one forward pass with tangents scores a batch of candidates."""

from __future__ import annotations

import torch

from hf_fastif.model import Batch, Objective, derivatives_along


def forward_mode_scores(objective: Objective, batch: Batch, s_test: torch.Tensor) -> torch.Tensor:
    """Compute I(z, z') = - s_test(z') . grad L(z) (equation 1 of the paper) for Q queries z' and B candidates z.

    s_test . grad L(z) is the directional derivative of L(z) along s_test. Forward mode computes it for a whole batch,
    without any gradient, at about twice the cost of a forward pass; all queries share the primal pass.

    Args:
        objective (`Objective`): The per-example loss.
        batch (`dict`): The B candidates.
        s_test (`torch.Tensor` of shape `(Q, P)`): One vector per query.

    Returns:
        `torch.Tensor` of shape `(Q, B)`: Positive is harmful, negative is helpful.
    """
    with torch.no_grad():
        return -derivatives_along(objective, lambda theta: objective.losses(theta, batch), s_test)[1]
