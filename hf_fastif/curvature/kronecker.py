"""EK-FAC: the Gauss-Newton matrix, layer by layer, in a Kronecker-factored eigenbasis (George et al., 2018)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from safetensors import safe_open
from safetensors.torch import save_file

from hf_fastif.artifacts import (
    atomic_write,
    differences,
    reading,
)
from hf_fastif.curvature.captures import Capture, LinearCapture, captures
from hf_fastif.curvature.factor_files import fetch_factors
from hf_fastif.curvature.layers import Layer, captured_layers, covered_names, layers_from_json, layers_to_json
from hf_fastif.curvature.products import GaussNewton
from hf_fastif.data import ExampleBatches
from hf_fastif.execution import shard_for_rank
from hf_fastif.model import Batch, Objective, ParameterSpace


Damping = float | Mapping[str, float]  # one lambda, or one per parameter, by name
MAX_VECTOR = 2048  # entries of a norm's parameters, whose block is a square matrix of this size
MAX_DIRECTIONS = 4  # per example; if its outputs have more, they are mixed into this many random ones


@dataclass(frozen=True)
class KroneckerBlock:
    """The curvature of one layer's matrix W (outputs, inputs): W -> U ((U^T W V) * eigenvalues) V^T.

    The matrix of a norm is its weight and bias in one row; its block is exact.

    Attributes:
        layer (`Layer`): The layer whose parameters the matrix holds.
        output_basis (`torch.Tensor` of shape `(outputs, outputs)`): U.
        input_basis (`torch.Tensor` of shape `(inputs, inputs)`): V.
        eigenvalues (`torch.Tensor` of shape `(outputs, inputs)`): The diagonal of the curvature in that basis, exact
            for the examples it was fitted to (the eigenvalue correction).
    """

    layer: Layer
    output_basis: torch.Tensor
    input_basis: torch.Tensor
    eigenvalues: torch.Tensor

    def solve(self, matrices: torch.Tensor, damping: float) -> torch.Tensor:
        """Return (C + lambda I)^-1 M for a stack of matrices M (Q, outputs, inputs)."""
        rotated = self.output_basis.T @ matrices @ self.input_basis
        return self.output_basis @ (rotated / (self.eigenvalues + damping)) @ self.input_basis.T


@dataclass(frozen=True)
class KroneckerFactors:
    """EK-FAC of all trainable parameters: a block for each linear layer and norm, a diagonal for everything else.

    Attributes:
        blocks (`list[KroneckerBlock]`): The linear layers and norms.
        diagonal (`dict[str, torch.Tensor]`): The diagonal of the curvature for the other parameters, by name.
    """

    blocks: list[KroneckerBlock]
    diagonal: dict[str, torch.Tensor]

    def solve(self, space: ParameterSpace, vectors: torch.Tensor, damping: Damping) -> torch.Tensor:
        """Return (C + lambda I)^-1 V for a stack of vectors (Q, P), with this approximation of C."""
        partials = space.split(vectors)
        solved, views = space.empty(len(vectors))
        for name, values in self.diagonal.items():
            torch.div(partials[name], values + _at(damping, name), out=views[name])
        for block in self.blocks:
            matrices = block.solve(block.layer.to_matrix(partials), _at(damping, block.layer.names[0]))
            for name, values in block.layer.from_matrix(matrices).items():
                views[name].copy_(values)
        return solved

    def quadratic_form(self, capture: Capture, damping: Damping) -> torch.Tensor:
        """Return g^T (C + lambda I)^-1 g (r, B) for the gradients g of single examples in one layer."""
        block = next((block for block in self.blocks if block.layer == capture.layer), None)
        if block is None:
            return capture.squares({n: 1 / (self.diagonal[n] + _at(damping, n)) for n in capture.layer.names})
        rotated = capture.as_matrix().rotated(block.output_basis, block.input_basis)
        return rotated.squares(1 / (block.eigenvalues + _at(damping, block.layer.names[0])))

    def mean_eigenvalues(self) -> dict[str, float]:
        """Return the mean eigenvalue of the block that holds each parameter, by parameter name."""
        means = {name: float(values.mean()) for name, values in self.diagonal.items()}
        for block in self.blocks:
            means |= dict.fromkeys(block.layer.names, float(block.eigenvalues.mean()))
        return means

    def save(self, path: Path, manifest: dict[str, str]) -> None:
        """Write one safetensors file; its manifest says what the factors were fitted to."""
        tensors = {f"diagonal/{name}": values for name, values in self.diagonal.items()}
        for i, block in enumerate(self.blocks):
            for part in ("output_basis", "input_basis", "eigenvalues"):
                tensors[f"{part}/{i}"] = getattr(block, part).contiguous()
        layers = layers_to_json(block.layer for block in self.blocks)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda file: save_file(tensors, file, {"layers": layers} | manifest))

    @classmethod
    def load(cls, path: Path, manifest: dict[str, str], device: torch.device) -> KroneckerFactors | None:
        """Read the factors that `save` wrote; None if they were fitted to something else than the manifest says."""
        parts = ("output_basis", "input_basis", "eigenvalues")
        # safe_open rejects "cpu:0", the device of distributed processes, so tensors are moved after reading.
        with reading(path), safe_open(path, framework="pt") as file:
            written = file.metadata()
            if differences(written, manifest):
                return None
            blocks = [
                KroneckerBlock(layer, *(file.get_tensor(f"{part}/{i}").to(device) for part in parts))
                for i, layer in enumerate(layers_from_json(written["layers"]))
            ]
            diagonal = {
                name.removeprefix("diagonal/"): file.get_tensor(name).to(device)
                for name in file.keys()  # noqa: SIM118 (a safetensors file is no mapping)
                if name.startswith("diagonal/")
            }
        return cls(blocks, diagonal)

    @classmethod
    def from_pretrained(
        cls, repo_id_or_path: str | Path, revision: str | None = None, token: str | bool | None = None
    ) -> KroneckerFactors:
        """Download factors that `trainer.push_factors_to_hub` published.

        They are loaded onto the CPU, and not checked against a model; `trainer.load_factors` does both for a trainer.

        Args:
            repo_id_or_path (`str` or `Path`): The repository, or a local folder with the same files.
            revision (`str`, *optional*): A branch, tag or commit.
            token (`str` or `bool`, *optional*): As in `huggingface_hub`.

        Raises:
            NotFoundError: If there is no such repository, or no factors in it.
            InfluenceError: If the file does not match its manifest.

        Example:

        ```python
        from hf_fastif.curvature import KroneckerFactors

        factors = KroneckerFactors.from_pretrained("me/demo-factors")
        print(factors.mean_eigenvalues())
        ```
        """

        path, _ = fetch_factors(repo_id_or_path, revision, token)
        return cls.load(path, {}, torch.device("cpu"))


def _at(damping: Damping, name: str) -> float:
    return damping[name] if isinstance(damping, Mapping) else damping


def fit_kronecker_factors(
    curvature: GaussNewton,
    examples: ExampleBatches,
    batches: list[np.ndarray],
    seed: int,
    accelerator: Accelerator,
    show_progress: bool = False,
) -> KroneckerFactors:
    """Fit EK-FAC to the Gauss-Newton matrix of some examples, in two passes over them.

    The bases are the eigenvectors of E[x x^T] and E[g g^T] over the tokens t of all examples. The gradient of a
    layer's matrix along a direction of an example's outputs is sum_t g_t x_t^T (Martens and Grosse, 2015). Bases
    fitted to that sum predict retraining less well. The diagonal for the other parameters is estimated from backward
    passes in which the examples of a batch get random signs s_i, so that E[(sum_i s_i g_i)^2] = sum_i g_i^2.

    Args:
        curvature (`GaussNewton`): Products for the model.
        examples (`ExampleBatches`): The training set.
        batches (`list[np.ndarray]`): The rows to fit to, in batches, which are distributed over the processes.
        seed (`int`): Seed of the random signs.
        accelerator (`Accelerator`): Sums the contributions of the processes.
        show_progress (`bool`): Whether the main process shows a progress bar.
    """
    objective = curvature.objective
    first = examples.take(batches[0])
    layers = layers_in_blocks(objective, first)
    covered = covered_names(layers)
    diagonal = {name: objective.space.zeros(*p.shape) for name, p in objective.theta.items() if name not in covered}
    count = sum(map(len, batches))
    local_batches = shard_for_rank(list(enumerate(batches)), accelerator)
    eigenvalues = {layer: objective.space.zeros(*layer.to_matrix(objective.theta).shape) for layer in layers}
    inner = {layer: values.new_zeros(values.shape[1], values.shape[1]) for layer, values in eigenvalues.items()}
    outer = {layer: values.new_zeros(values.shape[0], values.shape[0]) for layer, values in eigenvalues.items()}

    few = objective.output_rank(first) <= MAX_DIRECTIONS

    def directions(i: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        if few:
            return curvature.output_roots
        return lambda logits, labels: curvature.mixed_roots(logits, labels, MAX_DIRECTIONS, [seed, i, 0])

    with tqdm(total=2 * len(local_batches), desc="EK-FAC", disable=not show_progress, leave=False) as bar:
        for i, rows in local_batches:
            batch = examples.take(rows)
            for capture in captures(objective, batch, layers, directions(i)):
                _add_covariances(inner[capture.layer], outer[capture.layer], capture.as_matrix())
            if diagonal:
                _add_diagonal(diagonal, curvature, batch, [seed, i], count)
            bar.update()
        matrices = [accelerator.reduce(part[layer], "sum") for layer in layers for part in (outer, inner)]
        eigenvectors = iter(_bases(matrices, accelerator))
        bases = {layer: (next(eigenvectors), next(eigenvectors)) for layer in layers}
        for i, rows in local_batches:
            for capture in captures(objective, examples.take(rows), layers, directions(i)):
                _add_eigenvalues(eigenvalues[capture.layer], bases[capture.layer], capture.as_matrix(), count)
            bar.update()
    return KroneckerFactors(
        [KroneckerBlock(layer, *bases[layer], accelerator.reduce(eigenvalues[layer], "sum")) for layer in layers],
        {name: accelerator.reduce(values, "sum") for name, values in diagonal.items()},
    )


def layers_in_blocks(objective: Objective, batch: Batch) -> list[Layer]:
    """Return the layers with a separate block: linear ones, and those whose parameters are a few short vectors."""

    def fits(layer: Layer) -> bool:
        shapes = [objective.theta[name].shape for name in layer.names]
        return len(set(shapes)) == len(shapes[0]) == 1 and len(shapes) * shapes[0][0] <= MAX_VECTOR

    layers = captured_layers(objective, batch)
    return [layer for layer in layers if layer.kind == "linear" or (layer.kind == "other" and fits(layer))]


def _bases(matrices: list[torch.Tensor], accelerator: Accelerator) -> list[torch.Tensor]:
    """Return the eigenvectors of some matrices, distributing the matrices over the processes, the largest first."""
    eigenvectors = [torch.zeros_like(matrix) for matrix in matrices]
    for i in shard_for_rank(sorted(range(len(matrices)), key=lambda i: -len(matrices[i])), accelerator):
        # Copying gives the memory layout of tensors read from a file, so that both round alike.
        eigenvectors[i].copy_(torch.linalg.eigh(matrices[i])[1])
    return [accelerator.reduce(vectors, "sum") for vectors in eigenvectors]


def _add_covariances(inner: torch.Tensor, outer: torch.Tensor, capture: LinearCapture) -> None:
    """Add x_t x_t^T and g_t g_t^T over the tokens t of all examples, and over directions."""
    seen = (capture.gradients != 0).any(dim=3).any(dim=0)  # without the padding of shorter examples
    x, g = capture.inputs[seen], capture.gradients.flatten(0, 2)
    inner += x.T @ x
    outer += g.T @ g


def _add_eigenvalues(
    total: torch.Tensor, bases: tuple[torch.Tensor, torch.Tensor], capture: LinearCapture, count: int
) -> None:
    """Add the squares of the gradients in the eigenbasis."""
    rotated = capture.rotated(*bases)
    for outputs in rotated.strips():
        total[outputs] += rotated.matrices(outputs).square_().sum(dim=(0, 1)) / count


def _add_diagonal(
    diagonal: dict[str, torch.Tensor],
    curvature: GaussNewton,
    batch: dict[str, torch.Tensor],
    seed: list[int],
    count: int,
) -> None:
    objective = curvature.objective
    with torch.enable_grad():
        logits = objective.logits(objective.theta, batch)
        labels = objective.labels(batch)
        partials = torch.autograd.grad(
            logits,
            [objective.theta[name] for name in diagonal],
            curvature.mixed_roots(logits.detach(), labels, MAX_DIRECTIONS, [*seed, 1]),
            is_grads_batched=True,
            allow_unused=True,
        )
    for values, piece in zip(diagonal.values(), partials, strict=True):
        if piece is not None:
            values += piece.to(values).square().sum(dim=0) / count
