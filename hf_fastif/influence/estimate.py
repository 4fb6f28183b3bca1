"""Estimate the time and memory of an index, of queries and of other solvers, before long work starts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hf_fastif.curvature import LossAndCurvature, blocked_layers, captures
from hf_fastif.data import ExampleBatches
from hf_fastif.influence.session import InfluenceSession
from hf_fastif.model import Objective
from hf_fastif.solvers import SolverSetup


PRODUCT = 1024  # size of the matrices whose product is timed
SUBSPACE_PASSES = 6  # products of the curvature of the entries with all directions, to find the leading ones
PROJECTION = 0.6  # time of projecting gradients onto the entries, relative to the passes that yield them
COVARIANCES = 0.7  # time of the covariances of the bases, relative to those passes


@dataclass(frozen=True)
class Cost:
    """The cost of one kind of work.

    Attributes:
        work (`str`): What is computed.
        seconds (`float`): Time; NaN if the work is not possible.
        gigabytes (`float`): Memory beside model and data.
        note (`str`): What the cost depends on, or why the work is not possible.
    """

    work: str
    seconds: float
    gigabytes: float
    note: str = ""


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
            f"{self.num_train:,} training examples, {self.num_parameters:,} trained parameters, {self.device}; estimated "
            "from one batch:"
        ]
        for cost in self.costs:
            amount = (
                "not possible" if math.isnan(cost.seconds) else f"{in_words(cost.seconds)}, {cost.gigabytes:.2g} GB"
            )
            lines.append(f"  {cost.work:44} {amount:24} {cost.note}".rstrip())
        return "\n".join(lines)

    def __getitem__(self, work: str) -> Cost:
        return next(cost for cost in self.costs if cost.work == work)


def in_words(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def estimate(session: InfluenceSession, num_queries: int) -> Estimate:
    """Estimate costs from one batch of training examples of typical length, and from sizes.

    Args:
        session (`InfluenceSession`): An open session.
        num_queries (`int`): The number of queries that are asked about together.
    """
    args, objective, train = session.args, session.objective, session.train
    with session.checkpoints.at(0):
        setup = session.setup()
        passes = _time_passes(setup, _typical_rows(train, args.influence_batch_size))
    flops = _time_product(objective.space.device)
    count, rank = len(train), objective.output_rank(train.take([0]))
    rows = count * (rank if math.isfinite(rank) else 2)
    checkpoints = len(session.checkpoints)
    costs = [
        _index_cost(setup, passes, flops, count, rows, checkpoints),
        _query_cost(setup, passes, flops, num_queries, count, checkpoints),
        _scan_cost(setup, passes, flops, num_queries, count, checkpoints),
        *_solver_costs(setup, passes, flops, num_queries, count, rank),
    ]
    return Estimate(costs, count, objective.space.size, str(objective.space.device))


@dataclass(frozen=True)
class _Passes:
    """Seconds an example: of a forward pass, and of one that captures all layers along the directions of an index."""

    forward: float
    captured: float
    can_capture: bool


def _typical_rows(examples: ExampleBatches, size: int) -> np.ndarray:
    """Return the rows of a batch of median length."""
    batches = examples.grouped_by_length(np.arange(len(examples)), size)
    return batches[(len(batches) - 1) // 2]


def _time_passes(setup: SolverSetup, rows: np.ndarray) -> _Passes:
    objective, batch = setup.objective, setup.examples.take(rows)

    def forward() -> None:
        with torch.no_grad():
            objective.logits(objective.theta, batch)

    forward_seconds = _timed(forward, objective) / len(rows)
    if not setup.can_sketch:
        return _Passes(forward_seconds, math.nan, can_capture=False)
    layers = blocked_layers(objective, batch)

    def capture() -> None:
        def directions(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            seed = setup.args.seed
            return LossAndCurvature.of(setup.curvature, batch, rows, seed, logits, labels).directions

        for _ in captures(objective, batch, layers, directions):
            pass

    return _Passes(forward_seconds, _timed(capture, objective) / len(rows), can_capture=True)


def _timed(work: Callable[[], None], objective: Objective) -> float:
    """Return the seconds of the second run, which needs no further memory from the system."""
    work()
    _synchronize(objective.space.device)
    start = time.perf_counter()
    work()
    _synchronize(objective.space.device)
    return time.perf_counter() - start


def _time_product(device: torch.device) -> float:
    """Return floating point operations per second."""
    matrix = torch.randn(PRODUCT, PRODUCT, device=device)
    matrix @ matrix
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(3):
        matrix @ matrix
    _synchronize(device)
    return 3 * 2 * PRODUCT**3 / (time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _index_cost(setup: SolverSetup, passes: _Passes, flops: float, count: int, rows: float, checkpoints: int) -> Cost:
    args = setup.args
    entries, directions = min(args.sketch_size, setup.objective.space.size), min(args.index_size, rows)
    size = min(entries, rows)
    bases = setup.at_most(args.ekfac_samples) * passes.captured * (1 + COVARIANCES)
    sweep = count * passes.captured * (1 + PROJECTION)
    curvature = (size * rows * entries + 2 * SUBSPACE_PASSES * size**2 * directions) / flops
    memory = 4 * (size**2 + 2 * entries * directions) + 2 * count * directions
    note = f"once; {2 * count * directions / 2**20:,.1f} MB on disk" + _times(checkpoints)
    return Cost("index", checkpoints * (bases + sweep + curvature), memory / 2**30, note)


def _query_cost(
    setup: SolverSetup, passes: _Passes, flops: float, num_queries: int, count: int, checkpoints: int
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
    setup: SolverSetup, passes: _Passes, flops: float, num_queries: int, count: int, checkpoints: int
) -> Cost:
    size = setup.objective.space.size
    one = 3 * passes.forward if math.isnan(passes.captured) else min(3 * passes.forward, passes.captured)
    seconds = count * (one + 2 * num_queries * size / flops)
    return Cost("scan with exact gradients", checkpoints * seconds, 4 * num_queries * size / 2**30, "s_test apart")


def _solver_costs(
    setup: SolverSetup, passes: _Passes, flops: float, num_queries: int, count: int, rank: float
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


def _times(checkpoints: int) -> str:
    return "" if checkpoints == 1 else f"; {checkpoints} checkpoints"
