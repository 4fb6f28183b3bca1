"""The curvature of a fixed sample of the training set: its extreme eigenvalues, and residuals against it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from scipy.sparse.linalg import LinearOperator, eigsh

from hf_fastif.batches import ExampleBatches
from hf_fastif.curvature.products import Curvature, Hessian, mean_product


@dataclass(frozen=True)
class Spectrum:
    """The extreme eigenvalues of the curvature; `smallest` is 0 for Gauss-Newton, which has no negative ones."""

    largest: float
    smallest: float = 0.0

    def damping(self, wanted: float | str) -> float:
        """lambda: the wanted value if C + lambda I is then positive definite, or for "auto" one that makes it so.

        "auto" is 1 % of the largest eigenvalue. Between 0.3 % and 3 % of it the scores predict retraining about
        equally well; far above, s_test is hardly more than the plain gradient, and far below it chases directions in
        which the training set says nothing.
        """
        if wanted == "auto":
            wanted = max(0.01 * self.largest, -1.5 * self.smallest)
            if wanted <= 0:
                raise ValueError(
                    "damping='auto': the curvature of the training loss is zero, so there is no scale to take it "
                    "from; "
                    "is the model trained to a loss of zero? Give damping as a number."
                )
        if wanted + self.smallest <= 0:
            raise ValueError(
                f"damping={wanted:.3g}: the Hessian has an eigenvalue of {self.smallest:.3g}, so C + damping I is not "
                f"positive definite; give damping above {-1.1 * self.smallest:.3g}, or curvature='gauss_newton'."
            )
        return wanted


class CurvatureSample:
    """C averaged over a seeded sample of the training set: one fixed, symmetric matrix.

    The batches are dealt to the processes, so every process must call the methods, and all get the same answer.

    Args:
        curvature (`Curvature`): Gauss-Newton or Hessian products.
        examples (`ExampleBatches`): The training set.
        num_examples (`int`): Size of the sample; all of the training set if it is smaller.
        batch_size (`int`): Examples in one pass.
        seed (`int`): Seed of the draw.
        accelerator (`Accelerator`): Adds up what the processes found.
    """

    def __init__(
        self,
        curvature: Curvature,
        examples: ExampleBatches,
        num_examples: int,
        batch_size: int,
        seed: int,
        accelerator: Accelerator,
    ):
        self.curvature = curvature
        self.examples = examples
        self.accelerator = accelerator
        self.seed = seed
        self.num_examples = min(num_examples, len(examples))
        rows = np.random.default_rng(seed).choice(len(examples), self.num_examples, replace=False)
        self.halves = [examples.grouped_by_length(half, batch_size) for half in np.array_split(rows, 2)]

    def product(self, vectors: torch.Tensor) -> torch.Tensor:
        """C V for a stack of vectors (Q, P)."""
        return self._mean_product([*self.halves[0], *self.halves[1]], vectors)

    def residual(self, vectors: torch.Tensor, solutions: torch.Tensor, damping: float) -> torch.Tensor:
        """||v - (C + lambda I) x|| / ||v|| for each of Q right-hand sides; 0 is a perfect solution.

        C is meant to be that of the whole training set. Where only a sample of it is taken, the residual r on the
        sample would hold the sampling error too; the inner product of the residuals on two halves of it is an
        unbiased estimate of ||r||^2, since their errors are independent.
        """
        norm = vectors.norm(dim=1).clamp_min(torch.finfo(vectors.dtype).tiny)
        if self.num_examples == len(self.examples):
            return (vectors - self.product(solutions) - damping * solutions).norm(dim=1) / norm
        one, two = (vectors - self._mean_product(half, solutions) - damping * solutions for half in self.halves)
        return (one * two).sum(dim=1).clamp_min(0).sqrt() / norm

    def _mean_product(self, batches: list[np.ndarray], vectors: torch.Tensor) -> torch.Tensor:
        own = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        count = sum(len(rows) for rows in batches)
        return self.accelerator.reduce(mean_product(self.curvature, self.examples, own, count, vectors), "sum")

    def spectrum(self) -> Spectrum:
        """The largest eigenvalue, and for the Hessian the smallest too, to about 1 % (Lanczos).

        Raises:
            ValueError: If the curvature holds NaN, which a NaN loss of a training example brings.
        """
        parameter = next(iter(self.curvature.objective.theta.values()))
        size = self.curvature.objective.space.size

        def matvec(vector: np.ndarray) -> np.ndarray:
            column = torch.from_numpy(vector.reshape(1, -1)).to(parameter.device, parameter.dtype)
            image = self.product(column)[0]
            if not torch.isfinite(image).all():
                raise ValueError(
                    "train_dataset: the curvature of the training loss holds NaN or infinite numbers; some training "
                    "example has a NaN loss, or the model's weights are broken. trainer.evaluate() finds out which."
                )
            return image.cpu().numpy()

        start = np.random.default_rng(self.seed).standard_normal(size)
        if size < 16:  # Lanczos needs room for its basis
            matrix = np.stack([matvec(column) for column in np.eye(size)])
            eigenvalues = np.linalg.eigvalsh((matrix + matrix.T) / 2)
        else:
            operator = LinearOperator((size, size), matvec=matvec, dtype=start.dtype)
            ends = {"k": 2, "which": "BE"} if isinstance(self.curvature, Hessian) else {"k": 1, "which": "LA"}
            eigenvalues = eigsh(operator, ncv=8, tol=1e-2, v0=start, return_eigenvectors=False, **ends)
        smallest = float(eigenvalues.min()) if isinstance(self.curvature, Hessian) else 0.0
        return Spectrum(largest=float(eigenvalues.max()), smallest=smallest)
