"""Use gradient entries as features: their inner product with the features of s_test approximates the score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from hf_fastif.curvature import KroneckerFactors, Layer, LeafCapture, LinearCapture, loss_captures
from hf_fastif.errors import InfluenceError
from hf_fastif.model import Batch, Objective


TENSORS = ("output_basis", "input_basis", "entries", "scales")  # attributes of a part that are written to its file
NOTHING = 1e-12  # of the largest eigenvalue: below it, an entry has no curvature


@dataclass(frozen=True)
class Part:
    """Selected entries of the gradient G of one layer's weight matrix (outputs, inputs), in a rotated basis.

    Attributes:
        layer (`Layer`): The layer.
        output_basis (`torch.Tensor` of shape `(outputs, s)`): The basis U of the outputs.
        input_basis (`torch.Tensor` of shape `(inputs, t)`): The basis V of the inputs.
        entries (`torch.Tensor` of shape `(d,)`): Positions of the selected entries in U^T G V (s x t, row by row).
        scales (`torch.Tensor` of shape `(d,)`): The typical size of each entry. Entries of examples are divided by it
            and those of s_test multiplied, so that an index that rounds its vectors rounds all entries alike.
    """

    layer: Layer
    output_basis: torch.Tensor
    input_basis: torch.Tensor
    entries: torch.Tensor
    scales: torch.Tensor

    def to(self, device: torch.device) -> Part:
        """Return a copy on a device."""
        tensors = {name: getattr(self, name).to(device) for name in TENSORS}
        return replace(self, **tensors)

    def of_matrices(self, matrices: torch.Tensor) -> torch.Tensor:
        """Return the scaled entries (Q, d) of the matrices (Q, outputs, inputs) of s_test."""
        return (self.output_basis.T @ matrices @ self.input_basis).flatten(1)[:, self.entries] * self.scales

    def of_capture(self, capture: LinearCapture | LeafCapture) -> torch.Tensor:
        """Return the scaled entries (B, d) of the gradients of single examples."""
        rotated = capture.as_matrix().rotated(self.output_basis, self.input_basis)
        return rotated.matrices()[0].flatten(1)[:, self.entries] / self.scales


@dataclass(frozen=True)
class GradientFeatures:
    """Extractor of entries of the gradient of an example's loss, which are compared by inner product.

    Attributes:
        objective (`Objective`): The loss.
        parts (`list[Part]`): The selected entries, layer by layer.
    """

    objective: Objective
    parts: list[Part]

    inner_product = True

    @property
    def size(self) -> int:
        """Number of features per example."""
        return sum(len(part.entries) for part in self.parts)

    def of_batch(self, batch: Batch) -> torch.Tensor:
        """Compute the features (B, size) of a batch, with one forward and one backward pass."""
        layers = [part.layer for part in self.parts]
        captures = loss_captures(self.objective, batch, layers)
        return torch.cat([part.of_capture(capture) for part, capture in zip(self.parts, captures, strict=True)], dim=1)

    def of_vectors(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the features (Q, size) of s_test (Q, P).

        Their negative inner product with the features of an example is its score, restricted to the selected entries.
        """
        partials = self.objective.space.split(vectors)
        return torch.cat([part.of_matrices(part.layer.to_matrix(partials)) for part in self.parts], dim=1)


def last_layer_parts(objective: Objective, layers: list[Layer], module: str) -> list[Part]:
    """Return all entries of the gradient of the output layer, which is (softmax - onehot) x [h; 1] for cross entropy.

    Args:
        objective (`Objective`): The loss.
        layers (`list[Layer]`): The trained layers.
        module (`str`): The name of the output layer.

    Raises:
        InfluenceError: If the output layer is not trained.
    """
    layer = next((layer for layer in layers if layer.module == module), None)
    if layer is None:
        raise InfluenceError(
            f"index_features='last_layer_gradient': the output layer {module!r} is not trained, so it has no "
            "gradient; give 'gradient_sketch' or 'pooled'."
        )
    matrix = layer.to_matrix(objective.theta).to(objective.space.dtype)
    outputs, inputs = (torch.eye(size).to(matrix) for size in matrix.shape)
    return [Part(layer, outputs, inputs, torch.arange(matrix.numel(), device=matrix.device), matrix.new_ones(()))]


def leading_parts(factors: KroneckerFactors, size: int) -> list[Part]:
    """Return the `size` entries with the largest curvature in EK-FAC's eigenbasis, over all linear layers and norms.

    In this basis, and to the accuracy of Kronecker factors, gradients of the training set have uncorrelated entries,
    and the curvature of an entry is its mean square. The chosen entries therefore dominate the scores for any damping.
    """
    eigenvalues = torch.cat([block.eigenvalues.flatten() for block in factors.blocks])
    chosen = torch.zeros_like(eigenvalues, dtype=torch.bool)
    chosen[eigenvalues.topk(min(size, len(eigenvalues))).indices] = True
    # Entries that are zero in every example that EK-FAC was fitted to tell nothing, and their scale would be zero.
    return list(_leading(factors, chosen & (eigenvalues > NOTHING * eigenvalues.max())))


def _leading(factors: KroneckerFactors, chosen: torch.Tensor) -> Iterator[Part]:
    start = 0
    for block in factors.blocks:
        mask = chosen[start : start + block.eigenvalues.numel()].view_as(block.eigenvalues)
        start += mask.numel()
        outputs, inputs = mask.any(dim=1), mask.any(dim=0)
        if outputs.any():
            entries = mask[outputs][:, inputs].flatten().nonzero()[:, 0]
            scales = block.eigenvalues[mask].sqrt()
            yield Part(block.layer, block.output_basis[:, outputs], block.input_basis[:, inputs], entries, scales)
