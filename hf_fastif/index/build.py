"""Build an index: compute the features of a dataset block by block, so that only one block is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_fastif.artifacts import versions
from hf_fastif.checkpoints import CheckpointSet
from hf_fastif.config import InfluenceConfig
from hf_fastif.data import ExampleBatches, hexdigest
from hf_fastif.execution import DatasetSweep, PartialResults, from_main
from hf_fastif.index.gradients import GradientFeatures, Part
from hf_fastif.index.influence_index import InfluenceIndex
from hf_fastif.index.pooled import PooledFeatures
from hf_fastif.index.store import made_index, train_index


Features = PooledFeatures | GradientFeatures
BLOCK = 1 << 28  # bytes of features in memory at once
TRAINING = 50_000  # maximum number of vectors that FAISS is trained on


@dataclass(frozen=True)
class Vectors:
    """Feature matrix of a dataset, computed lazily or supplied by the user.

    Attributes:
        features (`Sequence[Features]` or `np.ndarray` of shape `(N, d)`): One extractor per checkpoint (outputs are
            concatenated), or an array.
        examples (`ExampleBatches`): The dataset, as the model sees it.
        checkpoints ([`CheckpointSet`]): The checkpoints at which features are computed.
        sweep (`DatasetSweep`): Divides a pass over the examples into batches and processes.
        partials (`PartialResults`): Stores finished parts, so that an interrupted build can resume.
    """

    features: Sequence[Features] | np.ndarray
    examples: ExampleBatches
    checkpoints: CheckpointSet
    sweep: DatasetSweep
    partials: PartialResults

    @property
    def is_custom(self) -> bool:
        """Whether the user supplied the features."""
        return isinstance(self.features, np.ndarray)

    @property
    def width(self) -> int:
        """Number of features per example, d."""
        return self.features.shape[1] if self.is_custom else sum(part.size for part in self.features)

    @property
    def inner_product(self) -> bool:
        """Whether features are compared by inner product; otherwise by L2 distance."""
        return not self.is_custom and self.features[0].inner_product

    @property
    def parts(self) -> list[list[Part]] | None:
        """Gradient entries that the features consist of, for each checkpoint; None for other features."""
        if self.is_custom or not self.inner_product:
            return None
        return [features.parts for features in self.features]

    @property
    def block(self) -> int:
        """Number of rows per block."""
        return max(1, BLOCK // (4 * self.width))

    def of(self, rows: np.ndarray, name: str) -> np.ndarray:
        """Return the features (k, d) of the given rows; `name` identifies them among the partial results."""
        if self.is_custom:
            return self.features[rows]
        matrix, end = np.empty((len(rows), self.width), dtype=np.float32), 0
        for number, part in enumerate(self.features):
            start, end = end, end + part.size
            with self.checkpoints.at(number):
                compute, title = part.of_batch, f"{name}-{number}"
                columns = self.sweep.over(self.examples, rows, part.size, compute, "Features", self.partials, title)
                matrix[:, start:end] = columns
        return matrix

    def sample(self, seed: int) -> np.ndarray:
        """Return the features of at most one block of randomly drawn rows, to train FAISS on."""
        count = len(self.examples)
        rows = np.random.default_rng(seed).choice(count, min(count, TRAINING, self.block), replace=False)
        return self.of(np.sort(rows), "Sample")

    def blocks(self, first: int) -> Iterator[np.ndarray]:
        """Yield the features of the rows from `first` onwards, one block at a time."""
        count = len(self.examples)
        for start in range(first, count, self.block):
            yield self.of(np.arange(start, min(start + self.block, count)), f"Features-{start}")


def write_index(
    folder: Path,
    name: str,
    vectors: Vectors,
    args: InfluenceConfig,
    belongs: Mapping[str, Any],
    add_to: InfluenceIndex | None = None,
) -> None:
    """Compute the features of all examples and write their index; only the main process writes.

    If the folder already holds an index built with the same model, dataset and settings, nothing is computed, unless
    `args.overwrite` is set or `add_to` is given.

    Args:
        folder (`Path`): The folder of the index.
        name (`str`): The kind of features.
        vectors (`Vectors`): The features.
        args ([`InfluenceConfig`]): FAISS factory and search parameters, shard size and seed.
        belongs (`Mapping`): Digests of the model, dataset and loss that the index is valid for, and their provenance.
        add_to ([`InfluenceIndex`], *optional*): An index of the first rows, whose vectors are reused.

    Raises:
        InfluenceError: If FAISS rejects the factory or search string, or needs more vectors for training.
    """
    manifest = {
        **belongs,
        "inner_product": vectors.inner_product,
        "factory": args.index_factory,
        "search": args.index_search,
        "shard_size": args.index_shard_size,
        "rows": len(vectors.examples),
        "features": hexdigest([vectors.features]) if vectors.is_custom else None,
        "versions": versions(),
    }
    accelerator = vectors.sweep.accelerator
    if not args.overwrite and add_to is None:
        if from_main(lambda: InfluenceIndex.is_written(folder, name, manifest, vectors.parts), accelerator):
            return
    if add_to is None:
        empty, first = made_index(vectors.width, args.index_factory, vectors.inner_product, args.index_search), 0
        if not empty.is_trained:
            sample = vectors.sample(args.seed)
            from_main(lambda: train_index(empty, args.index_factory, sample), accelerator)
    else:
        empty, first = add_to.emptied() if accelerator.is_main_process else None, len(add_to)
        manifest |= {setting: add_to.manifest[setting] for setting in ("factory", "search")}
    blocks = vectors.blocks(first)
    if accelerator.is_main_process:
        InfluenceIndex.write(folder, name, empty, blocks, manifest, vectors.parts, add_to)
    else:
        for _ in blocks:
            pass
    accelerator.wait_for_everyone()
