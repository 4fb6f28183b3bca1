"""Sketch gradients: a few of their entries in a Kronecker eigenbasis, and the curvature of these entries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from hf_fastif.curvature.captures import (
    Capture,
    LinearCapture,
    TableCapture,
    TiedRows,
    capture_layers,
    loss_captures,
)
from hf_fastif.curvature.directions import LossAndCurvature
from hf_fastif.curvature.kronecker import KroneckerBlock
from hf_fastif.curvature.layers import Layer
from hf_fastif.curvature.products import GaussNewton
from hf_fastif.errors import InfluenceError
from hf_fastif.model import Batch, Objective, ParameterSpace


PART_TENSORS = ("output_basis", "input_basis", "entries")
NOTHING = 1e-12  # of the largest eigenvalue: below it, an entry has no curvature


@dataclass(frozen=True)
class Part:
    """Selected entries of the gradient G of one layer's matrix (outputs, inputs), in a rotated basis.

    Attributes:
        layer (`Layer`): The layer.
        output_basis (`torch.Tensor` of shape `(outputs, s)`): The basis U of the outputs.
        input_basis (`torch.Tensor` of shape `(inputs, t)`): The basis V of the inputs; for an embedding t rows of its
            table, as integers of shape (t,).
        entries (`torch.Tensor` of shape `(k,)`): Positions of the selected entries in U^T G V (s x t, row by row).
    """

    layer: Layer
    output_basis: torch.Tensor
    input_basis: torch.Tensor
    entries: torch.Tensor

    def to(self, device: torch.device) -> Part:
        """Return a copy on a device."""
        tensors = {name: getattr(self, name).to(device) for name in PART_TENSORS}
        return replace(self, **tensors)

    def of_capture(self, capture: Capture) -> torch.Tensor:
        """Return the entries (r, B, k) of the gradients of single examples."""
        matrices = self._rotated(capture).matrices()
        return matrices.flatten(2)[:, :, self.entries]

    def of_matrices(self, matrices: torch.Tensor) -> torch.Tensor:
        """Return the entries (Q, k) of matrices (Q, outputs, inputs)."""
        if self.layer.has_table:
            rotated = self.output_basis.T @ matrices[..., self.input_basis]
        else:
            rotated = self.output_basis.T @ matrices @ self.input_basis
        return rotated.flatten(1)[:, self.entries]

    def to_matrices(self, entries: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Return matrices (Q, *shape) with the given entries (Q, k) and zeros for all others."""
        outputs, inputs = self.output_basis.shape[1], self.input_basis.shape[-1]
        rotated = entries.new_zeros(len(entries), outputs * inputs)
        rotated[:, self.entries] = entries
        columns = self.output_basis @ rotated.unflatten(1, (outputs, inputs))
        if self.layer.has_table:
            matrices = entries.new_zeros(len(entries), *shape)
            matrices[..., self.input_basis] = columns
            return matrices
        return columns @ self.input_basis.T

    def _rotated(self, capture: Capture) -> LinearCapture | TiedRows:
        if isinstance(capture, TableCapture):
            return capture.at_rows(self.input_basis).rotated(self.output_basis)
        return capture.as_matrix().rotated(self.output_basis, self.input_basis)


@dataclass(frozen=True)
class DirectionEntries:
    """Entries of the gradients of B examples along k directions of their outputs, in half precision.

    Each gradient is divided by its root mean square, by which its coefficients are multiplied.

    Attributes:
        entries (`torch.Tensor` of shape `(B, k, d)`, float16): The entries.
        of_loss (`torch.Tensor` of shape `(B, k)`): Coefficients of the gradient of the loss.
        of_curvature (`torch.Tensor` of shape `(B, r, k)`): Coefficients of the rows of the curvature.
    """

    entries: torch.Tensor
    of_loss: torch.Tensor
    of_curvature: torch.Tensor

    @classmethod
    def of(cls, entries: torch.Tensor, of_loss: torch.Tensor, of_curvature: torch.Tensor) -> DirectionEntries:
        """Round the entries, whatever their size."""
        # The largest entry is taken out first: squares of entries below 1e-19 would be zero.
        largest = entries.abs().amax(dim=2, keepdim=True).clamp_min(torch.finfo(entries.dtype).tiny)
        entries = entries / largest
        sizes = entries.square().mean(dim=2, keepdim=True).sqrt()
        rounded = torch.where(sizes > 0, entries / sizes, 0).half()
        sizes = (sizes * largest)[..., 0]
        return cls(rounded, (of_loss * sizes).float(), (of_curvature * sizes[:, None]).float())

    @staticmethod
    def columns(
        num_entries: int, num_directions: int, num_rows: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of one example in each tensor of `to_tensors`."""
        return {
            "entries": ((num_directions, num_entries), torch.float16),
            "of_loss": ((num_directions,), torch.float32),
            "of_curvature": ((num_rows, num_directions), torch.float32),
        }

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name; `DirectionEntries(**tensors)` is the inverse."""
        return {"entries": self.entries, "of_loss": self.of_loss, "of_curvature": self.of_curvature}

    def losses(self) -> torch.Tensor:
        """Return the entries (B, d) of the gradients of the losses."""
        return (self.of_loss[:, None] @ self.entries.float())[:, 0]

    def curvature_rows(self) -> torch.Tensor:
        """Return the entries (B r, d) of the rows of the curvature.

        The sum of the products of the rows with themselves is the sum of the Gauss-Newton matrices of the examples,
        exactly if they have few outputs, otherwise in expectation.
        """
        return (self.of_curvature @ self.entries.float()).flatten(0, 1)


@dataclass(frozen=True)
class Entries:
    """Selected entries of gradients, layer by layer.

    Attributes:
        parts (`tuple[Part, ...]`): The selected entries of each layer.
    """

    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Number of entries, d."""
        return sum(len(part.entries) for part in self.parts)

    @property
    def layers(self) -> list[Layer]:
        """The layers that have entries."""
        return [part.layer for part in self.parts]

    def to(self, device: torch.device) -> Entries:
        """Return a copy on a device."""
        return Entries(tuple(part.to(device) for part in self.parts))

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of all parts, by layer and name."""
        return {f"{part.layer.module}/{name}": getattr(part, name) for part in self.parts for name in PART_TENSORS}

    @classmethod
    def from_tensors(cls, layers: Sequence[Layer], tensors: Mapping[str, torch.Tensor]) -> Entries:
        """Return the entries whose `to_tensors` was given, which are in some of the layers."""
        chosen = [layer for layer in layers if f"{layer.module}/entries" in tensors]
        return cls(
            tuple(Part(layer, *(tensors[f"{layer.module}/{name}"] for name in PART_TENSORS)) for layer in chosen)
        )

    def of_losses(self, objective: Objective, batch: Batch) -> torch.Tensor:
        """Compute the entries (B, d) of the gradients of the losses, with one forward and one backward pass."""
        return self._joined(loss_captures(objective, batch, self.layers))[0]

    def of_losses_and_norms(self, objective: Objective, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute what `of_losses` does, and the squared norm (B,) of the gradients in the same layers."""
        layer_captures = list(loss_captures(objective, batch, self.layers))
        squares = [
            (each if isinstance(each, TableCapture) else each.as_matrix()).squares()[0] for each in layer_captures
        ]
        return self._joined(iter(layer_captures))[0], torch.stack(squares).sum(dim=0)

    def of_losses_and_curvature(
        self, curvature: GaussNewton, batch: Batch, rows: Sequence[int], seed: int
    ) -> DirectionEntries:
        """Compute the entries of the gradients along directions that yield losses and curvature of a batch.

        Args:
            curvature (`GaussNewton`): Products for the model.
            batch (`dict`): B examples.
            rows (`Sequence[int]`): Their positions in the dataset, which choose random directions.
            seed (`int`): The seed of random directions.
        """
        chosen: list[LossAndCurvature] = []

        def directions(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            chosen.append(LossAndCurvature.of(curvature, batch, rows, seed, logits, labels))
            return chosen[0].directions

        # If examples run one by one, `capture_layers` chooses directions for each; such layers have no entries.
        entries = self._joined(capture_layers(curvature.objective, batch, self.layers, directions)).transpose(0, 1)
        return DirectionEntries.of(entries, chosen[0].of_loss, chosen[0].of_curvature)

    def of_vectors(self, space: ParameterSpace, vectors: torch.Tensor) -> torch.Tensor:
        """Return the entries (Q, d) of vectors (Q, P) over the parameters."""
        partials = space.split(vectors)
        return torch.cat([part.of_matrices(part.layer.to_matrix(partials)) for part in self.parts], dim=1)

    def to_vectors(self, space: ParameterSpace, entries: torch.Tensor) -> torch.Tensor:
        """Return vectors (Q, P) with the given entries (Q, d) and zeros for all others, in the eigenbasis."""
        vectors = space.zeros(len(entries), space.size)
        views = space.split(vectors)
        sizes = [len(part.entries) for part in self.parts]
        for part, values in zip(self.parts, entries.to(vectors).split(sizes, dim=1), strict=True):
            matrices = part.to_matrices(values, part.layer.to_matrix(space.parameters).shape)
            for name, matrix in part.layer.from_matrix(matrices).items():
                views[name].copy_(matrix)
        return vectors

    def _joined(self, layer_captures: Iterator[Capture]) -> torch.Tensor:
        pairs = zip(self.parts, layer_captures, strict=True)
        return torch.cat([part.of_capture(capture) for part, capture in pairs], dim=2)


def leading_entries(blocks: Sequence[KroneckerBlock], size: int) -> Entries:
    """Return the `size` entries with the most curvature in the Kronecker eigenbasis, over all layers with a block.

    In this basis, and to the accuracy of Kronecker factors, gradients of the training set have uncorrelated entries,
    and the curvature of an entry is its mean square.

    Raises:
        InfluenceError: If no layer has a block, or the curvature is zero in all of them.
    """
    if not any((block.eigenvalues > 0).any() for block in blocks):
        raise InfluenceError(
            "index_features='gradient_sketch': the training loss has no curvature in linear layers, embeddings and "
            "norms. Either it hides the model's outputs (a compute_loss method), or no gradients of single examples "
            "can be captured, or the model is trained to a loss of zero; give index_features='pooled', and a solver "
            "other than 'sketch'."
        )
    eigenvalues = torch.cat([block.eigenvalues.flatten() for block in blocks])
    chosen = torch.zeros_like(eigenvalues, dtype=torch.bool)
    chosen[eigenvalues.topk(min(size, len(eigenvalues))).indices] = True
    chosen &= eigenvalues > NOTHING * eigenvalues.max()  # entries that are always zero tell nothing
    masks = chosen.split([block.eigenvalues.numel() for block in blocks])
    pairs = zip(blocks, masks, strict=True)
    return Entries(tuple(_part(block, mask.view_as(block.eigenvalues)) for block, mask in pairs if mask.any()))


def _part(block: KroneckerBlock, mask: torch.Tensor) -> Part:
    outputs, inputs = mask.any(dim=1), mask.any(dim=0)
    entries = mask[outputs][:, inputs].flatten().nonzero()[:, 0]
    input_basis = inputs.nonzero()[:, 0] if block.input_basis is None else block.input_basis[:, inputs]
    return Part(block.layer, block.output_basis[:, outputs], input_basis, entries)


@dataclass(frozen=True)
class Sketch:
    """A basis of few directions for gradients, in which the curvature of the training set is diagonal.

    Directions are combinations of the selected entries. They are eigenvectors of the curvature C_s of these entries,
    which is exact there: no Kronecker approximation.

    Attributes:
        entries ([`Entries`]): The entries that directions combine.
        basis (`torch.Tensor` of shape `(d, r)`): The orthonormal directions, in columns.
        eigenvalues (`torch.Tensor` of shape `(r,)`): The eigenvalues of C_s, in descending order.
    """

    entries: Entries
    basis: torch.Tensor
    eigenvalues: torch.Tensor

    @property
    def size(self) -> int:
        """Number of directions, r."""
        return len(self.eigenvalues)

    def to(self, device: torch.device) -> Sketch:
        """Return a copy on a device."""
        return Sketch(self.entries.to(device), self.basis.to(device), self.eigenvalues.to(device))

    def of_losses(self, objective: Objective, batch: Batch) -> torch.Tensor:
        """Compute the coordinates (B, r) of the gradients of the losses of a batch."""
        return self._projected(self.entries.of_losses(objective, batch))

    def of_losses_and_norms(self, objective: Objective, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute what `of_losses` does, and the squared norm (B,) of the gradients, in and outside of the sketch."""
        entries, squares = self.entries.of_losses_and_norms(objective, batch)
        return self._projected(entries), squares

    def of_vectors(self, space: ParameterSpace, vectors: torch.Tensor) -> torch.Tensor:
        """Return the coordinates (Q, r) of vectors (Q, P) over the parameters."""
        return self._projected(self.entries.of_vectors(space, vectors))

    def to_vectors(self, space: ParameterSpace, coordinates: torch.Tensor) -> torch.Tensor:
        """Return the vectors (Q, P) over the parameters with the given coordinates (Q, r)."""
        return self.entries.to_vectors(space, coordinates @ self.basis.T.to(coordinates))

    def solve(self, coordinates: torch.Tensor, damping: float) -> torch.Tensor:
        """Return (C_s + lambda I)^-1 phi (Q, r) for coordinates phi (Q, r)."""
        return coordinates / (self.eigenvalues + damping)

    def _projected(self, entries: torch.Tensor) -> torch.Tensor:
        return entries @ self.basis.to(entries)  # a model in double precision keeps it


def left_out(inside: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Return the norm (Q,) of the part of gradients that lies outside of a sketch, relative to that of the gradients.

    Args:
        inside (`torch.Tensor` of shape `(Q,)`): The squared norms of their coordinates in the sketch.
        squares (`torch.Tensor` of shape `(Q,)`): The squared norms of the gradients.
    """
    return (1 - inside / squares.clamp_min(torch.finfo(squares.dtype).tiny)).clamp(0, 1).sqrt()
