"""Average independent repeats of a stochastic solver, and estimate its residual while it runs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from accelerate import Accelerator

from hf_fastif.execution import SingleProcess, from_main
from hf_fastif.solvers.base import Callback, Solution
from hf_fastif.solvers.system import DampedSystem


WINDOW = 8  # estimates that the monitored residual is averaged over


class ResidualMonitor:
    """Follow the residuals of Q queries while a solver runs, and tell when they are small enough.

    An estimate of ||r||^2 is the product of the residuals on two halves of a step's examples: their errors are
    independent, so the product is unbiased. It is noisy, so the last few estimates are averaged.

    Args:
        vectors (`torch.Tensor` of shape `(Q, P)`): The right-hand sides.
        tolerance (`float`, *optional*): When to stop.
    """

    def __init__(self, vectors: torch.Tensor, tolerance: float | None):
        self.squared_norms = vectors.square().sum(dim=1).clamp_min(torch.finfo(vectors.dtype).tiny)
        self.tolerance = tolerance
        self.recent: deque[torch.Tensor] = deque(maxlen=WINDOW)
        self.values: list[torch.Tensor] = []

    def add(self, squares: torch.Tensor) -> bool:
        """Add estimates of ||r||^2, shape (Q,); return whether all queries are done."""
        self.recent.append(squares / self.squared_norms)
        self.values.append(torch.stack(list(self.recent)).mean(dim=0).clamp_min(0).sqrt())
        enough = self.tolerance is not None and len(self.recent) == WINDOW
        return enough and bool((self.values[-1] <= self.tolerance).all())


@dataclass(frozen=True)
class Run:
    """One repeat: the solutions (Q, P), the steps it took, and the residuals (steps, Q) it estimated."""

    vectors: torch.Tensor
    steps: int
    trace: list[torch.Tensor]


@dataclass(frozen=True)
class Averaged:
    """The mean over the repeats, its standard error relative to its norm, and the steps and residuals of the first."""

    vectors: torch.Tensor
    std_err: torch.Tensor
    steps: int
    trace: torch.Tensor


@dataclass
class Repeated:
    """Solver whose answer is the mean of independent repeats, which are divided among the processes.

    Repeat t draws its examples from the seed (seed, t), whatever process runs it.

    Attributes:
        system (`DampedSystem`): The system to solve.
        repeats (`int`): T.
        tolerance (`float`, *optional*): Stop when the estimated residuals have fallen to this.
        callback (`Callable`, *optional*): Called after each step with its number and the present solutions (Q, P).
    """

    system: DampedSystem
    repeats: int = field(default=1, kw_only=True)
    tolerance: float | None = field(default=None, kw_only=True)
    callback: Callback | None = field(default=None, kw_only=True)

    @property
    def keeps_all_busy(self) -> bool:
        """Return whether the repeats divide evenly among the processes."""
        return self.repeats % self.system.accelerator.num_processes == 0

    def by_itself(self) -> Self:
        """Return the same solver for one process, which runs all repeats of its share of the queries."""
        return replace(self, system=self.system.for_one_process())

    def solution(self, vectors: torch.Tensor, mean: Averaged, scale: float | None = None) -> Solution:
        """Return the mean of the repeats for right-hand sides (Q, P), with its residual and lambda."""
        residual = self.system.residual(vectors, mean.vectors)
        return Solution(mean.vectors, residual, mean.std_err, self.system.damping, mean.steps, mean.trace, scale)


@dataclass(frozen=True)
class RunningMoments:
    """Sums over the runs of a process: solutions (Q, P) and their squared norms (Q,); steps and trace of the first."""

    total: torch.Tensor
    squares: torch.Tensor
    first: tuple[int, torch.Tensor] | None

    @classmethod
    def of(cls, runs: Iterable[Run], vectors: torch.Tensor) -> RunningMoments:
        """Accumulate runs for right-hand sides (Q, P), one at a time."""
        total, squares = torch.zeros_like(vectors), vectors.new_zeros(len(vectors))
        first = None
        for run in runs:
            total += run.vectors
            squares += run.vectors.square().sum(dim=1)
            if first is None:
                trace = torch.stack(run.trace) if run.trace else vectors.new_zeros(0, len(vectors))
                first = run.steps, trace.cpu()
        return cls(total, squares, first)


def average(tally: RunningMoments, repeats: int, accelerator: Accelerator | SingleProcess) -> Averaged:
    """Average the runs of all processes (section 3.4 of the paper)."""
    mean = accelerator.reduce(tally.total, "sum") / repeats
    squares = accelerator.reduce(tally.squares, "sum")
    steps, trace = from_main(lambda: tally.first, accelerator)  # the main process runs repeat 0
    return Averaged(mean, _relative_standard_error(mean, squares, repeats), steps, trace.to(mean.device))


def _relative_standard_error(mean: torch.Tensor, squares: torch.Tensor, repeats: int) -> torch.Tensor:
    if repeats == 1:
        return torch.full_like(squares, math.nan)
    norm = mean.norm(dim=1)
    variance = (squares / repeats - norm**2).clamp_min(0) * repeats / (repeats - 1)
    return (variance / repeats).sqrt() / norm
