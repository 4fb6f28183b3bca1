"""Accumulate the second moment of many vectors, and find its leading eigenvectors."""

from __future__ import annotations

import torch
from accelerate import Accelerator


BUFFER = 1024  # rows that are added to the matrix together
STRIP = 2048  # columns of the matrix that are updated at once; the part below the diagonal is mirrored at the end
OVERSAMPLING = 128  # further directions in the randomized method
ITERATIONS = 4  # of it
JITTER = 1e-14  # relative; keeps the Cholesky factor real where the matrix has a lower rank
NOTHING = 1e-6  # of the largest eigenvalue: below it, rounding decides what is an eigenvector


class SecondMoment:
    """The sum of v v^T over many rows v (d,), kept as the rows themselves while these are fewer than d.

    Args:
        size (`int`): d.
        device (`torch.device`): Where to keep it.
    """

    def __init__(self, size: int, device: torch.device):
        self.size = size
        self.device = device
        self.matrix: torch.Tensor | None = None  # its upper triangle
        self._rows: list[torch.Tensor] = []
        self._count = 0

    def add(self, rows: torch.Tensor) -> None:
        """Add rows (n, d)."""
        self._rows.append(rows.float())
        self._count += len(rows)
        if self._count > (self.size if self.matrix is None else BUFFER):
            self._merge()

    def reduced(self, accelerator: Accelerator) -> SecondMoment:
        """Return the sum over the rows of all processes."""
        if accelerator.num_processes == 1:
            return self
        total = SecondMoment(self.size, self.device)
        self._merge()
        total.matrix = accelerator.reduce(self.matrix, "sum")
        return total

    def leading(self, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the largest eigenvalues (r,), in descending order, and their eigenvectors (d, r), r <= count.

        If there are many more than `count`, they are approximated by a randomized method.

        Args:
            count (`int`): The maximum number of eigenvalues.
            seed (`int`): The seed of the randomized method.
        """
        if self.matrix is None:
            rows = torch.cat(self._rows)
            values, vectors = _leading_eigenvectors(rows @ rows.T, count, seed)
            vectors = rows.T @ (vectors / values.clamp_min(torch.finfo(values.dtype).tiny).sqrt())
        else:
            self._merge()
            values, vectors = _leading_eigenvectors(_mirrored(self.matrix), count, seed)
        positive = values > NOTHING * values[:1]
        return values[positive], vectors[:, positive].contiguous()

    def _merge(self) -> None:
        """Move the rows into the matrix."""
        if self.matrix is None:
            self.matrix = torch.zeros(self.size, self.size, device=self.device)
        for rows in torch.cat([*self._rows, torch.zeros(0, self.size, device=self.device)]).split(4 * BUFFER):
            for start in range(0, self.size, STRIP):
                self.matrix[start : start + STRIP, start:] += rows[:, start : start + STRIP].T @ rows[:, start:]
        self._rows, self._count = [], 0


def _mirrored(matrix: torch.Tensor) -> torch.Tensor:
    """Copy the part above the diagonal below it, in place, and return the matrix."""
    for start in range(0, len(matrix), STRIP):
        rows = slice(start, start + STRIP)
        square = matrix[rows, rows]
        square.copy_(square.triu() + square.triu(1).T)
        matrix[start + STRIP :, rows] = matrix[rows, start + STRIP :].T
    return matrix


def _leading_eigenvectors(matrix: torch.Tensor, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest eigenvalues (r,) and eigenvectors (n, r) of a positive semi-definite matrix (n, n)."""
    basis = None
    if len(matrix) > 2 * (count + OVERSAMPLING):
        basis = _leading_subspace(matrix, count + OVERSAMPLING, seed)
        matrix = basis.T @ (matrix @ basis)
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    return values, vectors if basis is None else basis @ vectors


def _leading_subspace(matrix: torch.Tensor, size: int, seed: int) -> torch.Tensor:
    """Return an orthonormal basis (n, size) that nearly contains the leading eigenvectors of a matrix (n, n).

    Random vectors are multiplied with the matrix a few times (Halko et al., 2011). The products are made orthogonal by
    a Cholesky factor in double precision, which is much faster than a QR decomposition, but for the last ones.
    """
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(len(matrix), size, generator=generator).to(matrix)
    for _ in range(ITERATIONS):
        products = (matrix @ basis).double()
        gram = products.T @ products
        gram.diagonal().add_(JITTER * gram.diagonal().mean())
        basis = torch.linalg.solve_triangular(torch.linalg.cholesky(gram).mT, products, upper=True, left=False)
        basis = basis.to(matrix)
    return torch.linalg.qr(matrix @ basis)[0]
