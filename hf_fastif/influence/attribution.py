"""Compute s_test and scores, a few queries at a time, at one checkpoint or several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator

from hf_fastif.checkpoints import CheckpointSet
from hf_fastif.config import InfluenceConfig
from hf_fastif.data import ExampleBatches
from hf_fastif.execution import DatasetSweep, PartialResults, SingleProcess, Tensors
from hf_fastif.index import Search
from hf_fastif.influence.predictions import sharded_gradients
from hf_fastif.influence.queries import Queries, groups_of
from hf_fastif.influence.sketched import SketchedQueries
from hf_fastif.model import Batch, Objective
from hf_fastif.scoring import (
    GroupScores,
    QueryScores,
    TokenInfluence,
    choose_scoring,
    covering_layers,
    influence_of_tokens,
    influence_scores,
    self_influence,
    strongest,
)
from hf_fastif.solvers import Repeated, Solution, Solver, SolverSetup


# Applies a solver to the queries at some positions, on one process or on all.
Solve = Callable[[Solver, range, Accelerator | SingleProcess], Tensors]
# The cost of scoring a candidate for all queries from its gradient, relative to scoring it for one query in forward
# mode.
SHARED_COST = 1.5
TOGETHER = 128  # queries whose scores by an index are computed together


@dataclass
class Attribution:
    """A computation of s_test or scores, with the vectors of at most `args.query_batch_size` queries in memory.

    Attributes:
        objective (`Objective`): The training loss.
        args ([`InfluenceConfig`]): Solver, scoring method and batch sizes.
        checkpoints ([`CheckpointSet`]): The checkpoints to sum over.
        setup (`Callable`): Returns the `SolverSetup` of the checkpoint that is currently loaded.
        sweep (`DatasetSweep`): Divides a pass over examples into batches and processes.
        partials (`PartialResults`): Stores finished parts, so that an interrupted computation can resume.
    """

    objective: Objective
    args: InfluenceConfig
    checkpoints: CheckpointSet
    setup: Callable[[], SolverSetup]
    sweep: DatasetSweep
    partials: PartialResults
    _solvers: dict[int, Solver] = field(default_factory=dict)
    _scorings: Counter[str] = field(default_factory=Counter)
    _methods: dict[int, str] = field(default_factory=dict)

    @property
    def scoring(self) -> str:
        """A description of how the candidates were scored."""
        if len(self._scorings) < 2:
            return "".join(self._scorings)
        return "; ".join(f"{count} queries by {why}" for why, count in self._scorings.items())

    def s_test(self, queries: Queries) -> Solution:
        """Compute s_test of every query."""
        return Solution.concat_queries([self._solution(queries, i) for i in range(len(queries.groups()))])

    def score(
        self,
        queries: Queries,
        pool: ExampleBatches,
        search: Search | None,
        s_test: Solution | None,
        num_shown: int | None = None,
    ) -> Iterator[QueryScores]:
        """Yield the scores of each query in turn, from s_test and exact gradients of the candidates.

        Args:
            queries (`Queries`): Q queries.
            pool (`ExampleBatches`): The candidates.
            search (`Search`, *optional*): Returns the candidates (n, k) of n queries, given their positions and their
                s_test. None scores the whole pool for all queries in one pass.
            s_test ([`Solution`], *optional*): s_test of the queries, if it is already known.
            num_shown (`int`, *optional*): The number of candidates per direction whose tokens are scored too.
        """
        for i, numbers in enumerate(queries.groups()):

            def score_group(i: int = i, numbers: range = numbers) -> Tensors:
                solution = self._solution(queries, i) if s_test is None else s_test[numbers.start : numbers.stop]
                candidates = None if search is None else search(numbers, solution.vectors)
                scores = self._scores(pool, solution.vectors, candidates, f"queries-{i}.scores")
                group = GroupScores(scores, solution.without_vectors(), candidates)
                if num_shown is not None:
                    tokens = [
                        self._tokens(pool, solution.vectors[q : q + 1], query, num_shown)
                        for q, query in enumerate(group)
                    ]
                    group = GroupScores(scores, group.solution, candidates, tokens)
                return group.to_tensors()

            group = GroupScores.from_tensors(self.partials.get(f"queries-{i}", score_group))
            together = len(group.scores) if self._is_shared(group.candidates) else 1
            self._scorings[self._method(pool, together)] += len(group.scores)
            yield from group

    def _method(self, pool: ExampleBatches, together: int) -> str:
        """Describe how candidates are scored for so many queries together; probes the model once for each number."""
        if together not in self._methods:
            method = choose_scoring(self.args.scoring, self.objective, pool, together)
            self._methods[together] = method.why
        return self._methods[together]

    def score_by_index(
        self,
        queries: Queries,
        pool: ExampleBatches,
        sketched: SketchedQueries,
        k: int | None = None,
        num_shown: int | None = None,
    ) -> Iterator[QueryScores]:
        """Yield the scores of each query in turn, from products with the vectors of the index.

        Args:
            queries (`Queries`): Q queries.
            pool (`ExampleBatches`): The candidates.
            sketched (`SketchedQueries`): The queries in the coordinates of the index.
            k (`int`, *optional*): The number of candidates per query to search for; None scores the whole pool.
            num_shown (`int`, *optional*): The number of candidates per direction whose tokens are scored.
        """
        damping = float(np.mean(sketched.dampings))
        self._scorings["products with the vectors of the index"] += len(queries)
        for numbers in groups_of(len(queries), TOGETHER):
            scores, candidates = sketched.scores(numbers), None
            if k is not None:
                candidates = sketched.search(numbers, k)
                scores = np.take_along_axis(scores, candidates, axis=1)
            group = GroupScores(scores, Solution.in_sketch(sketched.residuals(numbers), damping), candidates)
            for number, query in zip(numbers, group, strict=True):
                if num_shown is not None:
                    vector = sketched.vectors(range(number, number + 1))
                    query = replace(query, tokens=self._tokens(pool, vector, query, num_shown))
                yield query

    def self_influence(self, pool: ExampleBatches) -> np.ndarray:
        """Compute grad L^T (C + lambda I)^-1 grad L (N,) of each example of a pool, summed over the checkpoints."""
        total = np.zeros(len(pool), dtype=np.float32)
        for number in range(len(self.checkpoints)):
            with self.checkpoints.at(number) as weight:
                total += weight * self._self_influence(pool, number)
        return total

    def _self_influence(self, pool: ExampleBatches, number: int) -> np.ndarray:
        layers, direct = covering_layers(self.objective, pool), self.setup().name in ("ekfac", "identity")
        if layers is None or not direct:
            return self._solved_products(pool, number)
        setup = self.setup()
        factors, damping = (setup.factors(), setup.ekfac_damping) if setup.name == "ekfac" else (None, 1.0)

        def compute(batch: Batch) -> torch.Tensor:
            return self_influence(self.objective, batch, layers, factors, damping)[:, None]

        rows, name = np.arange(len(pool)), f"checkpoint-{number}"
        return self.sweep.over(pool, rows, 1, compute, "Self-influence", self.partials, name)[:, 0]

    def _solved_products(self, pool: ExampleBatches, number: int) -> np.ndarray:
        def solve(solver: Solver, rows: range, accelerator: Accelerator | SingleProcess) -> Tensors:
            gradients = sharded_gradients(self.objective, pool, rows, accelerator)
            return {"values": (solver.solve(gradients).vectors * gradients).sum(dim=1)}

        groups = groups_of(len(pool), self.args.query_batch_size)
        names = f"examples-{number}-{{}}"
        parts = [self._solved(groups, i, names, number, solve)["values"] for i in range(len(groups))]
        return torch.cat(parts).float().cpu().numpy()

    def _solution(self, queries: Queries, i: int) -> Solution:
        """Compute s_test of the i-th group of queries; the vectors of all checkpoints are concatenated."""
        if len(self.checkpoints) == 1:
            return self._solution_at(queries, i, 0)

        def solve_at_all() -> Tensors:
            parts = [self._solution_at(queries, i, number) for number in range(len(self.checkpoints))]
            return Solution.concat_checkpoints(parts, self.checkpoints.weights).to_tensors()

        return Solution.from_tensors(self.partials.get(f"queries-{i}.s_test", solve_at_all))

    def _solution_at(self, queries: Queries, i: int, number: int) -> Solution:
        def solve(solver: Solver, numbers: range, accelerator: Accelerator | SingleProcess) -> Tensors:
            return solver.solve(queries.gradients(numbers, accelerator)).to_tensors()

        names = f"queries-{{}}.s_test.{number}"
        return Solution.from_tensors(self._solved(queries.groups(), i, names, number, solve))

    def _solved(self, groups: list[range], i: int, names: str, number: int, solve: Solve) -> Tensors:
        """Apply a solver to the i-th group of examples at a checkpoint.

        If a single group does not keep all processes busy, each process solves for a separate group, as long as there
        are as many groups as processes. The processes solve for the remaining groups together.
        """
        count = self.sweep.accelerator.num_processes
        first = i - i % count
        shared_out = dict(enumerate(groups[first : first + count], first))
        if 1 < count == len(shared_out) and not self.partials.has(names.format(i)):
            with self.checkpoints.at(number):
                solver = self._solver(number)  # all processes fit its factors and spectra together
                if isinstance(solver, Repeated) and not solver.keeps_all_busy:
                    alone = solver.by_itself()
                    self.partials.compute_missing(
                        {
                            names.format(j): partial(solve, alone, numbers, alone.system.accelerator)
                            for j, numbers in shared_out.items()
                        }
                    )

        def solve_together() -> Tensors:
            with self.checkpoints.at(number):
                return solve(self._solver(number), groups[i], self.sweep.accelerator)

        return self.partials.get(names.format(i), solve_together)

    def _scores(
        self, pool: ExampleBatches, vectors: torch.Tensor, candidates: np.ndarray | None, name: str
    ) -> np.ndarray:
        """Return the scores (Q, k) of the candidates (Q, k) of each query, or of all examples."""
        if candidates is None:
            return self._scores_of_rows(pool, vectors, np.arange(len(pool)), name)
        if self._is_shared(candidates):
            union, places = np.unique(candidates, return_inverse=True)
            scores = self._scores_of_rows(pool, vectors, union, name)
            return np.take_along_axis(scores, places.reshape(candidates.shape), axis=1)
        pairs = zip(vectors.split(1), candidates, strict=True)
        parts = [self._scores_of_rows(pool, vector, rows, f"{name}-{q}") for q, (vector, rows) in enumerate(pairs)]
        return np.concatenate(parts)

    def _scores_of_rows(self, pool: ExampleBatches, vectors: torch.Tensor, rows: np.ndarray, name: str) -> np.ndarray:
        """Return the scores (Q, k) of the same rows for all queries, summed over the checkpoints."""
        total = np.zeros((len(vectors), len(rows)), dtype=np.float32)
        for number, vectors_there in enumerate(vectors.split(self.objective.space.size, dim=1)):
            with self.checkpoints.at(number):  # Solution has multiplied the vectors by the checkpoint's weight
                total += influence_scores(
                    self.objective,
                    pool,
                    vectors_there,
                    rows,
                    self.sweep,
                    self.args.scoring,
                    self.partials,
                    f"{name}-{number}",
                )
        return total

    @staticmethod
    def _is_shared(candidates: np.ndarray | None) -> bool:
        """Tell whether to score all queries together, given the candidates (Q, k) of each; None means all examples."""
        return candidates is None or SHARED_COST * len(np.unique(candidates)) < candidates.size

    def _tokens(
        self, pool: ExampleBatches, vectors: torch.Tensor, query: QueryScores, num_shown: int
    ) -> TokenInfluence:
        """Return the influence of the tokens of the strongest candidates of a query, by row."""
        rows = query.rows[np.concatenate(list(strongest(query.rows, query.scores, num_shown).values()))]
        by_row = influence_of_tokens(self.objective, self.checkpoints, pool, vectors, rows, self.sweep)
        return {row: values[0] for row, values in zip(rows.tolist(), by_row, strict=True)}

    def _solver(self, number: int) -> Solver:
        """Return the solver of the checkpoint that is currently loaded."""
        if number not in self._solvers:
            self._solvers[number] = self.setup().solver()
        return self._solvers[number]
