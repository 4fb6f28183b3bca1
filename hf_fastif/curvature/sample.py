"""The curvature of a fixed sample of the training set: its eigenvalues, and residuals against it."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from scipy.sparse.linalg import LinearOperator, eigsh

from hf_fastif.curvature.gram import jacobian_gram
from hf_fastif.curvature.products import NOT_FINITE, Curvature, GaussNewton, mean_product
from hf_fastif.curvature.spectrum import Spectrum
from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import shard_for_rank


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
        return self._mean_products([self.batches], vectors)[0]

    def residual(self, vectors: torch.Tensor, solutions: torch.Tensor, damping: float | torch.Tensor) -> torch.Tensor:
        """||v - (C + lambda I) x|| / ||v|| for each of Q right-hand sides; 0 is a perfect solution.

        lambda is a number, or a diagonal (P,).

        C is meant to be that of the whole training set. Where only a sample of it is taken, the residual on the
        sample would hold the sampling error too; see `squared_residual`.
        """
        norm = vectors.norm(dim=1).clamp_min(torch.finfo(vectors.dtype).tiny)
        parts = [self.batches] if self.num_examples == len(self.examples) else self.halves
        left = self._mean_products(parts, solutions)
        for product in left:  # in place: a stack of many queries is large
            product.neg_().add_(vectors).sub_(damping * solutions)
        if len(left) == 1:
            return left[0].norm(dim=1) / norm
        one, two = left
        share = self.num_examples / len(self.examples)
        return squared_residual(one, two, share).clamp_min(0).sqrt() / norm

    @property
    def batches(self) -> list[np.ndarray]:
        """The rows of the sample, in batches."""
        return [*self.halves[0], *self.halves[1]]

    def jacobian_product(self, vectors: torch.Tensor) -> torch.Tensor:
        """G V, (Q, N, r), for the examples in the order of `batches`; the curvature must be Gauss-Newton."""
        first = self.examples.take(self.batches[0][:1])
        rank = self.curvature.objective.output_rank(first)
        found = vectors.new_zeros(len(vectors), self.num_examples, rank)
        for place, rows in self._own_places():
            found[:, place] = self.curvature.jacobian_product(self.examples.take(rows), vectors)
        return self.accelerator.reduce(found, "sum")

    def jacobian_transpose_product(self, coefficients: torch.Tensor) -> torch.Tensor:
        """G^T A, (Q, P), for coefficients (Q, N, r) in the order of `batches`."""
        total = coefficients.new_zeros(len(coefficients), self.curvature.objective.space.size)
        for place, rows in self._own_places():
            batch = self.examples.take(rows)
            total += self.curvature.jacobian_transpose_product(batch, coefficients[:, place])
        return self.accelerator.reduce(total, "sum")

    def _own_places(self) -> list[tuple[slice, np.ndarray]]:
        """This process's batches, and where their examples stand in the sample."""
        ends = np.cumsum([len(rows) for rows in self.batches])
        places = [slice(end - len(rows), end) for end, rows in zip(ends, self.batches, strict=True)]
        return shard_for_rank(list(zip(places, self.batches, strict=True)), self.accelerator)

    def _mean_products(self, parts: list[list[np.ndarray]], vectors: torch.Tensor) -> list[torch.Tensor]:
        """C V for the C of each of several parts of the sample, all batches of which are dealt together."""
        own = shard_for_rank(
            [(number, rows) for number, batches in enumerate(parts) for rows in batches], self.accelerator
        )
        found = []
        for number, batches in enumerate(parts):
            rows, count = [rows for part, rows in own if part == number], sum(map(len, batches))
            found.append(mean_product(self.curvature, self.examples, rows, count, vectors))
        return [self.accelerator.reduce(product, "sum") for product in found]

    def spectrum(self) -> Spectrum:
        """The eigenvalues of the Gauss-Newton matrix; of the Hessian the two ends, to about 1 % (Lanczos).

        The Gauss-Newton matrix of n examples has as many eigenvalues as their Jacobians have rows, and the Gram
        matrix of these gives all of them for the price of a few products. Where examples have outputs at many places,
        such as tokens, the rows are too many, and only the largest eigenvalue is found, to about 1 %.

        Raises:
            ValueError: If the curvature holds NaN, which a NaN loss of a training example brings.
        """
        if isinstance(self.curvature, GaussNewton) and self._has_rows():
            gram = jacobian_gram(self.curvature, self.examples, self.batches, self.accelerator) / self.num_examples
            return Spectrum(torch.linalg.eigvalsh(gram.double()).flip(0).clamp_min(0).cpu().numpy())
        return Spectrum(self._ends(), whole=False)

    def _has_rows(self) -> bool:
        # Asked of a batch that is needed anyway, whose states behind frozen layers are kept.
        return self.curvature.has_rows(self.examples.take(self.batches[0]))

    def _ends(self) -> np.ndarray:
        """The largest and the smallest eigenvalue; the latter is 0 of a Gauss-Newton matrix."""
        space = self.curvature.objective.space
        size = space.size

        def matvec(vector: np.ndarray) -> np.ndarray:
            column = torch.from_numpy(vector.reshape(1, -1)).to(space.device, space.dtype)
            image = self.product(column)[0]
            if not torch.isfinite(image).all():
                raise InfluenceError(NOT_FINITE)
            return image.cpu().numpy()

        if size < 16:  # Lanczos needs room for its basis
            matrix = np.stack([matvec(column) for column in np.eye(size)])
            return np.linalg.eigvalsh((matrix + matrix.T) / 2)[[-1, 0]]
        operator = LinearOperator((size, size), matvec=matvec, dtype=np.float64)
        start = np.random.default_rng(self.seed).standard_normal(size)
        settings = {"ncv": 8, "tol": 1e-2, "v0": start, "return_eigenvectors": False}
        if isinstance(self.curvature, GaussNewton):
            return np.append(eigsh(operator, k=1, which="LA", **settings), 0.0)
        return eigsh(operator, k=2, which="BE", **settings)[::-1]


def squared_residual(one: torch.Tensor, two: torch.Tensor, share: float) -> torch.Tensor:
    """An unbiased estimate (Q,) of ||r||^2 from the residuals (Q, P) on two halves of a sample.

    The errors of the halves would be independent if they were drawn from an infinite training set, and the inner
    product all that is needed. Drawn from a finite one without replacement, their covariance is -s^2 / (N - 1), and
    E ||one - two||^2 = 2 s^2 / (N - 1) * N / h for halves of h examples.

    Args:
        one (`torch.Tensor` of shape `(Q, P)`): The residual on one half.
        two (`torch.Tensor` of shape `(Q, P)`): The residual on the other.
        share (`float`): 2 h / N, the part of the training set that the halves are together.
    """
    return torch.einsum("qp,qp->q", one, two) + share / 4 * (one - two).norm(dim=1).square()
