"""Curvature of a fixed sample of the training set: products, eigenvalues and residuals."""

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
    """The curvature C averaged over a seeded sample of the training set: one fixed, symmetric matrix.

    The batches are distributed over the processes. Every process must call the methods, and all of them get the same
    result.

    Args:
        curvature (`Curvature`): Gauss-Newton or Hessian products.
        examples (`ExampleBatches`): The training set.
        num_examples (`int`): Size of the sample; the whole training set if that is smaller.
        batch_size (`int`): Examples per pass.
        seed (`int`): Seed of the draw.
        accelerator (`Accelerator`): Sums the contributions of the processes.
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
        """Return C V for a stack of vectors (Q, P)."""
        return self._mean_products([self.batches], vectors)[0]

    def residual(self, vectors: torch.Tensor, solutions: torch.Tensor, damping: float | torch.Tensor) -> torch.Tensor:
        """Return ||v - (C + lambda I) x|| / ||v|| (Q,) of each right-hand side v; 0 is an exact solution.

        C stands for the curvature of the whole training set. If the sample is smaller, the residual on it would
        contain the sampling error too; `squared_residual` removes that on average.

        Args:
            vectors (`torch.Tensor` of shape `(Q, P)`): v.
            solutions (`torch.Tensor` of shape `(Q, P)`): x.
            damping (`float` or `torch.Tensor` of shape `(P,)`): lambda, a number or a diagonal.
        """
        norm = vectors.norm(dim=1).clamp_min(torch.finfo(vectors.dtype).tiny)
        parts = [self.batches] if self.num_examples == len(self.examples) else self.halves
        left = self._mean_products(parts, solutions)
        for product in left:  # in place, since a stack of many queries is large
            product.neg_().add_(vectors).sub_(damping * solutions)
        if len(left) == 1:
            return left[0].norm(dim=1) / norm
        one, two = left
        share = self.num_examples / len(self.examples)
        return squared_residual(one, two, share).clamp_min(0).sqrt() / norm

    @property
    def batches(self) -> list[np.ndarray]:
        """Return the rows of the sample, in batches."""
        return [*self.halves[0], *self.halves[1]]

    def jacobian_product(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return G V (Q, N, r) for the examples in the order of `batches`; the curvature must be Gauss-Newton."""
        first = self.examples.take(self.batches[0][:1])
        rank = self.curvature.objective.output_rank(first)
        products = vectors.new_zeros(len(vectors), self.num_examples, rank)
        for place, rows in self._local_places():
            products[:, place] = self.curvature.jacobian_product(self.examples.take(rows), vectors)
        return self.accelerator.reduce(products, "sum")

    def jacobian_transpose_product(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return G^T A (Q, P) for coefficients A (Q, N, r) in the order of `batches`."""
        total = coefficients.new_zeros(len(coefficients), self.curvature.objective.space.size)
        for place, rows in self._local_places():
            batch = self.examples.take(rows)
            total += self.curvature.jacobian_transpose_product(batch, coefficients[:, place])
        return self.accelerator.reduce(total, "sum")

    def _local_places(self) -> list[tuple[slice, np.ndarray]]:
        """Return the batches of this process, each with the positions of its examples in the sample."""
        ends = np.cumsum([len(rows) for rows in self.batches])
        places = [slice(end - len(rows), end) for end, rows in zip(ends, self.batches, strict=True)]
        return shard_for_rank(list(zip(places, self.batches, strict=True)), self.accelerator)

    def _mean_products(self, parts: list[list[np.ndarray]], vectors: torch.Tensor) -> list[torch.Tensor]:
        """Return C V of each of several parts of the sample, distributing the batches of all parts together."""
        local_batches = shard_for_rank(
            [(number, rows) for number, batches in enumerate(parts) for rows in batches], self.accelerator
        )
        products = []
        for number, batches in enumerate(parts):
            rows, count = [rows for part, rows in local_batches if part == number], sum(map(len, batches))
            products.append(mean_product(self.curvature, self.examples, rows, count, vectors))
        return [self.accelerator.reduce(product, "sum") for product in products]

    def spectrum(self) -> Spectrum:
        """Compute the eigenvalues of the Gauss-Newton matrix, or the two extreme eigenvalues of the Hessian.

        The Gauss-Newton matrix of n examples has as many nonzero eigenvalues as their Jacobians have rows. The Gram
        matrix of these rows yields all of them at the cost of a few products. Where each example has outputs at many
        places, such as tokens, there are too many rows. Then, and for the Hessian, Lanczos iterations find the extreme
        eigenvalues to about 1 %.

        Raises:
            InfluenceError: If the curvature contains NaN, which a training example with a NaN loss causes.
        """
        if isinstance(self.curvature, GaussNewton) and self._has_rows():
            gram = jacobian_gram(self.curvature, self.examples, self.batches, self.accelerator) / self.num_examples
            return Spectrum(torch.linalg.eigvalsh(gram.double()).flip(0).clamp_min(0).cpu().numpy())
        return Spectrum(self._ends(), whole=False)

    def _has_rows(self) -> bool:
        # Any batch would do; this one is needed anyway, and the states after its frozen layers are cached.
        return self.curvature.has_rows(self.examples.take(self.batches[0]))

    def _ends(self) -> np.ndarray:
        """Compute the largest and the smallest eigenvalue; the latter is 0 for a Gauss-Newton matrix."""
        space = self.curvature.objective.space
        size = space.size

        def matvec(vector: np.ndarray) -> np.ndarray:
            column = torch.from_numpy(vector.reshape(1, -1)).to(space.device, space.dtype)
            image = self.product(column)[0]
            if not torch.isfinite(image).all():
                raise InfluenceError(NOT_FINITE)
            return image.cpu().numpy()

        if size < 16:  # too small for the Lanczos basis (ncv)
            matrix = np.stack([matvec(column) for column in np.eye(size)])
            return np.linalg.eigvalsh((matrix + matrix.T) / 2)[[-1, 0]]
        operator = LinearOperator((size, size), matvec=matvec, dtype=np.float64)
        start = np.random.default_rng(self.seed).standard_normal(size)
        settings = {"ncv": 8, "tol": 1e-2, "v0": start, "return_eigenvectors": False}
        if isinstance(self.curvature, GaussNewton):
            return np.append(eigsh(operator, k=1, which="LA", **settings), 0.0)
        return eigsh(operator, k=2, which="BE", **settings)[::-1]


def squared_residual(one: torch.Tensor, two: torch.Tensor, share: float) -> torch.Tensor:
    """Return an unbiased estimate (Q,) of ||r||^2 from the residuals on two halves of a sample.

    If the halves were drawn from an infinite training set, their errors would be independent, and the inner product of
    the residuals would suffice. They are drawn from N examples without replacement, so their covariance is -s^2 / (N -
    1), and E ||one - two||^2 = 2 s^2 / (N - 1) * N / h for halves of h examples.

    Args:
        one (`torch.Tensor` of shape `(Q, P)`): The residual on one half.
        two (`torch.Tensor` of shape `(Q, P)`): The residual on the other half.
        share (`float`): 2 h / N, the share of the training set that the halves cover together.
    """
    return torch.einsum("qp,qp->q", one, two) + share / 4 * (one - two).norm(dim=1).square()
