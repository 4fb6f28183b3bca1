"""Gradients as features: an inner product with s_test's own is the score itself, as far as the features reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from hf_fastif.curvature import KroneckerFactors, Layer, LeafCapture, LinearCapture, loss_captures
from hf_fastif.errors import InfluenceError
from hf_fastif.model import Batch, Objective


TENSORS = ("output_basis", "input_basis", "entries", "scales")  # of a part
NOTHING = 1e-12  # times the largest curvature


@dataclass(frozen=True)
class Part:
    """Some entries of the gradient of one layer's matrix W (outputs, inputs), in bases of its own.

    Attributes:
        layer (`Layer`): The layer.
        output_basis (`torch.Tensor` of shape `(outputs, s)`): U.
        input_basis (`torch.Tensor` of shape `(inputs, t)`): V.
        entries (`torch.Tensor` of shape `(d,)`): Which of the s x t entries of U^T G V, row by row.
        scales (`torch.Tensor` of shape `(d,)`): What each is divided by in an example, and multiplied by in s_test;
            their typical size, so that every number counts alike where numbers are rounded.
    """

    layer: Layer
    output_basis: torch.Tensor
    input_basis: torch.Tensor
    entries: torch.Tensor
    scales: torch.Tensor

    def to(self, device: torch.device) -> Part:
        """The same on a device."""
        tensors = {name: getattr(self, name).to(device) for name in TENSORS}
        return replace(self, **tensors)

    def of_matrices(self, matrices: torch.Tensor) -> torch.Tensor:
        """The entries (Q, d) of matrices (Q, outputs, inputs)."""
        return (self.output_basis.T @ matrices @ self.input_basis).flatten(1)[:, self.entries] * self.scales

    def of_capture(self, capture: LinearCapture | LeafCapture) -> torch.Tensor:
        """The entries (B, d) of the gradients of single examples."""
        rotated = capture.as_matrix().rotated(self.output_basis, self.input_basis)
        return rotated.matrices()[0].flatten(1)[:, self.entries] / self.scales


@dataclass(frozen=True)
class GradientFeatures:
    """Entries of the gradient of an example's loss, compared by inner product.

    Attributes:
        objective (`Objective`): The loss.
        parts (`list[Part]`): Which entries, layer by layer.
    """

    objective: Objective
    parts: list[Part]

    inner_product = True

    @property
    def size(self) -> int:
        """How many numbers an example has."""
        return sum(len(part.entries) for part in self.parts)

    def of_batch(self, batch: Batch) -> torch.Tensor:
        """The features (B, size) of a batch, from one forward and one backward pass."""
        layers = [part.layer for part in self.parts]
        captures = loss_captures(self.objective, batch, layers)
        return torch.cat([part.of_capture(capture) for part, capture in zip(self.parts, captures, strict=True)], dim=1)

    def of_vectors(self, vectors: torch.Tensor) -> torch.Tensor:
        """The features (Q, size) of s_test (Q, P), so that minus their inner product with an example's is a score."""
        partials = self.objective.space.split(vectors)
        return torch.cat([part.of_matrices(part.layer.to_matrix(partials)) for part in self.parts], dim=1)


def last_layer_parts(objective: Objective, layers: list[Layer], module: str) -> list[Part]:
    """The whole gradient (softmax - onehot) x [h; 1] of the output layer.

    Raises:
        ValueError: If the output layer is not trained.
    """
    own = [layer for layer in layers if layer.module == module]
    if not own:
        raise InfluenceError(
            f"index_features='last_layer_gradient': the output layer {module!r} is not trained, so that no gradient "
            "reaches it; give 'gradient_sketch' or 'pooled'."
        )
    matrix = own[0].to_matrix(objective.theta).to(objective.space.dtype)
    outputs, inputs = (torch.eye(size).to(matrix) for size in matrix.shape)
    return [Part(own[0], outputs, inputs, torch.arange(matrix.numel(), device=matrix.device), matrix.new_ones(()))]


def leading_parts(factors: KroneckerFactors, size: int) -> list[Part]:
    """The `size` entries of largest curvature in the eigenbasis of EK-FAC, over all linear layers and norms.

    There the gradients of the training set have independent entries, as far as Kronecker factors go, and an entry's
    curvature is its mean square; so these are the entries that scores are made of, whatever the damping.
    """
    eigenvalues = torch.cat([block.eigenvalues.flatten() for block in factors.blocks])
    chosen = torch.zeros_like(eigenvalues, dtype=torch.bool)
    chosen[eigenvalues.topk(min(size, len(eigenvalues))).indices] = True
    # What no example that EK-FAC was fitted to has is nothing to compare, and nothing to divide by.
    return list(_leading(factors, chosen & (eigenvalues > NOTHING * eigenvalues.max())))


def _leading(factors: KroneckerFactors, chosen: torch.Tensor) -> Iterator[Part]:
    start = 0
    for block in factors.blocks:
        own = chosen[start : start + block.eigenvalues.numel()].view_as(block.eigenvalues)
        start += own.numel()
        outputs, inputs = own.any(dim=1), own.any(dim=0)
        if outputs.any():
            entries = own[outputs][:, inputs].flatten().nonzero()[:, 0]
            scales = block.eigenvalues[own].sqrt()
            yield Part(block.layer, block.output_basis[:, outputs], block.input_basis[:, inputs], entries, scales)
