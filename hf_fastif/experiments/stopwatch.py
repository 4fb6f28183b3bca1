"""Time the steps of a solver and inspect its intermediate solutions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from hf_fastif.solvers import ConjugateGradient, DivergenceError, DualAscent, Lissa, Solver


class SolverStopwatch:
    """A solver callback that times the steps and inspects the solutions (Q, P) after some of them.

    The time of the inspections is not counted. Consecutive repeats restart at step 1: their solutions after the same
    step are averaged, and their times are summed.

    Args:
        steps (`Sequence[int]`, *optional*): The steps to inspect, by default 1, 2, 4, ...
        runs (`int`): Number of consecutive repeats.
        look (`Callable`): Computes the quantity of interest from the solutions.
    """

    def __init__(self, steps: Sequence[int] | None, runs: int, look: Callable[[torch.Tensor], torch.Tensor]):
        self.steps = steps
        self.runs = runs
        self.look = look
        self.seen: dict[int, torch.Tensor] = {}
        self.seconds: dict[int, float] = {}
        self.last, self.elapsed = 0, 0.0  # of the current repeat
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
    """Run a solver under a stopwatch until it finishes or diverges.

    If the stopwatch has no fixed steps, the final solution is inspected too. A solver without steps finishes at step
    0, and its time includes that of its residual.

    Args:
        solver (`Solver`): The solver, which is changed: it calls the stopwatch, and LiSSA does not adapt its scale.
        gradients (`torch.Tensor` of shape `(Q, P)`): The right-hand sides.
        watch ([`SolverStopwatch`]): The stopwatch.
    """
    start = time.perf_counter()
    if isinstance(solver, Lissa | DualAscent | ConjugateGradient):
        solver.callback = watch
    if isinstance(solver, Lissa):
        solver.adapts = False  # show that a setting diverges
    try:
        solution = solver.solve(gradients)
    except DivergenceError:
        return
    if watch.steps is None and watch.last not in watch.seen:
        watch.seconds[watch.last] = watch.elapsed if watch.last else time.perf_counter() - start
        watch.seen[watch.last] = watch.look(solution.vectors)
