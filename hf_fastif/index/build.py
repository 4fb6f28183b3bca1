"""Building an index: features of a dataset block by block, so that memory is bounded by a block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from hf_fastif.batches import ExampleBatches
from hf_fastif.config import InfluenceConfig
from hf_fastif.index.gradients import GradientFeatures
from hf_fastif.index.influence_index import InfluenceIndex
from hf_fastif.index.pooled import PooledFeatures
from hf_fastif.index.store import empty_index
from hf_fastif.passes import Passes
from hf_fastif.pieces import Pieces


Features = PooledFeatures | GradientFeatures
BLOCK = 1 << 28  # bytes of features at once
TRAINING = 50_000  # vectors at most that FAISS is trained on


def write_index(
    folder: Path,
    name: str,
    features: Features | np.ndarray,
    examples: ExampleBatches,
    args: InfluenceConfig,
    belongs: Mapping[str, str],
    passes: Passes,
    pieces: Pieces,
) -> None:
    """Computes the features of all examples and writes their index; the main process writes.

    Args:
        folder (`Path`): Of the index.
        name (`str`): Of the features.
        features (`Features` or `np.ndarray` of shape `(N, d)`): What is computed for an example, or your own.
        examples (`ExampleBatches`): The dataset.
        args ([`InfluenceConfig`]): FAISS factory, search and shards.
        belongs (`Mapping`): What the index will not be used without: model and dataset.
        passes (`Passes`): How the work is cut up.
        pieces (`Pieces`): Keeps what is finished.
    """
    own = isinstance(features, np.ndarray)
    width, count = features.shape[1] if own else features.size, len(examples)
    step = max(1, BLOCK // (4 * width))

    def values(rows: np.ndarray, name: str) -> np.ndarray:
        if own:
            return features[rows]
        return passes.over(examples, rows, width, features.of_batch, "Features", pieces, name)

    def sample() -> np.ndarray:
        rows = np.random.default_rng(args.seed).choice(count, min(count, TRAINING, step), replace=False)
        return values(np.sort(rows), "Sample")

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, count, step):
            yield values(np.arange(start, min(start + step, count)), f"Features-{start}")

    inner_product = not own and features.inner_product
    trained = empty_index(width, args.index_factory, inner_product, sample, args.index_search)
    manifest = {
        **belongs,
        "inner_product": inner_product,
        "factory": args.index_factory,
        "search": args.index_search,
        "shard_size": args.index_shard_size,
        "rows": count,
        "features": hashlib.blake2b(features, digest_size=8).hexdigest() if own else None,
    }
    if passes.accelerator.is_main_process:
        parts = features.parts if isinstance(features, GradientFeatures) else None
        InfluenceIndex.write(folder, name, trained, blocks(), manifest, parts)
    else:
        for _ in blocks():
            pass
    passes.accelerator.wait_for_everyone()
