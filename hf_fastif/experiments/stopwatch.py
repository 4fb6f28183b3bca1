"""Watch a solver at work: the seconds that each step took, and the residual after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from hf_fastif.solvers import ConjugateGradient, DivergenceError, DualAscent, Lissa, Solver


class SolverStopwatch:
    """Looks at the solutions (Q, P) of a solver on its way; looking takes no part in the time.

    Repeats that run one after another count their steps anew; what they have after the same step is averaged, and
    their times are added up.

    Args:
        steps (`Sequence[int]`, *optional*): After which steps; after 1, 2, 4, ... unless given.
        runs (`int`): How many repeats run one after another.
        look (`Callable`): What is to be known of the solutions.
    """

    def __init__(self, steps: Sequence[int] | None, runs: int, look: Callable[[torch.Tensor], torch.Tensor]):
        self.steps = steps
        self.runs = runs
        self.look = look
        self.seen: dict[int, torch.Tensor] = {}
        self.seconds: dict[int, float] = {}
        self.last, self.elapsed = 0, 0.0  # of the present repeat
        self._run, self._totals = 1, {}
        self._start = self._end = time.perf_counter()

    def __call__(self, step: int, solutions: torch.Tensor) -> None:
        if solutions.device.type != "cpu":
            torch.accelerator.synchronize()
        now = time.perf_counter()
        if step <= self.last:
            self._run, self._start = self._run + 1, self._end
        self.last, self.elapsed = step, now - self._start
        if step in self.steps if self.steps is not None else step & (step - 1) == 0:
            self.seconds[step] = self.seconds.get(step, 0.0) + self.elapsed
            total = self._totals.pop(step, 0.0) + solutions / self.runs
            if self._run == self.runs:
                self.seen[step] = self.look(total)
            else:
                self._totals[step] = total
        self._end = time.perf_counter()
        self._start += self._end - now


def watched(solver: Solver, gradients: torch.Tensor, watch: SolverStopwatch) -> None:
    """Runs a solver until it is done or diverges.

    Unless steps were given the end is looked at too. A solver that takes no steps ends after 0, and its time includes
    that of its residual.
    """
    start = time.perf_counter()
    if isinstance(solver, Lissa | DualAscent | ConjugateGradient):
        solver.callback = watch
    if isinstance(solver, Lissa):
        solver.adapts = False  # a setting that diverges is shown as one
    try:
        solution = solver.solve(gradients)
    except DivergenceError:
        return
    if watch.steps is None and watch.last not in watch.seen:
        watch.seconds[watch.last] = watch.elapsed if watch.last else time.perf_counter() - start
        watch.seen[watch.last] = watch.look(solution.vectors)
