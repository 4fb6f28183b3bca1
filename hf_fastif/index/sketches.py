"""Fit the sketch of a checkpoint to the training set, in one sweep, and use its coordinates as features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from accelerate.utils import tqdm

from hf_fastif.curvature import (
    DirectionEntries,
    Entries,
    LossAndCurvature,
    SecondMoment,
    Sketch,
    leading_entries,
)
from hf_fastif.execution import Columns, DatasetSweep, PartialResults, Tensors, from_main, shard_for_rank
from hf_fastif.model import Batch, Objective
from hf_fastif.solvers import SolverSetup


BLOCK = 1 << 26  # bytes of entries that are computed and written together
LARGEST = torch.finfo(torch.float16).max

Loaded = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class SketchFeatures:
    """Extractor of the coordinates of loss gradients in a sketch, which are compared by inner product.

    Each coordinate is divided by the root of its eigenvalue and that of s_test multiplied by it, so that all are of
    similar size and an index that rounds its vectors rounds them alike.

    Attributes:
        objective (`Objective`): The loss.
        sketch ([`Sketch`]): The sketch.
    """

    objective: Objective
    sketch: Sketch

    inner_product = True

    @property
    def size(self) -> int:
        """Number of features per example."""
        return self.sketch.size

    @property
    def scales(self) -> torch.Tensor:
        """The size (r,) of each coordinate."""
        return self.sketch.eigenvalues.sqrt()

    def of_batch(self, batch: Batch) -> torch.Tensor:
        """Compute the features (B, size) of a batch, with one forward and one backward pass."""
        return self.of_coordinates(self.sketch.of_losses(self.objective, batch))

    def of_coordinates(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Return the features (B, size) of examples, given their coordinates."""
        # The gradient of a confident mistake far exceeds the curvature there, and may exceed half precision.
        return (coordinates / self.scales).clamp(-LARGEST, LARGEST)

    def of_vectors(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the features (Q, size) of s_test (Q, P).

        Their negative inner product with the features of an example is its score, restricted to the sketch.
        """
        return self.sketch.of_vectors(self.objective.space, vectors) * self.scales


@dataclass
class SketchFit:
    """A fit of a sketch to the training set, at the checkpoint that is currently loaded.

    One sweep computes the entries of each example's gradient and Jacobian rows, and writes them block by block. The
    curvature of the entries and the coordinates of the examples are computed from these blocks. The choice of entries
    is written too: fitted again, their basis might have other signs.

    Attributes:
        setup (`SolverSetup`): Curvature, training set, settings and Kronecker factors.
        sweep (`DatasetSweep`): Divides the sweep into batches and processes.
        partials (`PartialResults`): Stores the blocks, so that an interrupted fit can resume.
        name (`str`): The name of the fit among the partial results.
    """

    setup: SolverSetup
    sweep: DatasetSweep
    partials: PartialResults
    name: str

    def fit(self) -> Sketch:
        """Fit the sketch, while the checkpoint is loaded."""
        args, accelerator, entries = self.setup.args, self.sweep.accelerator, self._entries
        moment = SecondMoment(entries.size, accelerator.device)
        local = shard_for_rank(range(len(self._blocks)), accelerator)
        for number, values in enumerate(self._values("Index: gradients", nullcontext)):
            if number in local:
                moment.add(values.curvature_rows())
        moment = moment.reduced(accelerator)
        with self.sweep.bar(1, "Index: directions of most curvature"):
            values, basis = from_main(lambda: moment.leading(args.index_size, args.seed), accelerator)
        values = values.to(accelerator.device) / len(self.setup.examples)
        return Sketch(entries, basis.to(accelerator.device), values)

    def features(self, sketch: Sketch, loaded: Loaded) -> Iterator[np.ndarray]:
        """Yield the features (n, r) of the training examples, block by block.

        Args:
            sketch ([`Sketch`]): The return value of `fit`.
            loaded (`Callable`): Loads the checkpoint, for a block that was deleted and is computed again.
        """
        features = SketchFeatures(self.setup.objective, sketch)
        for values in self._values("Index: features", loaded):
            yield features.of_coordinates(values.losses() @ sketch.basis).cpu().numpy()

    @cached_property
    def _entries(self) -> Entries:
        setup = self.setup

        def choose() -> Tensors:
            return leading_entries(setup.kronecker_bases(), setup.args.sketch_size).to_tensors()

        return Entries.from_tensors(setup.layers, self.partials.get(f"{self.name}-entries", choose))

    @cached_property
    def _columns(self) -> Columns:
        first = self.setup.examples.take([0])
        counts = LossAndCurvature.counts(self.setup.objective, first)
        return DirectionEntries.columns(self._entries.size, *counts)

    @cached_property
    def _blocks(self) -> list[np.ndarray]:
        """The rows of each block, the same at all checkpoints."""
        num_directions, _ = self._columns["entries"][0]
        size = min(self.setup.args.sketch_size, self.setup.objective.space.size)
        block = max(1, BLOCK // (2 * num_directions * size))
        rows = np.arange(len(self.setup.examples))
        return [rows[start : start + block] for start in range(0, len(rows), block)]

    def _values(self, title: str, loaded: Loaded) -> Iterator[DirectionEntries]:
        """Yield the entries of the rows of each block, in their order."""
        batches = [self.setup.examples.places_by_length(rows, self.sweep.batch_size) for rows in self._blocks]
        finished = 0
        with self.sweep.bar(sum(map(len, batches)), title) as bar:
            for number, rows in enumerate(self._blocks):
                compute = partial(self._compute, rows, batches[number], bar, loaded)
                yield DirectionEntries(**self.partials.get(f"{self.name}-{number}", compute))
                finished += len(batches[number])
                bar.n = finished
                bar.refresh()

    def _compute(self, rows: np.ndarray, batches: list[np.ndarray], bar: tqdm, loaded: Loaded) -> Tensors:
        with loaded():
            columns = self.sweep.columns_of(self.setup.examples, rows, batches, self._columns, self._of_batch, bar)
        order = torch.from_numpy(np.argsort(np.concatenate(batches))).to(columns["entries"].device)
        return {name: values[order] for name, values in columns.items()}

    def _of_batch(self, batch: Batch, rows: np.ndarray) -> Tensors:
        curvature, seed = self.setup.curvature, self.setup.args.seed
        return self._entries.of_losses_and_curvature(curvature, batch, rows, seed).to_tensors()
