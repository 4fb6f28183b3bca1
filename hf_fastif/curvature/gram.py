"""The Gram matrix of the per-example Jacobians of a training set, computed layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm

from hf_fastif.curvature.captures import Capture, capture_layers
from hf_fastif.curvature.layers import Layer, captured_layers, covered_names
from hf_fastif.curvature.products import GaussNewton
from hf_fastif.data import ExampleBatches
from hf_fastif.execution import shard_for_rank


MEMORY = 3 << 30  # bytes for captures, and as many for per-example gradients
BLOCK = 512  # rows of the Gram matrix computed at once; the part below the diagonal is mirrored


def jacobian_gram(
    curvature: GaussNewton,
    examples: ExampleBatches,
    batches: list[np.ndarray],
    accelerator: Accelerator,
    show_progress: bool = False,
) -> torch.Tensor:
    """Compute G G^T for G of shape (N r, P) with the rows R_i^T J_i (see `GaussNewton`), without ever holding G.

    The Gauss-Newton matrix of the N examples is G^T G / N, so both have the same nonzero eigenvalues. Linear layers
    contribute through their inputs and output gradients, strip by strip. All other parameters contribute through
    backward passes of single examples. The layers are distributed over the processes.

    Args:
        curvature (`GaussNewton`): Products for the model.
        examples (`ExampleBatches`): The training set.
        batches (`list[np.ndarray]`): Its rows, in batches; they determine the order of the result.
        accelerator (`Accelerator`): Sums the contributions of the processes.
        show_progress (`bool`): Whether the main process shows a progress bar.

    Returns:
        `torch.Tensor` of shape `(N r, N r)`: The Gram matrix; the r rows of an example are adjacent.
    """
    objective, first = curvature.objective, examples.take(batches[0])
    layers = captured_layers(objective, first)
    rank = objective.output_rank(first)
    size = rank * sum(map(len, batches))
    gram = objective.space.zeros(size, size)

    local_layers = shard_for_rank(
        sorted(layers, key=lambda layer: -sum(objective.theta[n].numel() for n in layer.names)), accelerator
    )
    with tqdm(total=len(local_layers), desc="Gram matrix", disable=not show_progress, leave=False) as bar:
        for group in _fitting(curvature, examples, local_layers, batches):
            layer_captures = _captured(curvature, examples, group, batches)
            for layer in group:
                for strip in _strips(layer_captures.pop(layer), size):
                    for start in range(0, size, BLOCK):
                        gram[start : start + BLOCK, start:] += strip[start : start + BLOCK] @ strip[start:].T
                bar.update()
    covered = covered_names(layers)
    rest = [name for name in objective.theta if name not in covered]
    if rest and accelerator.is_main_process:
        _add_single_examples(gram, curvature, examples, rest, np.concatenate(batches), rank)
    return accelerator.reduce(gram.triu() + gram.triu(1).T, "sum")


def _fitting(
    curvature: GaussNewton, examples: ExampleBatches, layers: list[Layer], batches: list[np.ndarray]
) -> Iterator[list[Layer]]:
    """Yield groups of layers whose captures fit into memory together, judging by the first (the longest) batch."""
    group: list[Layer] = []
    used = 0
    for capture in capture_layers(curvature.objective, examples.take(batches[0]), layers, curvature.output_roots):
        needed = len(batches) * capture.nbytes
        if group and used + needed > MEMORY:
            yield group
            group, used = [], 0
        group.append(capture.layer)
        used += needed
    if group:
        yield group


def _captured(
    curvature: GaussNewton, examples: ExampleBatches, layers: list[Layer], batches: list[np.ndarray]
) -> dict[Layer, list[Capture]]:
    layer_captures: dict[Layer, list[Capture]] = {layer: [] for layer in layers}
    for rows in batches:
        for capture in capture_layers(curvature.objective, examples.take(rows), layers, curvature.output_roots):
            layer_captures[capture.layer].append(capture)
    return layer_captures


def _strips(layer_captures: list[Capture], size: int) -> Iterator[torch.Tensor]:
    """Yield the gradients (N r, columns) of all examples for a few outputs of a layer at a time."""
    row_bytes = layer_captures[0].num_inputs * 4
    width = max(1, MEMORY // (size * row_bytes))
    for start in range(0, layer_captures[0].num_outputs, width):
        parts = [list(capture.rows(slice(start, start + width)).values()) for capture in layer_captures]
        for columns in zip(*parts, strict=True):  # weight and bias
            yield torch.cat([part.transpose(0, 1).reshape(part.shape[0] * part.shape[1], -1) for part in columns])


def _add_single_examples(
    gram: torch.Tensor,
    curvature: GaussNewton,
    examples: ExampleBatches,
    names: list[str],
    rows: np.ndarray,
    rank: int,
) -> None:
    """Add the contribution of parameters that no capture covers, above the diagonal only."""
    space = curvature.objective.space
    columns = sum(space.parameters[name].numel() for name in names) * space.dtype.itemsize
    step = max(1, MEMORY // (2 * rank * columns))
    for i in range(0, len(rows), step):
        left = _single_gradients(curvature, examples, names, rows[i : i + step])
        for j in range(i, len(rows), step):
            right = left if i == j else _single_gradients(curvature, examples, names, rows[j : j + step])
            gram[i * rank : (i + step) * rank, j * rank : (j + step) * rank] += left @ right.T


def _single_gradients(
    curvature: GaussNewton, examples: ExampleBatches, names: list[str], rows: np.ndarray
) -> torch.Tensor:
    """Return the rows of G (n r, columns) for some parameters, from one backward pass per example."""
    objective = curvature.objective
    parameters = [objective.theta[name] for name in names]
    gradients = []
    for row in rows:
        batch = examples.take([row])
        with torch.enable_grad():
            logits = objective.logits(objective.theta, batch)
            directions = curvature.output_roots(logits.detach(), objective.labels(batch))
            partials = torch.autograd.grad(logits, parameters, directions, is_grads_batched=True, allow_unused=True)
        flat = [
            directions.new_zeros(len(directions), parameter.numel())
            if piece is None
            else piece.reshape(len(piece), -1).to(directions)
            for piece, parameter in zip(partials, parameters, strict=True)
        ]
        gradients.append(torch.cat(flat, dim=1))
    return torch.cat(gradients)
