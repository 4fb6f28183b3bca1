"""FAISS indexes: made, filled, searched at both ends, and kept in shards that may stay on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np

from hf_fastif.artifacts import atomic_write
from hf_fastif.errors import InfluenceError


def made_index(size: int, factory: str, inner_product: bool, search: str | None) -> faiss.Index:
    """What `faiss.index_factory` makes, neither trained nor filled.

    Args:
        size (`int`): Numbers in a vector.
        factory (`str`): Such as `"Flat"`, `"SQfp16"` (half the memory), `"IVF256,Flat"`, `"HNSW32"`, `"IVF256,PQ32"`.
        inner_product (`bool`): Whether vectors are compared by inner product; else by L2 distance.
        search (`str`, *optional*): Parameters of the search, such as `"nprobe=16"`; they are saved with the index.

    Raises:
        ValueError: If FAISS does not know the factory string or the parameters.
    """
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    with _named(f"index_factory={factory!r}, index_search={search!r}, vectors of {size} numbers"):
        index = faiss.index_factory(size, factory, metric)
        if search is not None:
            faiss.ParameterSpace().set_index_parameters(index, search)
    return index


def train_index(index: faiss.Index, factory: str, vectors: np.ndarray) -> None:
    """Trains an index of that factory, in place, on vectors (n, size) drawn from those to come.

    Raises:
        ValueError: If the sample is too small.
    """
    with _named(f"index_factory={factory!r}, trained on {len(vectors)} vectors"):
        index.train(np.ascontiguousarray(vectors, dtype=np.float32))


def on_device(index: faiss.Index, device: int | None) -> faiss.Index:
    """The index on a GPU, or as it is for None.

    Raises:
        ValueError: If FAISS sees no such GPU.
    """
    if device is None:
        return index
    seen = faiss.get_num_gpus()
    if device >= seen:
        raise InfluenceError(
            f"index_device={device}: FAISS sees {seen} GPUs; give None to search on the CPU, or install faiss-gpu."
        )
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device, index)


def write_shards(folder: Path, trained: faiss.Index, blocks: Iterable[np.ndarray], shard_size: int) -> None:
    """Adds vectors, given block by block, and writes a file for every `shard_size` of them.

    Files that are there already stay, and the new ones follow them: that is how an index is added to.
    """
    first = len(shard_files(folder))
    shard, number = faiss.clone_index(trained), first
    for block in blocks:
        while len(block):
            fitting = shard_size - shard.ntotal
            shard.add(np.ascontiguousarray(block[:fitting], dtype=np.float32))
            block = block[fitting:]
            if shard.ntotal == shard_size:
                _write(folder, number, shard)
                shard, number = faiss.clone_index(trained), number + 1
    if shard.ntotal or number == first:
        _write(folder, number, shard)


def read_shards(folder: Path, on_disk: bool = False) -> faiss.Index:
    """The index whose shards lie in a folder; `on_disk` leaves the vectors in the files and maps them.

    Shards are searched one after the other and their answers merged; rows are numbered through.
    """
    shards = [read_shard(file, on_disk) for file in shard_files(folder)]
    if len(shards) == 1:
        return shards[0]
    whole = faiss.IndexShards(shards[0].d, False, True)
    for shard in shards:
        whole.add_shard(shard)
    whole.own_indices = True
    for shard in shards:
        shard.this.disown()
    return whole


def read_shard(file: Path, on_disk: bool = False) -> faiss.Index:
    """Reads one file, which may be damaged, or somebody else's.

    Raises:
        ValueError: If FAISS cannot read it.
    """
    # A file may name another one, for lists that stay on disk; then it must be one beside it.
    flags = faiss.IO_FLAG_ONDISK_SAME_DIR | (faiss.IO_FLAG_MMAP_IFC if on_disk else 0)
    before = faiss.get_deserialization_loop_limit(), faiss.get_deserialization_vector_byte_limit()
    most = 2 * file.stat().st_size + (1 << 20)  # what it can hold; lengths in a damaged file may be any number
    faiss.set_deserialization_loop_limit(most)
    faiss.set_deserialization_vector_byte_limit(most)
    try:
        with _named(f"{file} cannot be read"):
            return faiss.read_index(str(file), flags)
    finally:
        faiss.set_deserialization_loop_limit(before[0])
        faiss.set_deserialization_vector_byte_limit(before[1])


def shard_files(folder: Path) -> list[Path]:
    """The files of an index, in the order of their rows."""
    return sorted(folder.glob("shard-*.faiss"))


def search_both_ends(index: faiss.Index, queries: np.ndarray, k: int) -> np.ndarray:
    """The rows (Q, k) with the largest and with the smallest inner product with each query, in turns.

    Helpful and harmful examples lie at opposite ends of an inner product, and one end is often the stronger one: half
    of k for each end finds the strongest of both. Where an index finds too few, -1 fills the rest.
    """
    ends = index.search(queries, k)[1], index.search(-queries, k)[1]
    found = np.full((len(queries), k), -1, dtype=np.int64)
    for query, rows in enumerate(np.stack(ends, axis=2).reshape(len(queries), -1)):
        first = np.sort(np.unique(rows, return_index=True)[1])  # a row may be found at both ends
        rows = rows[first][rows[first] >= 0][:k]
        found[query, : len(rows)] = rows
    return found


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Says what FAISS was asked for when it refuses."""
    try:
        yield
    except RuntimeError as error:
        raise InfluenceError(f"{what}: {str(error).strip().splitlines()[-1]}") from error


def _write(folder: Path, number: int, shard: faiss.Index) -> None:
    atomic_write(folder / f"shard-{number:05d}.faiss", lambda file: faiss.write_index(shard, str(file)))
