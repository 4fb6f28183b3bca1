"""Solve the damped Gauss-Newton system by block dual coordinate ascent (SDCA; Shalev-Shwartz and Zhang, 2013)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import tqdm

from hf_fastif.errors import InfluenceError
from hf_fastif.execution import shard_for_rank
from hf_fastif.settings import check_at_least_one, setting
from hf_fastif.solvers.base import Solution
from hf_fastif.solvers.registry import register
from hf_fastif.solvers.repeats import Repeated, ResidualMonitor, Run, RunningMoments, average
from hf_fastif.solvers.setup import SolverSetup
from hf_fastif.solvers.system import rows_fit


ROUNDING = 4  # times eps: a pass that moves x by less than this share of ||v|| / lambda has converged


@dataclass(frozen=True)
class SdcaSettings:
    """Settings of SDCA."""

    visits: int = setting(
        4096, "Maximum number of training examples that SDCA visits; a smaller training set is visited several times."
    )

    def __post_init__(self):
        check_at_least_one(sdca_visits=self.visits)


@dataclass
class DualAscent(Repeated):
    """Solve (G^T G / N + lambda I) x = v block by block, exactly for each block of examples.

    G has r rows for each example (see `GaussNewton`), and x = v / lambda + G^T b with b = - G x / (N lambda) at the
    solution. A step takes a block B of examples and changes b_B such that the equations of B hold:

        (I + G_B G_B^T / (N lambda)) d = - G_B x / (N lambda) - b_B,    b_B <- b_B + d,    x <- x + G_B^T d.

    There is no step size and no remaining noise: passes over the training set converge to the exact solution, and the
    solver stops after the first whole pass that changes nothing beyond rounding. In the first pass N counts the
    examples seen so far, so that x approximates the solution for these examples. A step costs
    one forward and r backward passes of its examples, whatever the number of queries.

    Attributes:
        settings (`SdcaSettings`): How many examples are visited.
        batch_size (`int`): Examples in a block.

    The curvature must be a `GaussNewton`, with all trained parameters in captured layers.
    """

    settings: SdcaSettings
    batch_size: int

    def solve(self, vectors: torch.Tensor) -> Solution:
        """Solve for Q right-hand sides, shape (Q, P)."""
        accelerator = self.system.accelerator
        runs = (self._run(vectors, repeat) for repeat in shard_for_rank(range(self.repeats), accelerator))
        mean = average(RunningMoments.of(runs, vectors), self.repeats, accelerator)
        return self.solution(vectors, mean)

    def _run(self, v: torch.Tensor, repeat: int) -> Run:
        curvature, examples, damping = self.system.curvature, self.system.examples, self.system.damping
        first = examples.take([0])
        rank = curvature.objective.output_rank(first)
        size = max(1, min(self.batch_size, curvature.num_rows_held(first)))
        u = torch.zeros_like(v)  # G^T b, so that x = v / lambda + u
        b = v.new_zeros(len(v), rank, len(examples))
        monitor, steps, seen = ResidualMonitor(v, self.tolerance), 0, 0
        passed, moved = 0, v.new_zeros(len(v))  # examples of the present pass, and ||G_B^T d||^2 over its blocks
        still = (ROUNDING * torch.finfo(v.dtype).eps / damping * v.norm(dim=1)).square()
        hidden = not self.system.show_progress
        with tqdm(total=self.settings.visits, desc=self._title(repeat), disable=hidden, leave=False) as bar:
            for rows in self._blocks(repeat, size):
                if seen < len(examples):  # the first pass: rescale earlier contributions to the larger N
                    u *= seen / (seen + len(rows))
                    b *= seen / (seen + len(rows))
                    seen += len(rows)
                order, block = self._block(rows)
                along_u, along_v, gram = self._products(block, u, v)
                along_x = along_v / damping + along_u
                if len(rows) > 1 and monitor.add(self._squared_residual(u, along_u, along_x, gram, len(rows))):
                    break
                strength = seen * damping
                missing = -along_x / strength - b[:, :, order].flatten(1)
                d = torch.linalg.solve(torch.eye(len(gram)).to(gram) + gram / strength, missing.T).T
                b[:, :, order] += d.unflatten(1, (rank, -1))
                curvature.add_combined(u, d, block)
                steps += 1
                passed += len(rows)
                moved += ((d @ gram) * d).sum(dim=1)
                bar.update(len(rows))
                if self.callback is not None:
                    self.callback(steps, v / damping + u)
                if passed == len(examples):
                    if (moved <= still).all():
                        break
                    passed, moved = 0, torch.zeros_like(moved)
        return Run(v / damping + u, steps, monitor.values)

    def _title(self, repeat: int) -> str:
        return "SDCA" if self.repeats == 1 else f"SDCA {repeat + 1}/{self.repeats}"

    def _blocks(self, repeat: int, size: int) -> Iterator[np.ndarray]:
        """Yield blocks of rows: one permutation of the training set after another."""
        random = np.random.default_rng([self.system.seed, repeat])
        left = self.settings.visits
        while left > 0:
            order = random.permutation(len(self.system.examples))[:left]
            left -= len(order)
            yield from np.array_split(order, -(-len(order) // size))

    def _block(self, rows: np.ndarray) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the order in which the examples of a block come, by length, and its rows of G (r n, size)."""
        passes = self.system.examples.grouped_by_length(rows, max(8, len(rows) // 4))
        parts = [self.system.curvature.jacobian_rows(self.system.examples.take(part)) for part in passes]
        block = {name: torch.cat([part.pop(name) for part in parts], dim=1).flatten(0, 1) for name in list(parts[0])}
        return torch.from_numpy(np.concatenate(passes)).to(self.system.accelerator.device), block

    def _products(
        self, block: dict[str, torch.Tensor], u: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return G_B u and G_B v, (Q, r n), and G_B G_B^T."""
        gram = sum(rows @ rows.T for rows in block.values())
        return self.system.curvature.along(block, u), self.system.curvature.along(block, v), gram

    def _squared_residual(
        self, u: torch.Tensor, along_u: torch.Tensor, along_x: torch.Tensor, gram: torch.Tensor, size: int
    ) -> torch.Tensor:
        """Return the `squared_residual` of r = - lambda u - G_H^T G_H x / |H| for two halves H of a block.

        The examples of a block are sorted by length, so the halves alternate.
        """
        even = torch.arange(len(gram), device=gram.device) % size % 2 == 0
        one, two = along_x * even / -(-size // 2), along_x * ~even / (size // 2)
        damping = self.system.damping
        product = damping**2 * torch.linalg.vector_norm(u, dim=1).square()
        product += damping * ((one + two) * along_u).sum(dim=1) + ((one @ gram) * two).sum(dim=1)
        apart = one - two
        return product + size / len(self.system.examples) / 4 * ((apart @ gram) * apart).sum(dim=1)


def _build(setup: SolverSetup, settings: SdcaSettings) -> DualAscent:
    if not rows_fit(setup.curvature, setup.examples):
        raise InfluenceError(
            "solver='sdca': it holds the Jacobian rows of several examples, which requires few enough trained "
            "parameters, all in linear layers and norms (freeze embeddings with hf_fastif.freeze), and one prediction "
            "per example, not one per token; give solver='lissa' or 'cg'."
        )
    args = setup.args
    return DualAscent(
        setup.system,
        settings,
        args.influence_batch_size,
        repeats=args.num_repeats,
        tolerance=args.solver_tolerance,
    )


def _describe(setup: SolverSetup, settings: SdcaSettings) -> str:
    runs = setup.args.num_repeats
    return f"SDCA, at most {settings.visits:,} examples visited{f', mean of T = {runs} runs' if runs > 1 else ''}"


register(
    "sdca",
    help="dual coordinate ascent, exact in the limit and without a step size",
    settings=SdcaSettings,
    build=_build,
    describe=_describe,
    needs_gauss_newton=True,
)
