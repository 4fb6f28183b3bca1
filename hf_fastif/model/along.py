"""Derivatives of outputs or losses along directions of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.func import jvp, vmap
from transformers.utils import logging

from hf_fastif.model.objective import Objective


logger = logging.get_logger(__name__)

Function = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
# In torch's messages about operations without a forward mode, and about those that no transform supports.
NO_FORWARD_MODE = ("forward AD", "functorch transform")


def derivatives_along(
    objective: Objective, function: Function, vectors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values of a function of the parameters, and their derivatives (Q, ...) along vectors (Q, P).

    Forward mode evaluates one tangent per vector in a single pass. Models with an operation that has no forward mode,
    such as weight norm, take one backward pass and a second derivative through it per vector.

    Args:
        objective (`Objective`): The model; its `forward_mode` becomes False if the forward mode fails.
        function (`Callable`): From parameters by name to values, such as the losses of a batch.
        vectors (`torch.Tensor` of shape `(Q, P)`): The directions.
    """
    vectors, factors = objective.space.in_range(vectors)
    tangents = objective.space.tangents(vectors)
    values, derivatives = _in_supported_mode(objective, function, tangents)
    return values, derivatives * factors.view(-1, *[1] * values.ndim)


def _in_supported_mode(
    objective: Objective, function: Function, tangents: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    if objective.forward_mode:
        try:
            return _forward(objective, function, tangents)
        except (NotImplementedError, RuntimeError) as error:
            if not any(phrase in str(error) for phrase in NO_FORWARD_MODE):
                raise
            message = str(error).splitlines()[0]
        objective.forward_mode = False
        logger.warning_once(f"Forward mode is not available, so slower backward passes replace it: {message}")
    return _reverse(objective, function, tangents)


def _forward(
    objective: Objective, function: Function, tangents: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    def along(tangent: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return jvp(function, (objective.theta,), (tangent,))

    return vmap(along, out_dims=(None, 0))(tangents)


def _reverse(
    objective: Objective, function: Function, tangents: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Differentiate J^T u, which is linear in u, along v, which yields J v."""
    parameters = list(objective.theta.values())
    with torch.enable_grad():
        values = function(objective.theta)
        u = torch.zeros_like(values, requires_grad=True)
        pulled = torch.autograd.grad(values, parameters, u, create_graph=True, materialize_grads=True)
        followed = [(g, v) for g, v in zip(pulled, tangents.values(), strict=True) if g.requires_grad]
        (derivatives,) = torch.autograd.grad(
            [g for g, _ in followed], u, [v for _, v in followed], retain_graph=True, is_grads_batched=True
        )
    return values, derivatives
