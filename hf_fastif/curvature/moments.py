"""Accumulate the second moment of many vectors, and find its leading eigenvectors."""

from __future__ import annotations

import torch
from accelerate import Accelerator


BUFFER = 1024  # rows that are added to the matrix together
STRIP = 2048  # columns of the matrix that are updated at once; the part below the diagonal is mirrored at the end
OVERSAMPLING = 128  # further directions in a randomized decomposition
ITERATIONS = 3  # of it
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

        If there are many more than `count`, a randomized decomposition finds them (Halko et al., 2011).

        Args:
            count (`int`): The maximum number of eigenvalues.
            seed (`int`): The seed of the randomized decomposition.
        """
        if self.matrix is None:
            vectors, values = _leading_singular_vectors(torch.cat(self._rows), count, seed)
        else:
            self._merge()
            vectors, values = _leading_eigenvectors(self.matrix.triu() + self.matrix.triu(1).T, count, seed)
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


def _leading_singular_vectors(rows: torch.Tensor, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right singular vectors (d, r) and squared singular values (r,) of rows (n, d)."""
    if min(rows.shape) > 2 * (count + OVERSAMPLING):
        return _randomized(rows, count, seed)
    if len(rows) <= rows.shape[1]:
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        scaled = rows.T @ (vectors / values.clamp_min(torch.finfo(values.dtype).tiny).sqrt())
        return scaled.flip(1)[:, :count], values.flip(0)[:count].clamp_min(0)
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    return vectors.flip(1)[:, :count], values.flip(0)[:count].clamp_min(0)


def _leading_eigenvectors(matrix: torch.Tensor, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eigenvectors (d, r) and eigenvalues (r,) of a positive semi-definite matrix (d, d)."""
    if len(matrix) > 2 * (count + OVERSAMPLING):
        vectors, squares = _randomized(matrix, count, seed)
        return vectors, squares.sqrt()
    values, vectors = torch.linalg.eigh(matrix)
    return vectors.flip(1)[:, :count], values.flip(0)[:count].clamp_min(0)


def _randomized(matrix: torch.Tensor, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right singular vectors (d, r) and squared singular values (r,) of a large matrix (n, d)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _, values, vectors = torch.svd_lowrank(matrix, q=count + OVERSAMPLING, niter=ITERATIONS)
    return vectors[:, :count], values[:count].square()
