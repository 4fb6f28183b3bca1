"""Divide the influence of an example among its tokens: the loss is a sum over tokens, and so is the score."""

from __future__ import annotations

import torch

from hf_fastif.errors import InfluenceError
from hf_fastif.model import Batch, Objective, TokenHead, derivatives_along


def has_token_losses(objective: Objective) -> bool:
    """Tell whether the loss of an example is a sum over its tokens."""
    return (
        isinstance(objective.head, TokenHead)
        and objective.custom_loss is None
        and objective.custom_compute_loss is None
    )


def check_token_losses(objective: Objective) -> None:
    """Refuse heads with a single label per example, and losses of the user's.

    Raises:
        InfluenceError: If the loss of an example is not a sum over tokens; the message names the heads that work.
    """
    if not has_token_losses(objective):
        raise InfluenceError(
            f"model: {type(objective.model).__name__} with this loss has no loss per token; give a model for causal "
            "language modeling, sequence to sequence or token classification, with the loss of transformers."
        )


def token_scores(objective: Objective, batch: Batch, s_test: torch.Tensor) -> torch.Tensor:
    """Compute - s_test(z') . grad L_t(z) for Q queries z', B candidates z and their labelled tokens t.

    This takes one forward pass with tangents. Over the tokens of an example, the scores add up to the score of the
    example (equation 1 of the paper, see `forward_mode_scores`).

    Args:
        objective (`Objective`): The loss, for a head with one label per token.
        batch (`dict`): The B candidates.
        s_test (`torch.Tensor` of shape `(Q, P)`): One vector per query.

    Returns:
        `torch.Tensor` of shape `(Q, B, T)`, where T is the length of the labels: the influence of predicting each
        token, 0 for tokens without a label.

    Raises:
        InfluenceError: If examples have a single label, or the loss is the user's.
    """
    check_token_losses(objective)
    head = objective.head
    labels, places = objective.labels(batch), head.predicted(batch)

    def losses(theta):
        return objective.losses_of_places(objective.logits(theta, batch), labels)

    with torch.no_grad():
        scores = -derivatives_along(objective, losses, s_test)[1]
    # Places without a label are scattered into one more column, which is dropped.
    by_token = scores.new_zeros(*scores.shape[:2], batch["labels"].shape[1] + 1)
    return by_token.scatter_(2, places.expand_as(scores), scores)[..., :-1]
