"""Building an index: features of a dataset block by block, so that memory is bounded by a block."""

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
BLOCK = 1 << 28  # bytes of features at once
TRAINING = 50_000  # vectors at most that FAISS is trained on


@dataclass(frozen=True)
class Vectors:
    """The features of all examples of a dataset: computed when they are asked for, or brought by the user.

    Attributes:
        features (`Sequence[Features]` or `np.ndarray` of shape `(N, d)`): What is computed for an example at each
            checkpoint, one behind the other; or what there is.
        examples (`ExampleBatches`): The dataset.
        checkpoints ([`CheckpointSet`]): Where features are computed.
        passes (`DatasetSweep`): How the work is cut up.
        pieces (`PartialResults`): Keeps what is finished.
    """

    features: Sequence[Features] | np.ndarray
    examples: ExampleBatches
    checkpoints: CheckpointSet
    sweep: DatasetSweep
    partials: PartialResults

    @property
    def own(self) -> bool:
        """Whether the user brought them."""
        return isinstance(self.features, np.ndarray)

    @property
    def width(self) -> int:
        """Numbers an example."""
        return self.features.shape[1] if self.own else sum(part.size for part in self.features)

    @property
    def inner_product(self) -> bool:
        """Whether they are compared by inner product; else by L2 distance."""
        return not self.own and self.features[0].inner_product

    @property
    def parts(self) -> list[list[Part]] | None:
        """Which entries of gradients they are, for each checkpoint."""
        if self.own or not self.inner_product:
            return None
        return [features.parts for features in self.features]

    @property
    def block(self) -> int:
        """Rows at once."""
        return max(1, BLOCK // (4 * self.width))

    def of(self, rows: np.ndarray, name: str) -> np.ndarray:
        """The features (k, width) of some rows."""
        if self.own:
            return self.features[rows]
        found, end = np.empty((len(rows), self.width), dtype=np.float32), 0
        for number, part in enumerate(self.features):
            start, end = end, end + part.size
            with self.checkpoints.at(number):
                compute, title = part.of_batch, f"{name}-{number}"
                over = self.sweep.over(self.examples, rows, part.size, compute, "Features", self.partials, title)
                found[:, start:end] = over
        return found

    def sample(self, seed: int) -> np.ndarray:
        """Those of random rows, no more than a block."""
        count = len(self.examples)
        rows = np.random.default_rng(seed).choice(count, min(count, TRAINING, self.block), replace=False)
        return self.of(np.sort(rows), "Sample")

    def blocks(self, first: int) -> Iterator[np.ndarray]:
        """Those of all rows from `first` on, block by block."""
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
    """Computes the features of all examples and writes their index; the main process writes.

    An index there that was made in the same way stays, and nothing is computed.

    Args:
        folder (`Path`): Of the index.
        name (`str`): Of the features.
        vectors (`Vectors`): The features.
        args ([`InfluenceConfig`]): FAISS factory, search and shards.
        belongs (`Mapping`): Model and dataset, without which the index will not be used, and where they are from.
        add_to ([`InfluenceIndex`], *optional*): Of the first rows, which are not computed again.
    """
    manifest = {
        **belongs,
        "inner_product": vectors.inner_product,
        "factory": args.index_factory,
        "search": args.index_search,
        "shard_size": args.index_shard_size,
        "rows": len(vectors.examples),
        "features": hexdigest([vectors.features]) if vectors.own else None,
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
