"""Feature vectors of a dataset, computed or read block by block, so that only one block is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import numpy as np

from hf_fastif.checkpoints import CheckpointSet
from hf_fastif.curvature import Sketch
from hf_fastif.data import ExampleBatches
from hf_fastif.execution import DatasetSweep, PartialResults
from hf_fastif.index.pooled import PooledFeatures
from hf_fastif.index.sketches import SketchFeatures, SketchFit


BLOCK = 1 << 28  # bytes of features in memory at once
TRAINING = 50_000  # maximum number of vectors that FAISS is trained on

Features = PooledFeatures | SketchFeatures


class Vectors(Protocol):
    """The feature matrix of a dataset.

    Attributes:
        count (`int`): Number of examples, N.
        width (`int`): Number of features per example, d.
        inner_product (`bool`): Whether features are compared by inner product; otherwise by L2 distance.
        sketches (`list[Sketch]`, *optional*): The sketch of each checkpoint; None for other features.
    """

    count: int
    width: int
    inner_product: bool
    sketches: list[Sketch] | None

    def blocks(self, first: int) -> Iterator[np.ndarray]:
        """Yield the features (n, d) of the rows from `first` onwards, one block at a time."""
        ...


@dataclass(frozen=True)
class CustomVectors:
    """Features that the user supplied, compared by L2 distance.

    Attributes:
        matrix (`np.ndarray` of shape `(N, d)`): The features.
    """

    matrix: np.ndarray

    inner_product = False
    sketches = None

    @property
    def count(self) -> int:
        """Number of examples, N."""
        return len(self.matrix)

    @property
    def width(self) -> int:
        """Number of features per example, d."""
        return self.matrix.shape[1]

    def blocks(self, first: int) -> Iterator[np.ndarray]:
        """Yield the features of the rows from `first` onwards."""
        yield self.matrix[first:]


@dataclass(frozen=True)
class ComputedVectors:
    """Features that are computed from the model.

    Attributes:
        features (`Sequence[Features]`): One extractor per checkpoint; outputs are concatenated.
        examples (`ExampleBatches`): The dataset, as the model sees it.
        checkpoints ([`CheckpointSet`]): The checkpoints at which features are computed.
        sweep (`DatasetSweep`): Divides a pass over the examples into batches and processes.
        partials (`PartialResults`): Stores finished parts, so that an interrupted build can resume.
    """

    features: Sequence[Features]
    examples: ExampleBatches
    checkpoints: CheckpointSet
    sweep: DatasetSweep
    partials: PartialResults

    @property
    def count(self) -> int:
        """Number of examples, N."""
        return len(self.examples)

    @property
    def width(self) -> int:
        """Number of features per example, d."""
        return sum(part.size for part in self.features)

    @property
    def inner_product(self) -> bool:
        """Whether features are compared by inner product."""
        return self.features[0].inner_product

    @property
    def sketches(self) -> list[Sketch] | None:
        """The sketch of each checkpoint; None for pooled features."""
        return [part.sketch for part in self.features] if self.inner_product else None

    def blocks(self, first: int) -> Iterator[np.ndarray]:
        """Yield the features of the rows from `first` onwards."""
        size = max(1, BLOCK // (4 * self.width))
        for start in range(first, self.count, size):
            yield self._of(np.arange(start, min(start + size, self.count)), f"Features-{start}")

    def _of(self, rows: np.ndarray, name: str) -> np.ndarray:
        matrix, end = np.empty((len(rows), self.width), dtype=np.float32), 0
        for number, part in enumerate(self.features):
            start, end = end, end + part.size
            with self.checkpoints.at(number):
                compute, title = part.of_batch, f"{name}-{number}"
                columns = self.sweep.over(self.examples, rows, part.size, compute, "Features", self.partials, title)
                matrix[:, start:end] = columns
        return matrix


@dataclass(frozen=True)
class FittedVectors:
    """Coordinates of the training examples in the sketches that are fitted to them.

    Attributes:
        fits (`Sequence[SketchFit]`): The fit at each checkpoint.
        checkpoints ([`CheckpointSet`]): The checkpoints.
        count (`int`): Number of training examples, N.
    """

    fits: Sequence[SketchFit]
    checkpoints: CheckpointSet
    count: int

    inner_product = True

    @cached_property
    def sketches(self) -> list[Sketch]:
        """The sketch of each checkpoint, fitted when first asked for."""
        sketches = []
        for number, fit in enumerate(self.fits):
            with self.checkpoints.at(number):
                sketches.append(fit.fit())
        return sketches

    @property
    def width(self) -> int:
        """Number of features per example, d."""
        return sum(sketch.size for sketch in self.sketches)

    def blocks(self, first: int) -> Iterator[np.ndarray]:
        """Yield the features of all rows; `first` must be 0, since the fit covers the training set."""
        by_checkpoint = [
            fit.features(sketch, partial(self.checkpoints.at, number))
            for number, (fit, sketch) in enumerate(zip(self.fits, self.sketches, strict=True))
        ]
        for parts in zip(*by_checkpoint, strict=True):
            yield np.concatenate(parts, axis=1)


def training_sample(vectors: Vectors, seed: int) -> np.ndarray:
    """Return the features of randomly drawn rows, at most one block of them, to train FAISS on."""
    size = min(vectors.count, TRAINING, max(1, BLOCK // (4 * vectors.width)))
    rows = np.sort(np.random.default_rng(seed).choice(vectors.count, size, replace=False))
    parts, start = [], 0
    for block in vectors.blocks(0):
        parts.append(block[rows[(rows >= start) & (rows < start + len(block))] - start])
        start += len(block)
    return np.concatenate(parts)
