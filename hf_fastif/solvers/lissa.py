"""Solve by LiSSA (Agarwal et al., 2017), as in section 3.3 of the FastIF paper, with an explicit damping lambda."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from transformers.utils import logging

from hf_fastif.curvature import Curvature, mean_product, squared_residual
from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import shard_for_rank
from hf_fastif.model import Batch
from hf_fastif.settings import AutoFloat, SolverSettings, check_at_least_one, positive_or_auto, setting
from hf_fastif.solvers.base import DivergenceError, Precondition, Solution
from hf_fastif.solvers.registry import register
from hf_fastif.solvers.repeats import Averaged, Repeated, ResidualMonitor, Run, RunningMoments, average
from hf_fastif.solvers.setup import SolverSetup
from hf_fastif.solvers.system import rows_fit


logger = logging.get_logger(__name__)

PILOTS = 64  # examples (at least four batches) whose eigenvalues determine the step size
MIN_MONITORED = 16  # examples per step from which on two halves give an estimate of the residual


@dataclass(frozen=True)
class LissaSettings:
    """Settings of LiSSA."""

    depth: int = setting(
        200, "Number J of steps of LiSSA's recursion. The authors took 1000 to 2000 with a batch size of 1."
    )
    batch_size: int = setting(32, "Number B of training examples that LiSSA draws for each step.")
    scale: AutoFloat = setting(
        "auto",
        "Inverse step size of LiSSA. It sets how fast the recursion converges and never what it converges to. 'auto' "
        "takes the largest eigenvalue of some batches, and restarts with twice that value if it is too small.",
    )

    def __post_init__(self):
        check_at_least_one(lissa_depth=self.depth, lissa_batch_size=self.batch_size)
        object.__setattr__(self, "scale", positive_or_auto("lissa_scale", self.scale))


@dataclass
class Lissa(Repeated):
    """Step x <- x + M (v - (C_B + lambda I) x) / sigma, J times from x = M v / sigma; the mean of T independent runs.

    C_B is the curvature of B examples drawn at random for each step, and M is the identity unless there is a
    preconditioner. With h = sigma x this is the paper's recursion h <- v + (I - C) h, but its fixed point is
    (C + lambda I)^-1 v for every sigma and every M, which affect only the path to it. The queries of one call share
    each batch, and the repeats of a process share passes.

    Attributes:
        settings (`LissaSettings`): J, B, and sigma as a number; `batch_scale` computes one that converges (with the
            preconditioner, if there is one).
        adapts (`bool`, *optional*, defaults to `False`): Whether to restart with half the step size if it proves too
            large, instead of raising an error.
        precondition (`Callable`, *optional*): M, an approximate inverse of C + lambda I, such as EK-FAC's.

    The tolerance has an effect for batches of at least `MIN_MONITORED` examples.
    """

    settings: LissaSettings
    adapts: bool = False
    precondition: Precondition | None = None

    def solve(self, vectors: torch.Tensor) -> Solution:
        """Solve for Q right-hand sides, shape (Q, P).

        Raises:
            DivergenceError: If the step size is too large for some batch and `adapts` is False, or C + lambda I is not
                positive definite.
        """
        mean = self._attempt(vectors)
        if mean is None:  # double it on every process, so that the scale does not depend on the number of processes
            larger = replace(self.settings, scale=2 * self.settings.scale)
            logger.warning(
                f"LiSSA diverged with lissa_scale={self.settings.scale:.3g}, and restarts with {larger.scale:.3g}."
            )
            return replace(self, settings=larger).solve(vectors)
        return self.solution(vectors, mean, self.settings.scale)

    def _attempt(self, vectors: torch.Tensor) -> Averaged | None:
        """Return the mean of the repeats, or None if the step size was too large on some process and may be halved."""
        accelerator = self.system.accelerator
        local, tally = shard_for_rank(range(self.repeats), accelerator), None
        groups = [local] if local and self.repeats_share() else [[repeat] for repeat in local]
        try:
            tally = RunningMoments.of((run for group in groups for run in self._run(vectors, group)), vectors)
        except DivergenceError as error:
            if not self.adapts or error.scale is None:
                raise
        if self.adapts and accelerator.reduce(vectors.new_tensor(float(tally is None)), "sum"):
            return None
        return average(tally, self.repeats, accelerator)

    def _run(self, v: torch.Tensor, repeats: list[int]) -> list[Run]:
        """Run some repeats in lockstep, each with independent batches."""
        examples, size, scale = self.system.examples, self.settings.batch_size, self.settings.scale
        randoms = [np.random.default_rng([self.system.seed, repeat]) for repeat in repeats]
        # ||(C + lambda I)^-1 v|| <= ||v|| / lambda for semi-definite C; the factor leaves room for noise.
        bound = 1000 * v.norm(dim=1) / self.system.damping
        x = (self._preconditioned(v) / scale).repeat(len(repeats), 1, 1)
        monitors, steps = [ResidualMonitor(v, self.tolerance) for _ in repeats], np.zeros(len(repeats), dtype=int)
        going, hidden = np.full(len(repeats), True), not self.system.show_progress
        title = "LiSSA" if self.repeats == 1 else f"LiSSA, repeats {', '.join(str(repeat + 1) for repeat in repeats)}"
        for _ in tqdm(range(self.settings.depth), desc=title, disable=hidden, leave=False):
            draws = np.stack([random.choice(len(examples), size, replace=False) for random in randoms])
            if size >= MIN_MONITORED:
                halves = np.array_split(draws, 2, axis=1)
                one, two = (self._residual(half, v, x) for half in halves)
                residual = (halves[0].shape[1] * one + halves[1].shape[1] * two) / size
                share = size / len(examples)
                for i in np.flatnonzero(going):  # a finished repeat no longer changes
                    going[i] = not monitors[i].add(squared_residual(one[i], two[i], share))
                if not going.any():
                    break
            else:
                residual = self._residual(draws, v, x)
            for i in np.flatnonzero(going):
                x[i].add_(self._preconditioned(residual[i]), alpha=1 / scale)
                if not (x[i].norm(dim=1) <= bound).all():
                    raise self._divergence(examples.take(draws[i]), x[i])
            steps += going
            if self.callback is not None:
                self.callback(int(steps.max()), x.mean(dim=0))
        return [Run(x[i], int(steps[i]), monitors[i].values) for i in range(len(repeats))]

    def repeats_share(self) -> bool:
        """Return whether shared passes make repeats cheaper, which needs Jacobian rows that each repeat weights."""
        return rows_fit(self.system.curvature, self.system.examples)

    def _residual(self, draws: np.ndarray, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return v - (C_B + lambda I) x, (T, Q, P), for T batches of rows (T, B) and solutions (T, Q, P)."""
        curvature, examples = self.system.curvature, self.system.examples
        rows, (repeats, size) = draws.reshape(-1), draws.shape
        # In passes of similar length: a random batch padded to its longest row is half padding.
        passes = examples.places_by_length(rows, max(8, len(rows) // 2))
        if repeats == 1:
            curved = mean_product(curvature, examples, [rows[places] for places in passes], size, x[0])
        else:
            curved = torch.zeros_like(x).flatten(0, 1)
            for places in passes:
                weights = curved.new_zeros(repeats, x.shape[1], len(places))
                weights[places // size, :, np.arange(len(places))] = 1 / size
                batch = examples.take(rows[places])
                curved += curvature.weighted_product(batch, x.flatten(0, 1), weights.flatten(0, 1))
        return (v - curved.view_as(x)).sub_(x, alpha=self.system.damping)

    def _preconditioned(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors if self.precondition is None else self.precondition(vectors)

    def _divergence(self, batch: Batch, x: torch.Tensor) -> DivergenceError:
        worst = int(torch.nan_to_num(x.norm(dim=1), nan=math.inf).argmax())
        start = torch.nan_to_num(x[worst : worst + 1], posinf=1.0, neginf=-1.0)
        damping, used = self.system.damping, self.settings.scale
        eigenvalue = dominant_eigenvalue(self.system.curvature, batch, start, damping, self.precondition)
        if eigenvalue <= 0:
            return DivergenceError(
                f"damping={damping:.3g}: the curvature has an eigenvalue near {eigenvalue - damping:.3g}, so that "
                f"C + damping I is not positive definite; give damping above {damping - eigenvalue:.3g}, or "
                "curvature='gauss_newton'."
            )
        scale = max(1.5 * eigenvalue, 2 * used)
        return DivergenceError(
            f"lissa_scale={used:.3g}: the recursion diverged because the curvature of single batches reaches "
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
    """Return the largest eigenvalue of M (C_B + lambda I) over some batches: a scale at which LiSSA converges.

    The mean curvature does not suffice: the curvature of one batch of B examples may be many times larger, and a
    single step that is too large undoes hundreds of good ones. A step of 1 / sigma is stable for eigenvalues up to
    2 sigma, so this value leaves a margin of two for other batches. The batches are divided among the processes.
    """
    random = np.random.default_rng([seed, 1_000_003])  # not a stream that a repeat draws from
    space = curvature.objective.space
    eigenvalues = space.zeros(max(4, PILOTS // batch_size))  # smaller batches differ more, so more of them are needed
    for i in range(len(eigenvalues)):
        rows = random.choice(len(examples), batch_size, replace=False)
        start = torch.from_numpy(random.standard_normal((1, space.size)))
        if i % accelerator.num_processes == accelerator.process_index:
            batch = examples.take(rows)
            eigenvalues[i] = abs(dominant_eigenvalue(curvature, batch, start.to(eigenvalues), damping, precondition))
    return float(accelerator.reduce(eigenvalues, "sum").max())


def dominant_eigenvalue(
    curvature: Curvature,
    batch: Batch,
    start: torch.Tensor,
    damping: float,
    precondition: Precondition | None = None,
    iterations: int = 4,
) -> float:
    """Return the eigenvalue of M (C_B + lambda I) of largest magnitude, by power iteration from `start` (1, P)."""
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


def resolved_settings(setup: SolverSetup, settings: LissaSettings) -> LissaSettings:
    """Return settings with B at most the training set, and with a number for "auto" at which LiSSA converges."""
    args, precondition = setup.args, setup.preconditioner()
    size = setup.at_most(settings.batch_size)
    if settings.scale != "auto":
        return replace(settings, batch_size=size)
    scale = setup.fit_once(
        ("scale", size, setup.damping, args.preconditioner),
        lambda: batch_scale(
            setup.curvature, setup.examples, size, args.seed, setup.damping, setup.accelerator, precondition
        ),
    )
    return replace(settings, batch_size=size, scale=scale)


def _build(setup: SolverSetup, settings: LissaSettings) -> Lissa:
    return Lissa(
        setup.system,
        resolved_settings(setup, settings),
        adapts=settings.scale == "auto",
        precondition=setup.preconditioner(),
        repeats=setup.args.num_repeats,
        tolerance=setup.args.solver_tolerance,
    )


def _describe(setup: SolverSetup, settings: LissaSettings) -> str:
    return (
        f"LiSSA, J = {settings.depth:,} steps, B = {settings.batch_size} examples a step, "
        f"T = {setup.args.num_repeats} repeats{setup.preconditioned_by}"
    )


def _check(args: SolverSettings, settings: LissaSettings) -> None:
    if args.solver_tolerance is not None and settings.batch_size < MIN_MONITORED:
        raise InfluenceError(
            f"solver_tolerance={args.solver_tolerance}: the residual cannot be watched with "
            f"lissa_batch_size={settings.batch_size}; give at least {MIN_MONITORED}, or solver_tolerance=None."
        )


register(
    "lissa",
    help="the recursion of the paper",
    settings=LissaSettings,
    build=_build,
    describe=_describe,
    check=_check,
    takes_preconditioner=True,
)
