"""Block dual coordinate ascent (SDCA; Shalev-Shwartz and Zhang, 2013) for the damped Gauss-Newton system."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm

from hf_fastif.curvature import CurvatureSample, GaussNewton
from hf_fastif.data import ExampleBatches
from hf_fastif.execution import shard_for_rank
from hf_fastif.solvers.base import Callback, Solution
from hf_fastif.solvers.repeats import Repeated, Run, RunningMoments, Watch, average


ROUNDING = 4  # times eps: a pass that moves x by no more of ||v|| / lambda has moved nothing


@dataclass
class DualAscent(Repeated):
    """Solves (G^T G / N + lambda I) x = v a block of examples at a time, exactly for each block.

    G has r rows for each example (see `GaussNewton`), and x = v / lambda + G^T b with b = - G x / (N lambda) at the
    solution. A step takes a block B of examples and sets b_B so that its own equations hold:

        (I + G_B G_B^T / (N lambda)) d = - G_B x / (N lambda) - b_B,    b_B <- b_B + d,    x <- x + G_B^T d.

    There is no step size and no noise that remains: passes over the training set converge to the exact solution, and
    the first whole pass that moves nothing beyond rounding is the last.
    In the first pass N counts the examples seen so far, so that x is always the solution for about those. A step costs
    one forward and r backward passes of its examples, whatever the number of queries.

    Attributes:
        curvature (`GaussNewton`): Rows of G; all trained parameters must be in captured layers.
        examples (`ExampleBatches`): The training set.
        sample (`CurvatureSample`): A fixed sample of it, for the residual.
        damping (`float`): lambda.
        visits (`int`): Examples visited in all; more than there are means several passes.
        batch_size (`int`): Examples in a block.
        repeats (`int`): T, with other orders; dealt to the processes and averaged.
        seed (`int`): Repeat t draws its order from the seed (seed, t), whatever process runs it.
        tolerance (`float`, *optional*): Stop when the watched residual has fallen to this.
        accelerator (`Accelerator`): Averages over processes.
        show_progress (`bool`): Whether the main process shows a bar.
        callback (`Callable`, *optional*): Called after each step with its number and the present solutions (Q, P).
    """

    curvature: GaussNewton
    examples: ExampleBatches
    sample: CurvatureSample
    damping: float
    visits: int
    batch_size: int
    repeats: int
    seed: int
    tolerance: float | None
    accelerator: Accelerator
    show_progress: bool = True
    callback: Callback | None = None

    def solve(self, vectors: torch.Tensor) -> Solution:
        """Solves for Q right-hand sides, shape (Q, P)."""
        runs = (self._run(vectors, repeat) for repeat in shard_for_rank(range(self.repeats), self.accelerator))
        found = average(RunningMoments.of(runs, vectors), self.repeats, self.accelerator)
        return Solution(
            vectors=found.vectors,
            residual=self.sample.residual(vectors, found.vectors, self.damping),
            std_err=found.std_err,
            damping=self.damping,
            steps=found.steps,
            trace=found.trace,
        )

    def _run(self, v: torch.Tensor, repeat: int) -> Run:
        first = self.examples.take([0])
        rank = self.curvature.objective.output_rank(first)
        size = max(1, min(self.batch_size, self.curvature.num_rows_held(first)))
        u = torch.zeros_like(v)  # G^T b, so that x = v / lambda + u
        b = v.new_zeros(len(v), rank, len(self.examples))
        watch, steps, seen = Watch(v, self.tolerance), 0, 0
        passed, moved = (
            0,
            v.new_zeros(len(v)),
        )  # examples of the present pass, and ||G_B^T d||^2 summed over its blocks
        still = (ROUNDING * torch.finfo(v.dtype).eps / self.damping * v.norm(dim=1)).square()
        with tqdm(total=self.visits, desc=self._title(repeat), disable=not self.show_progress, leave=False) as bar:
            for rows in self._blocks(repeat, size):
                if seen < len(self.examples):  # the first pass: what was known counts for less
                    u *= seen / (seen + len(rows))
                    b *= seen / (seen + len(rows))
                    seen += len(rows)
                order, block = self._block(rows)
                along_u, along_v, gram = self._products(block, u, v)
                along_x = along_v / self.damping + along_u
                if len(rows) > 1 and watch.add(self._squared_residual(u, along_u, along_x, gram, len(rows))):
                    break
                strength = seen * self.damping
                missing = -along_x / strength - b[:, :, order].flatten(1)
                d = torch.linalg.solve(torch.eye(len(gram)).to(gram) + gram / strength, missing.T).T
                b[:, :, order] += d.unflatten(1, (rank, -1))
                self.curvature.add_combined(u, d, block)
                steps += 1
                passed += len(rows)
                moved += ((d @ gram) * d).sum(dim=1)
                bar.update(len(rows))
                if self.callback is not None:
                    self.callback(steps, v / self.damping + u)
                if passed == len(self.examples):
                    if (moved <= still).all():
                        break
                    passed, moved = 0, torch.zeros_like(moved)
        return Run(v / self.damping + u, steps, watch.values)

    def _title(self, repeat: int) -> str:
        return "SDCA" if self.repeats == 1 else f"SDCA {repeat + 1}/{self.repeats}"

    def _blocks(self, repeat: int, size: int) -> Iterator[np.ndarray]:
        """Blocks of rows: one permutation of the training set after another."""
        random = np.random.default_rng([self.seed, repeat])
        left = self.visits
        while left > 0:
            order = random.permutation(len(self.examples))[:left]
            left -= len(order)
            yield from np.array_split(order, -(-len(order) // size))

    def _block(self, rows: np.ndarray) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The rows of G (r n, size) of a block, from passes of similar length, and the order they come in."""
        passes = self.examples.grouped_by_length(rows, max(8, len(rows) // 4))
        parts = [self.curvature.jacobian_rows(self.examples.take(part)) for part in passes]
        block = {name: torch.cat([part.pop(name) for part in parts], dim=1).flatten(0, 1) for name in list(parts[0])}
        return torch.from_numpy(np.concatenate(passes)).to(self.accelerator.device), block

    def _products(
        self, block: dict[str, torch.Tensor], u: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """G_B u and G_B v, (Q, r n), and G_B G_B^T."""
        gram = sum(rows @ rows.T for rows in block.values())
        return self.curvature.along(block, u), self.curvature.along(block, v), gram

    def _squared_residual(
        self, u: torch.Tensor, along_u: torch.Tensor, along_x: torch.Tensor, gram: torch.Tensor, size: int
    ) -> torch.Tensor:
        """`squared_residual` of r = - lambda u - G_H^T G_H x / |H| for two halves H of a block, in its own terms.

        The examples of a block lie by length, so the halves take turns.
        """
        even = torch.arange(len(gram), device=gram.device) % size % 2 == 0
        one, two = along_x * even / -(-size // 2), along_x * ~even / (size // 2)
        product = self.damping**2 * torch.linalg.vector_norm(u, dim=1).square()
        product += self.damping * ((one + two) * along_u).sum(dim=1) + ((one @ gram) * two).sum(dim=1)
        apart = one - two
        return product + size / len(self.examples) / 4 * ((apart @ gram) * apart).sum(dim=1)
