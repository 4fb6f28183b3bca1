"""Choose the directions of a batch's outputs from which gradients are propagated back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hf_fastif.curvature.captures import Directions, loss_gradients_of_outputs
from hf_fastif.curvature.products import NOT_FINITE, GaussNewton
from hf_fastif.errors import InfluenceError
from hf_fastif.model import IGNORED, Batch, Objective


MAX_EXACT = 4  # independent outputs of an example; if there are more, a few random directions stand in for them
NUM_RANDOM = 2


def has_few_outputs(objective: Objective, batch: Batch) -> bool:
    """Tell whether examples have so few outputs that gradients are propagated back from all of them."""
    return objective.output_rank(batch) <= MAX_EXACT


def curvature_directions(
    curvature: GaussNewton, batch: Batch, rows: Sequence[int], seed: int, most: int = MAX_EXACT
) -> Directions:
    """Return directions u_k (r, B, ..., C) of the outputs of a batch with sum_k u_k u_k^T = d2 L / d f^2.

    They are exact if an example has at most `most` independent outputs. Otherwise they are random, and the equation
    holds in expectation.

    Args:
        curvature (`GaussNewton`): Products for the model.
        batch (`dict`): B examples.
        rows (`Sequence[int]`): Their positions in the dataset. Each row has its own random numbers, so that the
            directions of an example do not depend on its batch.
        seed (`int`): The seed of all rows.
        most (`int`, *optional*): The maximum number of exact directions.

    Raises:
        InfluenceError: If there is a single class, so that the loss is always zero.
    """
    if not curvature.objective.output_rank(batch):
        raise InfluenceError(
            "model: its loss chooses among a single class or text, so it is always zero and nothing influences it; "
            "give a model with at least two, or config.problem_type='regression'."
        )
    if curvature.objective.output_rank(batch) <= most:
        return curvature.output_roots
    return lambda logits, labels: random_directions(curvature, logits, labels, NUM_RANDOM, seed, rows)


def random_directions(
    curvature: GaussNewton,
    logits: torch.Tensor,
    labels: torch.Tensor,
    count: int,
    seed: int,
    rows: Sequence[int],
) -> torch.Tensor:
    """Draw directions u_k (count, B, ..., C) of the outputs with E[sum_k u_k u_k^T] = d2 L / d f^2.

    Where an example has one place, they combine its exact directions with random signs. Where it has outputs at many
    places, they are sqrt(w / count) (p - e_y) at each place, w being the weight of the place in the loss, p its
    probabilities and y a label drawn from them: the gradient of the loss for a label that the model draws itself.

    Raises:
        InfluenceError: If the loss is a custom one and an example has several places, or if an output is NaN.
    """
    generators = [np.random.default_rng([seed, int(row)]) for row in rows]
    if not curvature.objective.head.has_token_outputs:
        roots = curvature.output_roots(logits, labels)
        signs = np.stack([each.choice([-1.0, 1.0], (count, len(roots))) for each in generators], axis=2)
        return torch.einsum("krb,rbc->kbc", torch.from_numpy(signs).to(roots), roots) / count**0.5
    if curvature.objective.custom_loss is not None:
        raise InfluenceError(
            "compute_loss_func: EK-FAC needs a square root of the loss's Hessian in the outputs at every token, which "
            "is known only for the losses of transformers' heads; give solver='lissa' or 'cg' without a "
            "preconditioner, and index_features='pooled'."
        )
    weights = curvature.objective.head.weights(labels, logits.dtype)
    p = logits.softmax(dim=-1)
    if not torch.isfinite(p).all():
        raise InfluenceError(NOT_FINITE)
    directions = p.expand(count, *p.shape).clone()
    directions.scatter_add_(
        -1,
        _drawn(p, labels, count, generators)[..., None],
        -torch.ones_like(p[..., :1]).expand(count, *labels.shape, 1),
    )
    return directions * (weights / count).sqrt()[..., None]


def _drawn(
    p: torch.Tensor, labels: torch.Tensor, count: int, generators: Sequence[np.random.Generator]
) -> torch.Tensor:
    """Draw a label (count, B, L) at each place from the probabilities p (B, L, C) there."""
    uniform = np.zeros((count, *labels.shape))
    labelled = (labels != IGNORED).cpu().numpy()
    for number, (generator, places) in enumerate(zip(generators, labelled, strict=True)):
        uniform[:, number, places] = generator.random((int(places.sum()), count)).T
    cumulative = p.double().cumsum(dim=-1)
    wanted = torch.from_numpy(uniform).to(cumulative) * cumulative[..., -1]
    drawn = torch.searchsorted(cumulative, wanted.permute(1, 2, 0).contiguous(), right=True).permute(2, 0, 1)
    return drawn.clamp_max(p.shape[-1] - 1)


@dataclass(frozen=True)
class LossAndCurvature:
    """Directions of a batch that yield the gradients of its losses and the rows of its curvature in one pass.

    The gradients along fixed directions of the outputs are linear in the directions. If an example has few outputs,
    gradients are therefore propagated back from an orthonormal basis of them, and combined afterwards. Otherwise the
    first direction is the gradient of the loss, and the others are random.

    Attributes:
        directions (`torch.Tensor` of shape `(k, B, ..., C)`): The directions.
        of_loss (`torch.Tensor` of shape `(B, k)`): The coefficients that combine them to the gradient of the loss.
        of_curvature (`torch.Tensor` of shape `(B, r, k)`): Those that combine them to r directions u with sum u u^T =
            d2 L / d f^2, exactly or in expectation.
    """

    directions: torch.Tensor
    of_loss: torch.Tensor
    of_curvature: torch.Tensor

    @classmethod
    def of(
        cls,
        curvature: GaussNewton,
        batch: Batch,
        rows: Sequence[int],
        seed: int,
        logits: torch.Tensor,
        labels: torch.Tensor,
    ) -> LossAndCurvature:
        """Choose the directions for the outputs of a batch; see `curvature_directions` for the arguments."""
        objective = curvature.objective
        gradients = loss_gradients_of_outputs(objective, logits, labels)
        if not has_few_outputs(objective, batch):
            drawn = random_directions(curvature, logits, labels, NUM_RANDOM, seed, rows)
            unit = torch.eye(1 + NUM_RANDOM).to(logits).expand(len(logits), -1, -1)
            return cls(torch.cat([gradients[None], drawn]), unit[:, 0], unit[:, 1:])
        basis = _basis_of_outputs(objective, labels, logits.shape[1]).to(logits)
        roots = curvature.output_roots(logits, labels)
        return cls(basis[:, None].expand(-1, len(logits), -1), gradients @ basis.T, (roots @ basis.T).transpose(0, 1))

    @staticmethod
    def counts(objective: Objective, batch: Batch) -> tuple[int, int]:
        """Return the numbers of directions, k and r."""
        if has_few_outputs(objective, batch):
            rank = int(objective.output_rank(batch))
            return rank, rank
        return 1 + NUM_RANDOM, NUM_RANDOM


def _basis_of_outputs(objective: Objective, labels: torch.Tensor, count: int) -> torch.Tensor:
    """Return an orthonormal basis (k, C) of the directions of C outputs on which the losses depend.

    The cross entropy does not change if all outputs are shifted alike, so that C - 1 directions suffice: those of
    Helmert.
    """
    one_label = objective.problem_type(labels) == "single_label_classification"
    if objective.custom_loss is not None or objective.measure is not None or not one_label:
        return torch.eye(count, dtype=torch.float64)
    basis = torch.zeros(count - 1, count, dtype=torch.float64)
    for k in range(1, count):
        basis[k - 1, :k], basis[k - 1, k] = 1.0, -float(k)
        basis[k - 1] /= (k * (k + 1)) ** 0.5
    return basis
