"""Products of the curvature C of a batch's mean loss with many vectors at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F

from hf_fastif.curvature.captures import capture_layers
from hf_fastif.curvature.layers import Layer, captured_layers, covered_names
from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.model import IGNORED, Batch, Objective, derivatives_along


ROW_MEMORY = 2 << 30  # bytes for the Jacobian rows of some examples
MIN_ROWS = 8  # examples whose rows must fit into memory for passes over rows to pay off
NOT_FINITE = (
    "train_dataset: the curvature of the training loss contains NaN or infinite numbers; some training example has a "
    "NaN loss, or the model's weights are corrupt. trainer.evaluate() on the training set shows which."
)


class Curvature(Protocol):
    """The curvature matrix C of a batch's mean loss, accessible only through its products."""

    objective: Objective

    def product(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        """Return C V for a stack of vectors (Q, P), which share the forward pass of the batch."""
        ...


def mean_product(
    curvature: Curvature, examples: ExampleBatches, batches: Sequence[np.ndarray], count: int, vectors: torch.Tensor
) -> torch.Tensor:
    """Return the contribution of some batches of rows to C V, C being the mean over `count` examples."""
    total = torch.zeros_like(vectors)
    for rows in batches:
        total.add_(curvature.product(examples.take(rows), vectors), alpha=len(rows) / count)
    return total


class GaussNewton:
    """C = 1/B sum_i J_i^T (d2 L_i / d f_i^2) J_i with J_i = d f_i / d theta, f_i being the outputs of example i.

    It is the Hessian without the curvature of the network itself. For every loss that is convex in the outputs it is
    positive semi-definite, so that (C + lambda I)^-1 exists for every lambda > 0.
    """

    def __init__(self, objective: Objective):
        self.objective = objective
        self._layers: list[Layer] | None = None

    def product(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        """Return C V for vectors (Q, P)."""
        size = len(self.objective.labels(batch))
        return self.weighted_product(batch, vectors, vectors.new_full((1, size), 1 / size))

    def weighted_product(self, batch: Batch, vectors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return sum_i w_qi G_i^T G_i v_q for vectors (Q, P) and weights (Q or 1, B), by the cheaper of two methods.

        With one row of weights per vector, each vector sees a different batch in a pass that all vectors share.
        """
        if self._rows_pay(batch, len(vectors)):
            return self.product_by_rows(batch, vectors, weights)
        return self.product_by_tangents(batch, vectors, weights)

    def product_by_tangents(self, batch: Batch, vectors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the product of `weighted_product` for any model.

        It takes one forward pass, and a forward tangent and a backward pass per vector.
        """
        with torch.enable_grad():
            logits, tangents = self._outputs_along(batch, vectors)
            curved = self.output_product(logits, self.objective.labels(batch), tangents.detach())
            weights = weights.reshape(*weights.shape, *[1] * (logits.ndim - 1))
            return self._pull_back(logits, curved * weights)

    def product_by_rows(self, batch: Batch, vectors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the product of `weighted_product` from the rows of G themselves.

        After one forward and r backward passes, each vector costs a matrix product.
        """
        total = torch.zeros_like(vectors)
        rank = self.objective.output_rank(batch)
        for part, rows in self._rows(batch):
            self.add_combined(total, self.along(rows, vectors) * weights[:, part].repeat(1, rank), rows)
        return total

    def jacobian_product(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        """Return G V (Q, B, r) with G_i = R_i^T J_i; C is the mean of G_i^T G_i over the examples."""
        if self._rows_pay(batch, len(vectors)):
            rank = self.objective.output_rank(batch)
            parts = [self.along(rows, vectors).unflatten(1, (rank, -1)) for _, rows in self._rows(batch)]
            return torch.cat(parts, dim=2).mT
        with torch.no_grad():
            logits, tangents = self._outputs_along(batch, vectors)
            return torch.einsum("rbc,qbc->qbr", self.output_roots(logits, self.objective.labels(batch)), tangents)

    def jacobian_transpose_product(self, batch: Batch, coefficients: torch.Tensor) -> torch.Tensor:
        """Return G^T A (Q, P) for coefficients A (Q, B, r): the sum over the examples of the batch."""
        if self._rows_pay(batch, len(coefficients)):
            total = self.objective.space.zeros(len(coefficients), self.objective.space.size)
            for part, rows in self._rows(batch):
                self.add_combined(total, coefficients[:, part].mT.flatten(1), rows)
            return total
        with torch.enable_grad():
            logits = self.objective.logits(self.objective.theta, batch)
            roots = self.output_roots(logits.detach(), self.objective.labels(batch))
            return self._pull_back(logits, torch.einsum("rbc,qbr->qbc", roots, coefficients))

    def jacobian_rows(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return G, (r, B, size) for each parameter; every trained parameter must be in a captured layer."""
        layer_captures = capture_layers(self.objective, batch, self._captured_layers(batch), self.output_roots)
        partials = [(name, gradients) for capture in layer_captures for name, gradients in capture.rows().items()]
        return {name: gradients.reshape(*gradients.shape[:2], -1) for name, gradients in partials}

    def num_rows_held(self, batch: Batch) -> int:
        """Return how many examples' rows fit into `ROW_MEMORY`; 0 if some parameter has no rows."""
        if len(covered_names(self._captured_layers(batch))) < len(self.objective.theta):
            return 0
        row = self.objective.output_rank(batch) * self.objective.space.size * self.objective.space.dtype.itemsize
        return int(ROW_MEMORY / row)

    def has_rows(self, batch: Batch) -> bool:
        """Tell whether examples have few enough outputs to form the rows of their Jacobians."""
        return math.isfinite(self.objective.output_rank(batch))

    def holds_rows(self, batch: Batch) -> bool:
        """Tell whether the rows of enough examples fit into memory for passes over them to pay off."""
        return self.num_rows_held(batch) >= MIN_ROWS

    def _rows(self, batch: Batch) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
        """Yield G as (r n, size) for each parameter, for n examples at a time."""
        step = self.num_rows_held(batch)
        for start in range(0, len(self.objective.labels(batch)), step):
            part = slice(start, start + step)
            rows = self.jacobian_rows({name: values[part] for name, values in batch.items()})
            yield part, {name: values.flatten(0, 1) for name, values in rows.items()}

    def along(self, rows: dict[str, torch.Tensor], vectors: torch.Tensor) -> torch.Tensor:
        """Return the products (Q, r n) of rows and vectors."""
        space = self.objective.space
        partials = zip(space.parameters, vectors.split(space.sizes, dim=-1), strict=True)
        return sum(piece @ rows[name].T for name, piece in partials)

    def add_combined(self, total: torch.Tensor, coefficients: torch.Tensor, rows: dict[str, torch.Tensor]) -> None:
        """Add combinations of the rows, with coefficients (Q, r n), to vectors (Q, P)."""
        space = self.objective.space
        for name, into in zip(space.parameters, total.split(space.sizes, dim=-1), strict=True):
            into += coefficients @ rows[name]

    def _rows_pay(self, batch: Batch, num_vectors: int) -> bool:
        # r backward passes and r sets of rows compete with a tangent and a backward pass per vector.
        cheaper = self.objective.output_rank(batch) <= 2 * num_vectors
        return cheaper and self.holds_rows(batch) and not any(layer.common for layer in self._captured_layers(batch))

    def _captured_layers(self, batch: Batch) -> list[Layer]:
        if self._layers is None:
            self._layers = captured_layers(self.objective, batch, common=True)
        return self._layers

    def output_product(self, logits: torch.Tensor, labels: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """Return (d2 L_i / d f_i^2) u for directions u (Q, B, ..., C) of the outputs (B, ..., C), exact for any loss.

        Raises:
            InfluenceError: If the result contains NaN or infinite numbers.
        """
        with torch.enable_grad():
            outputs = logits.detach().requires_grad_()
            loss = self.objective.losses_of_logits(outputs, labels).sum()
            (gradient,) = torch.autograd.grad(loss, outputs, create_graph=True)
            (curved,) = torch.autograd.grad(gradient, outputs, directions, is_grads_batched=True)
        return _finite(curved)

    def output_roots(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return R_i (r, B, C) with R_i R_i^T = d2 L_i / d f_i^2; its r columns are directions of the outputs.

        The cross entropy is invariant to a shift of all outputs, so its r is C - 1. R is a smooth function of the
        outputs, unlike eigenvectors, whose signs are arbitrary. This matters because the outputs of an example differ
        by rounding between two passes, and the directions must agree. For a custom loss, R is the symmetric root of
        its convex part.

        Raises:
            InfluenceError: If an output is NaN.
        """
        units = torch.eye(logits.shape[1]).to(logits)
        if self.objective.custom_loss is not None:
            curved = self.output_product(logits, labels, units[:, None].expand(-1, len(logits), -1))
            values, vectors = torch.linalg.eigh(curved.transpose(0, 1))
            roots = (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT
            return roots.transpose(0, 1)
        if self.objective.problem_type(labels) == "single_label_classification":
            return _finite(_softmax_roots(logits) * (labels.view(-1, 1) != IGNORED))
        # Each output has a separate loss, so that the second derivative is diagonal.
        diagonal = self.output_product(logits, labels, torch.ones_like(logits)[None])[0]
        return diagonal.clamp_min(0).sqrt().diag_embed().transpose(0, 1)

    def _outputs_along(self, batch: Batch, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs (B, ..., C), and their derivatives (Q, B, ..., C) along the vectors."""
        objective = self.objective
        return derivatives_along(objective, lambda theta: objective.logits(theta, batch), vectors)

    def _pull_back(self, logits: torch.Tensor, cotangents: torch.Tensor) -> torch.Tensor:
        space = self.objective.space
        cotangents, factors = space.in_range(cotangents)
        partials = torch.autograd.grad(
            logits, list(space.parameters.values()), cotangents, is_grads_batched=True, allow_unused=True
        )
        return space.join(partials, lead=(len(cotangents),)) * factors[:, None]


def _finite(values: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(values).all():
        raise InfluenceError(NOT_FINITE)
    return values


def _softmax_roots(logits: torch.Tensor) -> torch.Tensor:
    """Return the Cholesky factor of diag(p) - p p^T for p = softmax(f), as (C - 1, B, C).

    With s_j = p_j + ... + p_C, column j is sqrt(p_j / (s_j s_j+1)) (0, ..., 0, s_j+1, -p_j+1, ..., -p_C).
    """
    logs = logits.log_softmax(dim=-1)
    tails = logs.flip(-1).logcumsumexp(dim=-1).flip(-1)
    scales = (logs[:, :-1] - tails[:, :-1] - tails[:, 1:]) / 2
    diagonal = (scales + tails[:, 1:]).exp().diag_embed()
    tail_terms = (scales[..., None] + logs[:, None]).exp().triu(1)
    return (F.pad(diagonal, (0, 1)) - tail_terms).transpose(0, 1)


class Hessian:
    """C = 1/B sum_i d2 L_i / d theta^2, the paper's curvature.

    It may be indefinite; lambda must then exceed the magnitude of its most negative eigenvalue.
    """

    def __init__(self, objective: Objective):
        self.objective = objective

    def product(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        """Return C V for vectors (Q, P).

        The forward pass and the first backward pass are shared; the second backward pass runs once per vector.
        """
        objective, parameters = self.objective, list(self.objective.theta.values())
        vectors, factors = objective.space.in_range(vectors)
        with torch.enable_grad():
            loss = objective.losses(objective.theta, batch).mean()
            gradient = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
            # A gradient that does not depend on theta (an unused or purely linear parameter) has no graph to follow.
            followed = [
                (g, v)
                for g, v in zip(gradient, objective.space.tangents(vectors).values(), strict=True)
                if g.requires_grad
            ]
            partials = torch.autograd.grad(
                [g for g, _ in followed],
                parameters,
                [v for _, v in followed],
                is_grads_batched=True,
                allow_unused=True,
            )
        return objective.space.join(partials, lead=(len(vectors),)) * factors[:, None]
