"""Time a few passes and products, to foresee what an index takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hf_fastif.curvature import LossAndCurvature, capture_layers, covered_names, share_of_curvature
from hf_fastif.data import ExampleBatches
from hf_fastif.solvers import SolverSetup


TIMED = 8  # examples
SHORT = 1.0  # seconds
LISTED = 3  # names in a message
PRODUCT = 1024  # size of the matrices whose product is timed
SUBSPACE_PASSES = 6  # products of the curvature of the entries with all directions, to find the leading ones
PROJECTION = 0.6  # time of projecting gradients onto the entries, relative to the passes that yield them
COVARIANCES = 0.7  # time of the covariances of the bases, relative to those passes
LARGEST_SIDE = 8192  # of a matrix that is decomposed; longer ones are embeddings, whose inputs have no basis
DECOMPOSITION = 25  # operations of decomposing a matrix of n rows, relative to n^3


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


def in_words(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Passes:
    """Seconds an example: of a forward pass, and of one that captures all layers along the directions of an index."""

    forward: float
    captured: float
    can_capture: bool


def typical_rows(examples: ExampleBatches, size: int) -> np.ndarray:
    """Return the rows of a batch of median length."""
    batches = examples.grouped_by_length(np.arange(len(examples)), size)
    return batches[(len(batches) - 1) // 2]


def time_passes(setup: SolverSetup) -> Passes:
    """Time passes over a few training examples of typical length, at the checkpoint that is loaded."""
    rows = typical_rows(setup.examples, TIMED)
    objective, batch = setup.objective, setup.examples.take(rows)

    def forward() -> None:
        with torch.no_grad():
            objective.logits(objective.theta, batch)

    forward_seconds = _timed(forward, objective.space.device) / len(rows)
    if not setup.can_sketch:
        return Passes(forward_seconds, math.nan, can_capture=False)
    layers = setup.layers

    def capture() -> None:
        def directions(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            seed = setup.args.seed
            return LossAndCurvature.of(setup.curvature, batch, rows, seed, logits, labels).directions

        for _ in capture_layers(objective, batch, layers, directions):
            pass

    return Passes(forward_seconds, _timed(capture, objective.space.device) / len(rows), can_capture=True)


def _timed(work: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of some work; short work runs again, since the first run takes new memory."""
    seconds = _clocked(work, device)
    return seconds if seconds > SHORT else _clocked(work, device)


def _clocked(work: Callable[[], None], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - start


def time_product(device: torch.device) -> float:
    """Return floating point operations per second."""
    matrix = torch.ones(PRODUCT, PRODUCT, device=device)
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


def index_cost(setup: SolverSetup, passes: Passes, flops: float, checkpoints: int) -> Cost:
    """Return the cost of an index of the training set.

    Args:
        setup (`SolverSetup`): The setup of the checkpoint that is loaded.
        passes (`Passes`): Measured passes.
        flops (`float`): Floating point operations per second.
        checkpoints (`int`): The number of checkpoints.
    """
    if not passes.can_capture:
        return Cost(
            "index", math.nan, math.nan, "gradients of single examples, or their curvature, cannot be sketched"
        )
    args, count, first = setup.args, len(setup.examples), setup.examples.take([0])
    rows = count * LossAndCurvature.counts(setup.objective, first)[1]
    matrices = [layer.to_matrix(setup.objective.theta).shape for layer in setup.layers]
    sides = [side for matrix in matrices for side in matrix if side <= LARGEST_SIDE]
    decompositions = DECOMPOSITION * sum(side**3 for side in sides) / flops
    entries, directions = min(args.sketch_size, setup.objective.space.size), min(args.index_size, rows)
    size = min(entries, rows)
    bases = setup.index_samples * passes.captured * (1 + COVARIANCES)
    sweep = count * passes.captured * (1 + PROJECTION)
    curvature = (size * rows * entries + 2 * SUBSPACE_PASSES * size**2 * directions) / flops
    memory = 4 * (size**2 + 2 * entries * directions) + 2 * count * directions
    note = f"once; {2 * count * directions / 2**20:,.1f} MB on disk" + _times(checkpoints)
    return Cost("index", checkpoints * (bases + decompositions + sweep + curvature), memory / 2**30, note)


def _times(checkpoints: int) -> str:
    return "" if checkpoints == 1 else f"; {checkpoints} checkpoints"


def parameters_left_out(setup: SolverSetup) -> str:
    """Return a line on the trained parameters that an index leaves out, and their share of the curvature.

    It is empty if the index covers all parameters.
    """
    rows = typical_rows(setup.examples, TIMED)
    batch = setup.examples.take(rows)
    covered = covered_names(setup.layers)
    names = [name for name in setup.objective.theta if name not in covered]
    if not names:
        return ""
    share = share_of_curvature(setup.curvature, batch, rows, setup.args.seed, names)
    listed = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
    count = "1 trained parameter" if len(names) == 1 else f"{len(names)} trained parameters"
    return (
        f"The index leaves out {count}, whose gradients of single examples cannot be "
        f"captured: {listed}. Their share of the curvature is about {share:.0%}."
    )
