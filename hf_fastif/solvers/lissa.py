"""LiSSA (Agarwal et al., 2017), as in section 3.3 of the FastIF paper, with a damping that is one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from transformers.utils import logging

from hf_fastif.curvature import Curvature, CurvatureSample, GaussNewton, mean_product, squared_residual
from hf_fastif.data import ExampleBatches
from hf_fastif.execution import shard_for_rank
from hf_fastif.model import Batch
from hf_fastif.solvers.base import Callback, DivergenceError, Precondition, Solution
from hf_fastif.solvers.repeats import Averaged, Repeated, Run, RunningMoments, Watch, average


logger = logging.get_logger(__name__)

PILOTS = 64  # examples, or four batches of them, that tell how much batches curve
MIN_WATCHED = 16  # examples in a step from which the residual can be told from two halves of them


@dataclass
class Lissa(Repeated):
    """x <- x + M (v - (C_B + lambda I) x) / sigma, J times from x = M v / sigma; the mean of T independent runs.

    C_B is the curvature of a batch of B examples drawn anew at each step, and M is the identity unless there is a
    preconditioner. With h = sigma x this is the paper's recursion h <- v + (I - C) h, but its fixed point is
    (C + lambda I)^-1 v for every sigma and every M: they only set the way. The queries of one call share each batch,
    and the repeats of a process share passes.

    Attributes:
        curvature (`Curvature`): Products with C_B.
        examples (`ExampleBatches`): The training set.
        sample (`CurvatureSample`): A fixed sample of it, for the residual.
        damping (`float`): lambda.
        scale (`float`): sigma; `batch_scale` finds one that converges (with the preconditioner, if there is one).
        depth (`int`): J.
        batch_size (`int`): B.
        repeats (`int`): T; dealt to the processes and averaged.
        seed (`int`): Repeat t draws its batches from the seed (seed, t), whatever process runs it.
        tolerance (`float`, *optional*): Stop when the watched residual has fallen to this; batches must have at least
            `MIN_WATCHED` examples for it to be watched.
        adapts (`bool`, *optional*, defaults to `False`): Whether to begin again with half the step size where it
            proves too long, instead of raising an error.
        precondition (`Callable`, *optional*): M, an approximate inverse of C + lambda I; EK-FAC's.
        accelerator (`Accelerator`): Averages over processes.
        show_progress (`bool`): Whether the main process shows a bar.
        callback (`Callable`, *optional*): Called after each step with its number and the present solutions (Q, P).
    """

    curvature: Curvature
    examples: ExampleBatches
    sample: CurvatureSample
    damping: float
    scale: float
    depth: int
    batch_size: int
    repeats: int
    seed: int
    accelerator: Accelerator
    tolerance: float | None = None
    adapts: bool = False
    precondition: Precondition | None = None
    show_progress: bool = True
    callback: Callback | None = None

    def solve(self, vectors: torch.Tensor) -> Solution:
        """Solves for Q right-hand sides, shape (Q, P).

        Raises:
            DivergenceError: If the step size is too large for some batch and not to be adapted, or C + lambda I is
                not positive definite.
        """
        found = self._attempt(vectors)
        if found is None:  # twice as much whatever diverged, so that any number of processes ends with the same scale
            again = replace(self, scale=2 * self.scale)
            logger.warning(
                f"LiSSA diverged with lissa_scale={self.scale:.3g}, and starts again with {again.scale:.3g}."
            )
            return again.solve(vectors)
        return Solution(
            vectors=found.vectors,
            residual=self.sample.residual(vectors, found.vectors, self.damping),
            std_err=found.std_err,
            damping=self.damping,
            steps=found.steps,
            trace=found.trace,
            scale=self.scale,
        )

    def _attempt(self, vectors: torch.Tensor) -> Averaged | None:
        """The mean of the repeats; None if the steps were too long for some process, and may be shortened."""
        own, tally = shard_for_rank(range(self.repeats), self.accelerator), None
        groups = [own] if own and self.repeats_share() else [[repeat] for repeat in own]
        try:
            tally = RunningMoments.of((run for group in groups for run in self._run(vectors, group)), vectors)
        except DivergenceError as error:
            if not self.adapts or error.scale is None:
                raise
        if self.adapts and self.accelerator.reduce(vectors.new_tensor(float(tally is None)), "sum"):
            return None
        return average(tally, self.repeats, self.accelerator)

    def _run(self, v: torch.Tensor, repeats: list[int]) -> list[Run]:
        """Takes some repeats through the same steps, each with its own batches."""
        randoms = [np.random.default_rng([self.seed, repeat]) for repeat in repeats]
        # ||(C + lambda I)^-1 v|| <= ||v|| / lambda for semi-definite C; the factor leaves room for noise.
        bound = 1000 * v.norm(dim=1) / self.damping
        x = (self._preconditioned(v) / self.scale).repeat(len(repeats), 1, 1)
        watches, steps = [Watch(v, self.tolerance) for _ in repeats], np.zeros(len(repeats), dtype=int)
        going = np.full(len(repeats), True)
        title = "LiSSA" if self.repeats == 1 else f"LiSSA, repeats {', '.join(str(repeat + 1) for repeat in repeats)}"
        for _ in tqdm(range(self.depth), desc=title, disable=not self.show_progress, leave=False):
            draws = np.stack([random.choice(len(self.examples), self.batch_size, replace=False) for random in randoms])
            if self.batch_size >= MIN_WATCHED:
                halves = np.array_split(draws, 2, axis=1)
                one, two = (self._residual(half, v, x) for half in halves)
                residual = (halves[0].shape[1] * one + halves[1].shape[1] * two) / self.batch_size
                share = self.batch_size / len(self.examples)
                for i in np.flatnonzero(going):  # a repeat that is done stays as it is
                    going[i] = not watches[i].add(squared_residual(one[i], two[i], share))
                if not going.any():
                    break
            else:
                residual = self._residual(draws, v, x)
            for i in np.flatnonzero(going):
                x[i].add_(self._preconditioned(residual[i]), alpha=1 / self.scale)
                if not (x[i].norm(dim=1) <= bound).all():
                    raise self._divergence(self.examples.take(draws[i]), x[i])
            steps += going
            if self.callback is not None:
                self.callback(int(steps.max()), x.mean(dim=0))
        return [Run(x[i], int(steps[i]), watches[i].values) for i in range(len(repeats))]

    def repeats_share(self) -> bool:
        """Whether repeats cost less in shared passes: where Jacobian rows are held, each is used by its own repeat."""
        return isinstance(self.curvature, GaussNewton) and self.curvature.holds_rows(self.examples.take([0]))

    def _residual(self, draws: np.ndarray, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """v - (C_B + lambda I) x, (T, Q, P), for T batches of rows (T, B) and solutions (T, Q, P)."""
        rows, (repeats, size) = draws.reshape(-1), draws.shape
        # In passes of similar length: a random batch padded to its longest row is half padding.
        passes = self.examples.places_by_length(rows, max(8, len(rows) // 2))
        if repeats == 1:
            curved = mean_product(self.curvature, self.examples, [rows[places] for places in passes], size, x[0])
        else:
            curved = torch.zeros_like(x).flatten(0, 1)
            for places in passes:
                weights = curved.new_zeros(repeats, x.shape[1], len(places))
                weights[places // size, :, np.arange(len(places))] = 1 / size
                batch = self.examples.take(rows[places])
                curved += self.curvature.weighted_product(batch, x.flatten(0, 1), weights.flatten(0, 1))
        return (v - curved.view_as(x)).sub_(x, alpha=self.damping)

    def _preconditioned(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors if self.precondition is None else self.precondition(vectors)

    def _divergence(self, batch: Batch, x: torch.Tensor) -> DivergenceError:
        worst = int(torch.nan_to_num(x.norm(dim=1), nan=math.inf).argmax())
        start = torch.nan_to_num(x[worst : worst + 1], posinf=1.0, neginf=-1.0)
        eigenvalue = dominant_eigenvalue(self.curvature, batch, start, self.damping, self.precondition)
        if eigenvalue <= 0:
            return DivergenceError(
                f"damping={self.damping:.3g}: the curvature has an eigenvalue near {eigenvalue - self.damping:.3g}, "
                "so that C + damping I is not positive definite; give damping above "
                f"{self.damping - eigenvalue:.3g}, or curvature='gauss_newton'."
            )
        scale = max(1.5 * eigenvalue, 2 * self.scale)
        return DivergenceError(
            f"lissa_scale={self.scale:.3g}: the recursion diverged, since the curvature of single batches reaches "
            f"{eigenvalue:.3g}. lissa_scale={scale:.3g} converges; a larger lissa_batch_size allows a smaller one.",
            scale if math.isfinite(scale) else None,
        )


def batch_scale(
    curvature: Curvature,
    examples: ExampleBatches,
    batch_size: int,
    seed: int,
    damping: float,
    accelerator: Accelerator,
    precondition: Precondition | None = None,
) -> float:
    """The largest eigenvalue of M (C_B + lambda I) over some batches: a scale at which LiSSA converges.

    The mean curvature is not enough: one batch of B examples may curve many times more, and an occasional step that
    is too long undoes hundreds of good ones. A step of 1 / sigma is stable for eigenvalues up to 2 sigma, so this
    value leaves a margin of two for batches not seen. The batches are dealt to the processes.
    """
    random = np.random.default_rng([seed, 1_000_003])  # not a stream that a repeat draws from
    space = curvature.objective.space
    found = space.zeros(max(4, PILOTS // batch_size))  # the smaller the batches, the more they differ
    for i in range(len(found)):
        rows = random.choice(len(examples), batch_size, replace=False)
        start = torch.from_numpy(random.standard_normal((1, space.size)))
        if i % accelerator.num_processes == accelerator.process_index:
            batch = examples.take(rows)
            found[i] = abs(dominant_eigenvalue(curvature, batch, start.to(found), damping, precondition))
    return float(accelerator.reduce(found, "sum").max())


def dominant_eigenvalue(
    curvature: Curvature,
    batch: Batch,
    start: torch.Tensor,
    damping: float,
    precondition: Precondition | None = None,
    iterations: int = 4,
) -> float:
    """The eigenvalue of M (C_B + lambda I) of largest magnitude, by power iteration from `start` (1, P)."""
    vector = start / start.norm()
    eigenvalue = 0.0
    for _ in range(iterations):
        image = curvature.product(batch, vector) + damping * vector
        image = image if precondition is None else precondition(image)
        eigenvalue = float((vector * image).sum())
        norm = image.norm()
        if norm == 0:
            return 0.0
        vector = image / norm
    return eigenvalue
