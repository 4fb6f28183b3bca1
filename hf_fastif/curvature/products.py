"""Products of the curvature C of a batch's mean loss with many vectors at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch.func import grad, jvp, vmap

from hf_fastif.batches import ExampleBatches
from hf_fastif.objective import Batch, Objective


class Curvature(Protocol):
    """The matrix C of second-order information of a batch's mean loss, known through its products."""

    objective: Objective

    def product(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        """C V for a stack of vectors (Q, P); all of them share the forward pass of the batch."""
        ...


def mean_product(
    curvature: Curvature, examples: ExampleBatches, batches: Sequence[np.ndarray], count: int, vectors: torch.Tensor
) -> torch.Tensor:
    """The part of C V that some batches of rows contribute, C being the mean over `count` examples."""
    total = torch.zeros_like(vectors)
    for rows in batches:
        total += len(rows) / count * curvature.product(examples.take(rows), vectors)
    return total


class GaussNewton:
    """C = 1/B sum_i J_i^T (d2 L_i / d f_i^2) J_i with J_i = d f_i / d theta, f_i the outputs of example i.

    It is the Hessian without the curvature of the network itself, and positive semi-definite for every loss that is
    convex in the outputs, so that (C + lambda I)^-1 exists for every lambda > 0.
    """

    def __init__(self, objective: Objective):
        self.objective = objective

    def product(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        """C V, shapes (Q, P): one forward pass, and a forward tangent and a backward pass for each vector."""
        objective, labels = self.objective, batch["labels"]

        def tangents_of_outputs(tangent):
            return jvp(lambda theta: objective.logits(theta, batch), (objective.theta,), (tangent,))

        def tangents_of_output_gradients(tangent):
            gradient = grad(lambda z: objective.losses_of_logits(z, labels).mean())
            return jvp(gradient, (logits.detach(),), (tangent,))[1]

        with torch.enable_grad():
            logits, jv = vmap(tangents_of_outputs, out_dims=(None, 0))(objective.space.split(vectors))
            hjv = vmap(tangents_of_output_gradients)(jv.detach())
            pieces = torch.autograd.grad(
                logits, list(objective.theta.values()), hjv, is_grads_batched=True, allow_unused=True
            )
        return objective.space.join(pieces, lead=(len(vectors),))


class Hessian:
    """C = 1/B sum_i d2 L_i / d theta^2, the paper's curvature. It may be indefinite: lambda must outweigh that."""

    def __init__(self, objective: Objective):
        self.objective = objective

    def product(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        """C V, shapes (Q, P): the forward and first backward pass are shared, the second runs once a vector."""
        objective, parameters = self.objective, list(self.objective.theta.values())
        with torch.enable_grad():
            loss = objective.losses(objective.theta, batch).mean()
            gradient = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
            # A gradient that does not depend on theta (an unused or purely linear parameter) has no graph to follow.
            followed = [
                (g, v)
                for g, v in zip(gradient, objective.space.split(vectors).values(), strict=True)
                if g.requires_grad
            ]
            pieces = torch.autograd.grad(
                [g for g, _ in followed],
                parameters,
                [v for _, v in followed],
                is_grads_batched=True,
                allow_unused=True,
            )
        return objective.space.join(pieces, lead=(len(vectors),))
