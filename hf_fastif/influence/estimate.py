"""Estimate the time and memory of an index, of queries and of other solvers, before long work starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hf_fastif.curvature import GaussNewton
from hf_fastif.influence.session import InfluenceSession
from hf_fastif.influence.timing import (
    PROJECTION,
    Cost,
    Passes,
    in_words,
    index_cost,
    time_passes,
    time_product,
)
from hf_fastif.solvers import MAX_DUAL, MAX_PRIMAL, SolverSetup


AT_ONCE = 64  # products with the curvature of a tiny model, which together take as long as one
EIGENVECTORS = 9  # operations of decomposing a symmetric matrix of n rows, relative to n^3


@dataclass(frozen=True)
class Estimate:
    """Estimated costs for one model and one training set.

    Attributes:
        costs (`list[Cost]`): The cost of each kind of work.
        num_train (`int`): Number of training examples.
        num_parameters (`int`): Number of trained parameters.
        device (`str`): Where the model is.
    """

    costs: list[Cost]
    num_train: int
    num_parameters: int
    device: str

    def __str__(self) -> str:
        lines = [
            f"{self.num_train:,} training examples, {self.num_parameters:,} trained parameters, {self.device}; "
            "estimated from one batch:"
        ]
        for cost in self.costs:
            amount = (
                "not possible" if math.isnan(cost.seconds) else f"{in_words(cost.seconds)}, {cost.gigabytes:.2g} GB"
            )
            lines.append(f"  {cost.work:44} {amount:24} {cost.note}".rstrip())
        return "\n".join(lines)

    def __getitem__(self, work: str) -> Cost:
        return next(cost for cost in self.costs if cost.work == work)


def estimate_costs(session: InfluenceSession, num_queries: int) -> Estimate:
    """Estimate costs from one batch of training examples of typical length, and from sizes.

    Args:
        session (`InfluenceSession`): An open session.
        num_queries (`int`): The number of queries that are asked about together.
    """
    objective, train = session.objective, session.train
    with session.checkpoints.at(0):
        setup = session.setup()
        passes = time_passes(setup)
    flops = time_product(objective.space.device)
    count, checkpoints = len(train), len(session.checkpoints)
    costs = [
        index_cost(setup, passes, flops, checkpoints),
        _query_cost(setup, passes, flops, num_queries, count, checkpoints),
        _scan_cost(setup, passes, flops, num_queries, count, checkpoints),
        *_solver_costs(setup, passes, flops, num_queries, count, checkpoints),
    ]
    return Estimate(costs, count, objective.space.size, str(objective.space.device))


def _query_cost(
    setup: SolverSetup, passes: Passes, flops: float, num_queries: int, count: int, checkpoints: int
) -> Cost:
    work = f"{num_queries} {'query' if num_queries == 1 else 'queries'} by the index"
    if not passes.can_capture:
        return Cost(work, math.nan, math.nan)
    directions = setup.args.index_size
    seconds = num_queries * (passes.forward + passes.captured * (1 + PROJECTION))
    seconds += 2 * num_queries * count * directions / flops
    return Cost(work, checkpoints * seconds, 4 * num_queries * count / 2**30, "all training examples are scored")


def _scan_cost(
    setup: SolverSetup, passes: Passes, flops: float, num_queries: int, count: int, checkpoints: int
) -> Cost:
    size = setup.objective.space.size
    one = min(3 * passes.forward, passes.captured) if passes.can_capture else 3 * passes.forward
    seconds = count * (one + 2 * num_queries * size / flops)
    return Cost("scan with exact gradients", checkpoints * seconds, 4 * num_queries * size / 2**30, "s_test apart")


def _solver_costs(
    setup: SolverSetup, passes: Passes, flops: float, num_queries: int, count: int, checkpoints: int
) -> list[Cost]:
    """Return the costs of s_test by each solver that suits the model."""
    args, size = setup.args, setup.objective.space.size
    rank, memory = setup.objective.output_rank(setup.examples.take([0])), 12 * num_queries * size / 2**30
    tangents = getattr(args, "lissa_depth", 0) * getattr(args, "lissa_batch_size", 0) * args.num_repeats
    lissa = checkpoints * 4 * tangents * num_queries * passes.forward
    costs = [Cost("s_test by lissa", lissa, memory, f"{tangents:,} examples a query")]
    if setup.iterative == "sdca":
        visits = getattr(args, "sdca_visits", 0)
        rows = passes.captured if passes.can_capture else 3 * rank * passes.forward
        sdca = checkpoints * visits * (rows + 4 * rank * num_queries * size / flops)
        costs.insert(0, Cost("s_test by sdca", sdca, memory, f"{visits:,} examples"))
    return [*costs, _exact_cost(setup, passes, flops, count * rank, checkpoints)]


def _exact_cost(setup: SolverSetup, passes: Passes, flops: float, rows: float, checkpoints: int) -> Cost:
    """Return the cost of the exact inverse, of the curvature of a tiny model or of a Gram matrix of all rows."""
    work, size = "s_test by exact", setup.objective.space.size
    if size <= MAX_PRIMAL:
        products = 4 * len(setup.examples) * passes.forward * size / AT_ONCE
        seconds = products + EIGENVECTORS * size**3 / flops
        return Cost(work, checkpoints * seconds, 16 * size**2 / 2**30, "once for all queries")
    if not isinstance(setup.curvature, GaussNewton):
        return Cost(work, math.nan, math.nan, f"the Hessian of more than {MAX_PRIMAL:,} parameters")
    if rows > MAX_DUAL:
        what = f"{rows:,} rows of Jacobians" if math.isfinite(rows) else "an example has too many outputs"
        return Cost(work, math.nan, math.nan, what)
    seconds = (rows**2 * size + EIGENVECTORS * rows**3) / flops
    return Cost(work, checkpoints * seconds, 16 * rows**2 / 2**30, "once for all queries")
