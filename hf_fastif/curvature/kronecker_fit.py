"""Fit Kronecker factors to the Gauss-Newton matrix of some examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm

from hf_fastif.curvature.captures import Capture, EmbeddingCapture, TableCapture, TiedCapture, capture_layers
from hf_fastif.curvature.directions import NUM_RANDOM, curvature_directions
from hf_fastif.curvature.kronecker import KroneckerBlock, KroneckerFactors
from hf_fastif.curvature.layers import Layer, captured_layers, covered_names, with_tied_tables
from hf_fastif.curvature.products import GaussNewton
from hf_fastif.data import ExampleBatches
from hf_fastif.execution import shard_for_rank
from hf_fastif.model import Batch, Objective


MAX_VECTOR = 2048  # entries of a norm's parameters, whose block is a square matrix of this size


@dataclass(frozen=True)
class KroneckerFit:
    """A fit of Kronecker factors to some training examples.

    Attributes:
        curvature (`GaussNewton`): Products for the model.
        examples (`ExampleBatches`): The training set.
        batches (`list[np.ndarray]`): The rows to fit to, in batches, which are distributed over the processes.
        seed (`int`): The seed of random directions and signs.
        accelerator (`Accelerator`): Sums the contributions of the processes.
        show_progress (`bool`): Whether the main process shows a progress bar.
    """

    curvature: GaussNewton
    examples: ExampleBatches
    batches: list[np.ndarray]
    seed: int
    accelerator: Accelerator
    show_progress: bool = False

    @property
    def count(self) -> int:
        """The number of examples."""
        return sum(map(len, self.batches))

    def bases(self) -> list[KroneckerBlock]:
        """Fit the bases in one pass, with the eigenvalues of Kronecker products (Martens and Grosse, 2015).

        The bases are the eigenvectors of E[x x^T] and E[g g^T] over the tokens t of all examples. The gradient of a
        layer's matrix along a direction of an example's outputs is sum_t g_t x_t^T. Bases fitted to that sum predict
        retraining less well. The eigenvalues of each layer are scaled to its mean squared gradient.
        """
        layers = blocked_layers(self.curvature.objective, self.examples.take(self.batches[0]))
        sums = {layer: _Covariances.of(layer, self.curvature.objective) for layer in layers}
        for _, capture in self._captures(layers, "Index: bases"):
            sums[capture.layer].add(capture)
        sums = {layer: each.reduced(self.accelerator) for layer, each in sums.items()}
        matrices = [matrix for each in sums.values() for matrix in (each.outer, each.inner) if matrix.ndim == 2]
        decomposed = iter(_decompositions(matrices, self.accelerator))
        return [each.block(layer, decomposed, self.count) for layer, each in sums.items()]

    def factors(self, blocks: list[KroneckerBlock]) -> KroneckerFactors:
        """Fit the eigenvalues of each block in a second pass (George et al., 2018), and a diagonal for all else.

        The diagonal is estimated from backward passes in which the examples of a batch get random signs s_i, so that
        E[(sum_i s_i g_i)^2] = sum_i g_i^2.
        """
        by_layer = {block.layer: block for block in blocks}
        eigenvalues = {layer: torch.zeros_like(block.eigenvalues) for layer, block in by_layer.items()}
        for _, capture in self._captures(list(by_layer), "Eigenvalues"):
            _add_squares(eigenvalues[capture.layer], by_layer[capture.layer], capture)
        eigenvalues = {layer: self.accelerator.reduce(e / self.count, "sum") for layer, e in eigenvalues.items()}
        corrected = [replace(block, eigenvalues=eigenvalues[block.layer]) for block in blocks]
        return KroneckerFactors(corrected, self._diagonal(covered_names(list(by_layer))))

    def _captures(self, layers: list[Layer], title: str) -> Iterator[tuple[int, Capture]]:
        """Yield the batch number and capture of each layer, for the batches of this process."""
        local = shard_for_rank(list(enumerate(self.batches)), self.accelerator)
        for number, rows in tqdm(local, desc=title, disable=not self.show_progress, leave=False):
            batch = self.examples.take(rows)
            directions = curvature_directions(self.curvature, batch, rows, self.seed, NUM_RANDOM)
            for capture in capture_layers(self.curvature.objective, batch, layers, directions):
                yield number, capture

    def _diagonal(self, covered: set[str]) -> dict[str, torch.Tensor]:
        objective = self.curvature.objective
        names = [name for name in objective.theta if name not in covered]
        diagonal = {name: objective.space.zeros(*objective.theta[name].shape) for name in names}
        if not names:
            return diagonal
        for number, rows in shard_for_rank(list(enumerate(self.batches)), self.accelerator):
            self._add_diagonal(diagonal, self.examples.take(rows), rows, number)
        return {name: self.accelerator.reduce(values, "sum") for name, values in diagonal.items()}

    def _add_diagonal(self, diagonal: dict[str, torch.Tensor], batch: Batch, rows: np.ndarray, number: int) -> None:
        seeds = self.seed, [self.seed, number, 1]
        for partials in _mixed_gradients(self.curvature, batch, rows, list(diagonal), *seeds):
            for values, piece in zip(diagonal.values(), partials, strict=True):
                values += piece.to(values).square() / self.count


def share_of_curvature(
    curvature: GaussNewton, batch: Batch, rows: Sequence[int], seed: int, names: Sequence[str]
) -> float:
    """Estimate the share of some parameters in the trace of the curvature, from one batch.

    Args:
        curvature (`GaussNewton`): Products for the model.
        batch (`dict`): Some training examples.
        rows (`Sequence[int]`): Their positions in the dataset.
        seed (`int`): The seed of random directions and signs.
        names (`Sequence[str]`): The parameters.
    """
    theta = list(curvature.objective.theta)
    traces = dict.fromkeys(theta, 0.0)
    for partials in _mixed_gradients(curvature, batch, rows, theta, seed, [seed, 0, 2]):
        for name, piece in zip(theta, partials, strict=True):
            traces[name] += float(piece.double().square().sum())
    total = sum(traces.values())
    return sum(traces[name] for name in names) / total if total else 0.0


def _mixed_gradients(
    curvature: GaussNewton, batch: Batch, rows: Sequence[int], names: list[str], seed: int, signs_seed: list[int]
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the gradients of some parameters along each direction, the examples being added with random signs."""
    objective = curvature.objective
    signs = np.random.default_rng(signs_seed).choice([-1.0, 1.0], len(rows))
    with torch.enable_grad():
        logits = objective.logits(objective.theta, batch)
    signs = torch.from_numpy(signs).to(logits).view(-1, *[1] * (logits.ndim - 1))
    parameters = [objective.theta[name] for name in names]
    directions = curvature_directions(curvature, batch, rows, seed, NUM_RANDOM)
    for direction in directions(logits.detach(), objective.labels(batch)):
        yield torch.autograd.grad(
            logits, parameters, direction * signs, retain_graph=True, allow_unused=True, materialize_grads=True
        )


@dataclass
class _Covariances:
    """Sums over the tokens of one layer.

    Attributes:
        outer (`torch.Tensor` of shape `(outputs, outputs)`): Sum of g g^T.
        inner (`torch.Tensor` of shape `(inputs, inputs)`): Sum of x x^T; for embeddings the diagonal of it (inputs,).
        square (`torch.Tensor`): Sum of the squared norms of the gradients of the layer's matrix.
    """

    outer: torch.Tensor
    inner: torch.Tensor
    square: torch.Tensor

    @classmethod
    def of(cls, layer: Layer, objective: Objective) -> _Covariances:
        outputs, inputs = layer.to_matrix(objective.theta).shape
        zeros = objective.space.zeros
        return cls(zeros(outputs, outputs), zeros(*([inputs] if layer.has_table else [inputs] * 2)), zeros())

    def add(self, capture: Capture) -> None:
        if isinstance(capture, TiedCapture):
            self._add_tied(capture)
            return
        if isinstance(capture, EmbeddingCapture):
            self.square += capture.squares().sum()
            ids = capture.ids[(capture.gradients != 0).any(dim=3).any(dim=0)]
            self.inner += torch.bincount(ids, minlength=len(self.inner)).to(self.inner)
        else:
            capture = capture.as_matrix()
            self.square += capture.squares().sum()
            # Without the padding of shorter examples, whose gradient is zero.
            x = capture.inputs[(capture.gradients != 0).any(dim=3).any(dim=0)]
            self.inner += x.T @ x
        g = capture.gradients.flatten(0, 2)
        self.outer += g.T @ g

    def _add_tied(self, capture: TiedCapture) -> None:
        """Add both uses of a table, each place weighted by the squared norm of its other factor."""
        self.square += capture.squares().sum()
        g, ids = capture.lookup.gradients, capture.lookup.ids
        sizes = g.square().sum(dim=(0, 3))
        self.inner += torch.bincount(ids.flatten(), sizes.flatten(), minlength=len(self.inner)).to(self.inner)
        self.outer += g.flatten(0, 2).T @ g.flatten(0, 2)
        x, outputs = capture.output.inputs.flatten(0, 1), capture.output.gradients.square().sum(dim=0).flatten(0, 1)
        self.inner += x.square().sum(dim=1) @ outputs
        self.outer += (x * outputs.sum(dim=1, keepdim=True)).T @ x

    def reduced(self, accelerator: Accelerator) -> _Covariances:
        return _Covariances(*(accelerator.reduce(each, "sum") for each in (self.outer, self.inner, self.square)))

    def block(self, layer: Layer, decomposed, count: int) -> KroneckerBlock:
        outer, output_basis = next(decomposed)
        inner, input_basis = (self.inner, None) if self.inner.ndim == 1 else next(decomposed)
        eigenvalues = torch.outer(outer.clamp_min(0), inner.clamp_min(0))
        total = eigenvalues.sum().clamp_min(torch.finfo(eigenvalues.dtype).tiny)
        return KroneckerBlock(layer, output_basis, input_basis, eigenvalues * (self.square / count / total))


def blocked_layers(objective: Objective, batch: Batch) -> list[Layer]:
    """Return the layers with a separate block: linear ones, embeddings, and those with only a few short vectors."""

    def fits(layer: Layer) -> bool:
        shapes = [objective.theta[name].shape for name in layer.names]
        return len(set(shapes)) == len(shapes[0]) == 1 and len(shapes) * shapes[0][0] <= MAX_VECTOR

    layers = with_tied_tables(captured_layers(objective, batch, embeddings=True, tied=True))
    return [layer for layer in layers if layer.kind != "other" or fits(layer)]


def _decompositions(matrices: list[torch.Tensor], accelerator: Accelerator) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return eigenvalues and eigenvectors of some matrices, distributed over the processes, the largest first."""
    values = [torch.zeros_like(matrix[0]) for matrix in matrices]
    vectors = [torch.zeros_like(matrix) for matrix in matrices]
    for i in shard_for_rank(sorted(range(len(matrices)), key=lambda i: -len(matrices[i])), accelerator):
        decomposed = torch.linalg.eigh(matrices[i])
        values[i].copy_(decomposed[0])
        # Copying gives the memory layout of tensors read from a file, so that both round alike.
        vectors[i].copy_(decomposed[1])
    return [
        (accelerator.reduce(each, "sum"), accelerator.reduce(basis, "sum"))
        for each, basis in zip(values, vectors, strict=True)
    ]


def _add_squares(total: torch.Tensor, block: KroneckerBlock, capture: Capture) -> None:
    """Add the squares of the gradients of single examples in the basis of a block."""
    if isinstance(capture, TableCapture):
        is_tied = isinstance(capture, TiedCapture)  # its outputs give every row of the table a gradient
        rows = torch.arange(total.shape[1], device=total.device) if is_tied else capture.ids.unique()
        rotated = capture.at_rows(rows).rotated(block.output_basis)
        for outputs in rotated.strips():
            total[outputs, rows] += rotated.matrices(outputs).square_().sum(dim=(0, 1))
        return
    rotated = capture.as_matrix().rotated(block.output_basis, block.input_basis)
    for outputs in rotated.strips():
        total[outputs] += rotated.matrices(outputs).square_().sum(dim=(0, 1))
