"""EK-FAC: the Gauss-Newton matrix, layer by layer, in a Kronecker-factored eigenbasis (George et al., 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hf_fastif.artifacts import (
    atomic_write,
    differences,
    reading,
)
from hf_fastif.curvature.captures import Capture, EmbeddingCapture
from hf_fastif.curvature.factor_files import fetch_factors
from hf_fastif.curvature.layers import Layer, layers_from_json, layers_to_json
from hf_fastif.model import ParameterSpace


Damping = float | Mapping[str, float]  # one lambda, or one per parameter, by name


@dataclass(frozen=True)
class KroneckerBlock:
    """The curvature of one layer's matrix W (outputs, inputs): W -> U ((U^T W V) * eigenvalues) V^T.

    The matrix of a norm is its weight and bias in one row; its block is exact. The inputs of an embedding are one-hot
    and need no other basis.

    Attributes:
        layer (`Layer`): The layer whose parameters the matrix holds.
        output_basis (`torch.Tensor` of shape `(outputs, outputs)`): U.
        input_basis (`torch.Tensor` of shape `(inputs, inputs)`, *optional*): V; None stands for the identity.
        eigenvalues (`torch.Tensor` of shape `(outputs, inputs)`): The diagonal of the curvature in that basis, exact
            for the examples it was fitted to (the eigenvalue correction).
    """

    layer: Layer
    output_basis: torch.Tensor
    input_basis: torch.Tensor | None
    eigenvalues: torch.Tensor

    def solve(self, matrices: torch.Tensor, damping: float) -> torch.Tensor:
        """Return (C + lambda I)^-1 M for a stack of matrices M (Q, outputs, inputs)."""
        rotated = self.output_basis.T @ matrices
        if self.input_basis is None:
            return self.output_basis @ (rotated / (self.eigenvalues + damping))
        divided = (rotated @ self.input_basis) / (self.eigenvalues + damping)
        return self.output_basis @ divided @ self.input_basis.T


@dataclass(frozen=True)
class KroneckerFactors:
    """EK-FAC of all trainable parameters: a block for each linear layer, embedding and norm, and a diagonal.

    Attributes:
        blocks (`list[KroneckerBlock]`): The linear layers, embeddings and norms.
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
        weights = 1 / (block.eigenvalues + _at(damping, block.layer.names[0]))
        if isinstance(capture, EmbeddingCapture):
            rows = capture.ids.unique()
            return capture.at_rows(rows).rotated(block.output_basis).squares(weights[:, rows])
        return capture.as_matrix().rotated(block.output_basis, block.input_basis).squares(weights)

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
                if getattr(block, part) is not None:
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
            names = set(file.keys())

            def read(name: str) -> torch.Tensor | None:
                return file.get_tensor(name).to(device) if name in names else None

            blocks = [
                KroneckerBlock(layer, *(read(f"{part}/{i}") for part in parts))
                for i, layer in enumerate(layers_from_json(written["layers"]))
            ]
            diagonal = {n.removeprefix("diagonal/"): read(n) for n in sorted(names) if n.startswith("diagonal/")}
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
