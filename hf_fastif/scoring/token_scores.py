"""Which tokens of an example carry its influence: its loss is a sum over them, and so is its score."""

from __future__ import annotations

import torch

from hf_fastif.errors import InfluenceError
from hf_fastif.model import Batch, Objective, TokenHead, derivatives_along


def has_token_losses(objective: Objective) -> bool:
    """Whether the loss of an example is a sum over its tokens."""
    return (
        isinstance(objective.head, TokenHead)
        and objective.custom_loss is None
        and objective.custom_compute_loss is None
    )


def check_token_losses(objective: Objective) -> None:
    """Refuses examples that have one label each, and losses of the user's.

    Raises:
        ValueError: Saying which heads have losses of single tokens.
    """
    if not has_token_losses(objective):
        raise InfluenceError(
            f"model: {type(objective.model).__name__} with this loss has no losses of single tokens; language models, "
            "sequence to sequence and token classification have, with transformers' own loss."
        )


def token_scores(objective: Objective, batch: Batch, s_test: torch.Tensor) -> torch.Tensor:
    """- s_test(z') . grad L_t(z) for Q queries, the B examples z of a batch, and their labelled tokens t.

    One forward pass with tangents, as for the scores of whole examples (`forward_mode_scores`), which these add up to.

    Args:
        objective (`Objective`): Of a head with a label for each token.
        batch (`dict`): B examples.
        s_test (`torch.Tensor` of shape `(Q, P)`): One vector for each query.

    Returns:
        `torch.Tensor` of shape `(Q, B, T)`, T being the length of the labels: zero where a token has none, else the
        part of the loss of predicting it.

    Raises:
        ValueError: If examples have one label each, or the loss is one of the user's.
    """
    check_token_losses(objective)
    head = objective.head
    labels, places = objective.labels(batch), head.predicted(batch)

    def losses(theta):
        return objective.losses_of_places(objective.logits(theta, batch), labels)

    with torch.no_grad():
        found = -derivatives_along(objective, losses, s_test)[1]
    total = found.new_zeros(*found.shape[:2], batch["labels"].shape[1] + 1)  # the last one for places without a label
    return total.scatter_(2, places.expand_as(found), found)[..., :-1]
