"""Solving for some queries and scoring candidates for them, a few queries at a time, at one checkpoint or several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator

from hf_fastif.checkpoints import CheckpointSet
from hf_fastif.config import InfluenceConfig
from hf_fastif.data import ExampleBatches
from hf_fastif.execution import DatasetSweep, PartialResults, SingleProcess, Tensors, shard_for_rank
from hf_fastif.index import Search
from hf_fastif.influence.predictions import loss_gradients, sharded_gradients
from hf_fastif.model import Batch, Objective
from hf_fastif.scoring import (
    QueryScores,
    choose_scoring,
    covering_layers,
    influence_of_tokens,
    influence_scores,
    self_influence,
    strongest,
)
from hf_fastif.solvers import Repeated, Solution, Solver, SolverSetup


Solve = Callable[
    [Solver, range, Accelerator | SingleProcess], Tensors
]  # of the queries of some rows, by some processes
Groups = list[tuple[int, range]]  # numbers and rows
# A candidate that several queries share is scored for all of them from its gradient, which costs about that many
# times what scoring it for one of them costs in forward mode.
SHARED_COST = 1.5


@dataclass
class Attribution:
    """One piece of work: no more than the vectors of `args.query_batch_size` queries are in memory.

    Attributes:
        objective (`Objective`): The loss.
        args ([`InfluenceConfig`]): Solver, scoring and sizes.
        checkpoints ([`CheckpointSet`]): The moments of training that are summed over.
        setup (`Callable`): Makes the `SolverSetup` of the checkpoint that is in the model, if one is needed.
        passes (`DatasetSweep`): How long work is cut up.
        pieces (`PartialResults`): Keeps what is finished.
        as_one (`bool`): Whether all examples are anchors: one query, whose loss is their mean.
    """

    objective: Objective
    args: InfluenceConfig
    checkpoints: CheckpointSet
    setup: Callable[[], SolverSetup]
    sweep: DatasetSweep
    partials: PartialResults
    as_one: bool = False
    _solvers: dict[int, Solver] = field(default_factory=dict)
    _scorings: Counter[str] = field(default_factory=Counter)

    @property
    def scoring(self) -> str:
        """How candidates were scored, of all queries of `outcomes`."""
        if len(self._scorings) < 2:
            return "".join(self._scorings)
        return "; ".join(f"{count} queries by {why}" for why, count in self._scorings.items())

    def s_test(self, queries: ExampleBatches) -> Solution:
        """s_test of every query."""
        return Solution.concat_queries([self._solution(queries, i) for i, _ in self._groups(queries)])

    def outcomes(
        self,
        queries: ExampleBatches,
        pool: ExampleBatches,
        search: Search | None,
        s_test: Solution | None,
        num_shown: int | None = None,
    ) -> Iterator[QueryScores]:
        """The scores of each query in turn.

        Args:
            queries (`ExampleBatches`): Q queries.
            pool (`ExampleBatches`): The candidates.
            search (`Search`, *optional*): Finds the candidates (n, k) of n queries, given their numbers and their
                s_test; None scores the whole pool for all queries in one pass.
            s_test ([`Solution`], *optional*): Of the queries, if it is known.
            num_shown (`int`, *optional*): Of how many candidates of each direction the tokens are scored too.
        """
        for i, rows in self._groups(queries):

            def work(i: int = i, rows: range = rows) -> Tensors:
                solution = self._solution(queries, i) if s_test is None else s_test[rows.start : rows.stop]
                candidates = None if search is None else search(rows, solution.vectors)
                scores = self._scores(pool, solution.vectors, candidates, f"queries-{i}.scores")
                found = {"scores": torch.from_numpy(scores), **solution.without_vectors().to_tensors()}
                if candidates is not None:
                    found["candidates"] = torch.from_numpy(candidates)
                if num_shown is not None:
                    found |= self._tokens(pool, solution.vectors, candidates, scores, num_shown)
                return found

            found = self.partials.get(f"queries-{i}", work)
            solution, scores = Solution.from_tensors(found), found["scores"].cpu().numpy()
            candidates = None if search is None else found["candidates"].cpu().numpy()
            together = len(scores) if self._is_shared(candidates) else 1
            why = choose_scoring(self.args.scoring, self.objective, pool, together).why
            self._scorings[why] += len(scores)
            everything = np.arange(len(pool))
            for q in range(len(scores)):
                scored = everything if candidates is None else candidates[q]
                tokens = _unpacked(found, q) if num_shown is not None else None
                yield QueryScores(scored, scores[q], solution[q : q + 1].quality(), tokens)

    def self_influence(self, pool: ExampleBatches) -> np.ndarray:
        """grad L^T (C + lambda I)^-1 grad L (N,) of every example of a pool, summed over the checkpoints."""
        total = np.zeros(len(pool), dtype=np.float32)
        for number in range(len(self.checkpoints)):
            with self.checkpoints.at(number) as weight:
                total += weight * self._self_influence(pool, number)
        return total

    def _self_influence(self, pool: ExampleBatches, number: int) -> np.ndarray:
        layers, direct = covering_layers(self.objective, pool), self._direct_solver()
        if layers is None or direct is None:
            return self._solved_products(pool, number)
        setup = self.setup()
        factors, damping = (setup.factors(), setup.ekfac_damping) if direct == "ekfac" else (None, 1.0)

        def compute(batch: Batch) -> torch.Tensor:
            return self_influence(self.objective, batch, layers, factors, damping)[:, None]

        rows, name = np.arange(len(pool)), f"checkpoint-{number}"
        return self.sweep.over(pool, rows, 1, compute, "Self-influence", self.partials, name)[:, 0]

    def _direct_solver(self) -> Literal["ekfac", "identity"] | None:
        """The solver that answers for all examples at once, if it is the one that is meant."""
        if self.args.solver == "auto":
            return "ekfac" if self.args.curvature == "gauss_newton" else None
        return self.args.solver if self.args.solver in ("ekfac", "identity") else None

    def _solved_products(self, pool: ExampleBatches, number: int) -> np.ndarray:
        def solve(solver: Solver, rows: range, accelerator: Accelerator | SingleProcess) -> Tensors:
            gradients = sharded_gradients(self.objective, pool, rows, accelerator)
            return {"values": (solver.solve(gradients).vectors * gradients).sum(dim=1)}

        groups = self._groups(pool)
        parts = [self._solved(groups, i, f"examples-{number}-{{}}", number, solve)["values"] for i, _ in groups]
        return torch.cat(parts).float().cpu().numpy()

    def _solution(self, queries: ExampleBatches, i: int) -> Solution:
        if len(self.checkpoints) == 1:
            return self._solution_at(queries, i, 0)

        def work() -> Tensors:
            parts = [self._solution_at(queries, i, number) for number in range(len(self.checkpoints))]
            return Solution.concat_checkpoints(parts, self.checkpoints.weights).to_tensors()

        return Solution.from_tensors(self.partials.get(f"queries-{i}.s_test", work))

    def _solution_at(self, queries: ExampleBatches, i: int, number: int) -> Solution:
        def solve(solver: Solver, rows: range, accelerator: Accelerator | SingleProcess) -> Tensors:
            return solver.solve(self._gradients(queries, rows, accelerator)).to_tensors()

        name = f"queries-{{}}.s_test.{number}"
        return Solution.from_tensors(self._solved(self._groups(queries), i, name, number, solve))

    def _solved(self, groups: Groups, i: int, name: str, number: int, solve: Solve) -> Tensors:
        """What a solver makes of a group of examples at a checkpoint.

        Where one group does not keep all processes busy, each is given a group of its own, as long as there are as
        many groups as processes. All work together on those that are left.
        """
        count = self.sweep.accelerator.num_processes
        among = groups[i - i % count :][:count]
        if 1 < count == len(among) and not self.partials.has(name.format(i)):
            with self.checkpoints.at(number):
                solver = self._solver(number)  # what it needs is fitted by all
                if isinstance(solver, Repeated) and not solver.keeps_all_busy:
                    own = solver.by_itself()
                    self.partials.compute_missing(
                        {name.format(j): partial(solve, own, rows, own.system.accelerator) for j, rows in among}
                    )

        def together() -> Tensors:
            with self.checkpoints.at(number):
                return solve(self._solver(number), groups[i][1], self.sweep.accelerator)

        return self.partials.get(name.format(i), together)

    def _gradients(
        self, queries: ExampleBatches, rows: range, accelerator: Accelerator | SingleProcess
    ) -> torch.Tensor:
        """The gradient (Q, P) of each of some queries, or the mean (1, P) of all."""
        if not self.as_one:
            return sharded_gradients(self.objective, queries, rows, accelerator)
        size, count = self.args.query_batch_size, len(queries)
        total = self.objective.space.zeros(1, self.objective.space.size)
        starts = range(0, count, size)
        for start in shard_for_rank(starts, accelerator):
            part = range(start, min(start + size, count))
            total += loss_gradients(self.objective, queries, part).sum(dim=0, keepdim=True)
        return accelerator.reduce(total, "sum") / count

    def _scores(
        self, pool: ExampleBatches, vectors: torch.Tensor, candidates: np.ndarray | None, name: str
    ) -> np.ndarray:
        """Scores (Q, k) of the candidates (Q, k) of each query, or of all for all."""

        def score(vectors: torch.Tensor, rows: np.ndarray, name: str) -> np.ndarray:
            total = np.zeros((len(vectors), len(rows)), dtype=np.float32)
            for number, own in enumerate(vectors.split(self.objective.space.size, dim=1)):
                with self.checkpoints.at(number):  # the weights are in the vectors
                    total += influence_scores(
                        self.objective,
                        pool,
                        own,
                        rows,
                        self.sweep,
                        self.args.scoring,
                        self.partials,
                        f"{name}-{number}",
                    )
            return total

        if candidates is None:
            return score(vectors, np.arange(len(pool)), name)
        if self._is_shared(candidates):
            union, places = np.unique(candidates, return_inverse=True)
            return np.take_along_axis(score(vectors, union, name), places.reshape(candidates.shape), axis=1)
        pairs = zip(vectors.split(1), candidates, strict=True)
        return np.concatenate([score(vector, rows, f"{name}-{q}") for q, (vector, rows) in enumerate(pairs)])

    @staticmethod
    def _is_shared(candidates: np.ndarray | None) -> bool:
        """Whether some queries are scored together, given the candidates (Q, k) of each, or None for all of them."""
        return candidates is None or SHARED_COST * len(np.unique(candidates)) < candidates.size

    def _tokens(
        self,
        pool: ExampleBatches,
        vectors: torch.Tensor,
        candidates: np.ndarray | None,
        scores: np.ndarray,
        num_shown: int,
    ) -> Tensors:
        """The influence of the tokens of the candidates that each query will be shown, for `_unpacked`."""
        found, everything = {}, np.arange(len(pool))
        for q in range(len(scores)):
            scored = everything if candidates is None else candidates[q]
            rows = scored[np.concatenate(list(strongest(scored, scores[q], num_shown).values()))]
            parts = influence_of_tokens(self.objective, self.checkpoints, pool, vectors[q : q + 1], rows, self.sweep)
            values = np.concatenate([np.zeros(0, dtype=np.float32), *(part[0] for part in parts)])
            lengths = np.array([part.shape[1] for part in parts], dtype=np.int64)
            named = {"rows": rows.astype(np.int64), "lengths": lengths, "values": values}
            found |= {f"token_{name}_{q}": torch.from_numpy(own) for name, own in named.items()}
        return found

    def _solver(self, number: int) -> Solver:
        """The solver of the checkpoint that is in the model."""
        if number not in self._solvers:
            self._solvers[number] = self.setup().solver()
        return self._solvers[number]

    def _groups(self, examples: ExampleBatches) -> Groups:
        if self.as_one:
            return [(0, range(1))]
        size, count = self.args.query_batch_size, len(examples)
        return [(i, range(start, min(start + size, count))) for i, start in enumerate(range(0, count, size))]


def _unpacked(found: Tensors, query: int) -> dict[int, np.ndarray]:
    """The influence of the tokens of each candidate that a query will be shown, by the candidate's row."""
    rows, lengths, values = (found[f"token_{name}_{query}"].cpu().numpy() for name in ("rows", "lengths", "values"))
    return dict(zip(rows.tolist(), np.split(values, np.cumsum(lengths))[:-1], strict=True))
