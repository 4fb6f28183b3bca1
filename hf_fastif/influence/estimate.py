"""Estimate the time and memory of an index, of queries and of other solvers, before long work starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
from hf_fastif.solvers import SolverSetup


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
    count, rank = len(train), objective.output_rank(train.take([0]))
    checkpoints = len(session.checkpoints)
    costs = [
        index_cost(setup, passes, flops, checkpoints),
        _query_cost(setup, passes, flops, num_queries, count, checkpoints),
        _scan_cost(setup, passes, flops, num_queries, count, checkpoints),
        *_solver_costs(setup, passes, flops, num_queries, count, rank),
    ]
    return Estimate(costs, count, objective.space.size, str(objective.space.device))


def _query_cost(
    setup: SolverSetup, passes: Passes, flops: float, num_queries: int, count: int, checkpoints: int
) -> Cost:
    directions = setup.args.index_size
    seconds = num_queries * (passes.forward + passes.captured * (1 + PROJECTION))
    seconds += 2 * num_queries * count * directions / flops
    return Cost(
        f"{num_queries} {'query' if num_queries == 1 else 'queries'} by the index",
        checkpoints * seconds,
        4 * num_queries * count / 2**30,
        "all training examples are scored",
    )


def _scan_cost(
    setup: SolverSetup, passes: Passes, flops: float, num_queries: int, count: int, checkpoints: int
) -> Cost:
    size = setup.objective.space.size
    one = 3 * passes.forward if math.isnan(passes.captured) else min(3 * passes.forward, passes.captured)
    seconds = count * (one + 2 * num_queries * size / flops)
    return Cost("scan with exact gradients", checkpoints * seconds, 4 * num_queries * size / 2**30, "s_test apart")


def _solver_costs(
    setup: SolverSetup, passes: Passes, flops: float, num_queries: int, count: int, rank: float
) -> list[Cost]:
    args, size = setup.args, setup.objective.space.size
    memory = 4 * num_queries * size / 2**30
    visits = getattr(args, "sdca_visits", 0)
    tangents = getattr(args, "lissa_depth", 0) * getattr(args, "lissa_batch_size", 0) * args.num_repeats
    lissa = Cost(
        "s_test by lissa", 4 * tangents * num_queries * passes.forward, 3 * memory, f"{tangents:,} examples a query"
    )
    if not math.isfinite(rank):
        return [lissa, Cost("s_test by exact", math.nan, math.nan, "an example has too many outputs")]
    sdca = visits * (passes.captured + 4 * rank * num_queries * size / flops)
    gram = (count * rank) ** 2
    exact = (gram * size + 9 * (count * rank) ** 3) / flops
    return [
        Cost("s_test by sdca", sdca, 3 * memory, f"{visits:,} examples"),
        lissa,
        Cost("s_test by exact", exact, 16 * gram / 2**30, "once for all queries"),
    ]
