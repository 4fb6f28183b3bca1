"""Create, fill and search FAISS indexes, which are stored in shards that may stay on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import torch

from hf_fastif.artifacts import atomic_write
from hf_fastif.errors import InfluenceError


BLOCK = 1 << 24  # bytes of vectors that are read at once; the allocator reuses blocks of this size


def made_index(size: int, factory: str, inner_product: bool, search: str | None) -> faiss.Index:
    """Return an index of `faiss.index_factory`, neither trained nor filled.

    Args:
        size (`int`): The length of a vector.
        factory (`str`): A factory string: `"Flat"`, `"SQfp16"` (half the memory), `"IVF256,Flat"`, `"HNSW32"`, ...
        inner_product (`bool`): Whether vectors are compared by inner product; otherwise by L2 distance.
        search (`str`, *optional*): Search parameters such as `"nprobe=16"`; they are saved with the index.

    Raises:
        InfluenceError: If FAISS does not know the factory string or the parameters.
    """
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    with _faiss_errors(f"index_factory={factory!r}, index_search={search!r}, vectors of {size} numbers"):
        index = faiss.index_factory(size, factory, metric)
        if search is not None:
            faiss.ParameterSpace().set_index_parameters(index, search)
    return index


def train_index(index: faiss.Index, factory: str, vectors: np.ndarray) -> None:
    """Train an index in place on a sample (n, d) of the vectors that it will hold.

    Raises:
        InfluenceError: If the sample is too small for the factory.
    """
    with _faiss_errors(f"index_factory={factory!r}, trained on {len(vectors)} vectors"):
        index.train(np.ascontiguousarray(vectors, dtype=np.float32))


def on_device(index: faiss.Index, device: int | None) -> faiss.Index:
    """Return a copy of the index on a GPU, or the index itself if `device` is None.

    Raises:
        InfluenceError: If FAISS sees no such GPU.
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
    """Write blocks of vectors into one file per `shard_size` vectors.

    Existing shards stay and the new ones follow them, which extends an index.
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
    """Read the index whose shards are in a folder; `on_disk` memory-maps the vectors instead of loading them.

    A search visits one shard after the other and merges the results; rows are numbered across shards.
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
    """Read one shard; the file may be damaged or come from an untrusted source.

    Raises:
        InfluenceError: If FAISS cannot read it.
    """
    # A file may refer to another one, for inverted lists that stay on disk; this flag confines it to the same folder.
    flags = faiss.IO_FLAG_ONDISK_SAME_DIR | (faiss.IO_FLAG_MMAP_IFC if on_disk else 0)
    before = faiss.get_deserialization_loop_limit(), faiss.get_deserialization_vector_byte_limit()
    limit = 2 * file.stat().st_size + (1 << 20)  # a damaged file may declare lengths that exhaust the memory
    faiss.set_deserialization_loop_limit(limit)
    faiss.set_deserialization_vector_byte_limit(limit)
    try:
        with _faiss_errors(f"{file} cannot be read"):
            return faiss.read_index(str(file), flags)
    finally:
        faiss.set_deserialization_loop_limit(before[0])
        faiss.set_deserialization_vector_byte_limit(before[1])


def shard_files(folder: Path) -> list[Path]:
    """List the shards in a folder, in the order of their rows."""
    return sorted(folder.glob("shard-*.faiss"))


def shards_of(index: faiss.Index) -> list[faiss.Index]:
    """Return the shards of an index that `read_shards` returned, in the order of their rows."""
    if not isinstance(index, faiss.IndexShards):
        return [index]
    return [faiss.downcast_index(index.at(number)) for number in range(index.count())]


def vector_blocks(index: faiss.Index) -> Iterator[torch.Tensor]:
    """Yield the vectors (n, d) of all rows as float32, a block at a time."""
    size = max(1, BLOCK // (4 * index.d))
    for shard in shards_of(index):
        for start in range(0, shard.ntotal, size):
            yield _read_vectors(shard, start, min(start + size, shard.ntotal))


def inner_products(index: faiss.Index, queries: np.ndarray) -> torch.Tensor:
    """Compute the inner products (Q, N) of queries (Q, d) with the vectors of all rows."""
    queries = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32))
    products, start = torch.empty(len(queries), index.ntotal), 0
    for vectors in vector_blocks(index):
        torch.matmul(queries, vectors.T, out=products[:, start : start + len(vectors)])
        start += len(vectors)
    return products


def search_both_ends(index: faiss.Index, queries: np.ndarray, k: int) -> np.ndarray:
    """Return the rows (Q, k) with the largest and the smallest inner product with each query, alternating.

    Helpful and harmful examples are at opposite ends of the inner product. One end is often stronger than the other,
    so each gets half of k. If an approximate index returns fewer rows, the rest are -1.
    """
    if _is_exhaustive(index):  # both ends come from one pass over the vectors
        products = inner_products(index, queries)
        ends = [products.topk(k, largest=largest).indices.numpy() for largest in (True, False)]
    else:
        ends = [index.search(signed, k)[1] for signed in (queries, -queries)]
    nearest = np.full((len(queries), k), -1, dtype=np.int64)
    for query, rows in enumerate(np.stack(ends, axis=2).reshape(len(queries), -1)):
        first = np.sort(np.unique(rows, return_index=True)[1])  # both ends may return the same row
        rows = rows[first][rows[first] >= 0][:k]
        nearest[query, : len(rows)] = rows
    return nearest


def _read_vectors(shard: faiss.Index, start: int, stop: int) -> torch.Tensor:
    if isinstance(shard, faiss.IndexScalarQuantizer) and shard.sq.qtype == faiss.ScalarQuantizer.QT_fp16:
        # torch decodes them several times faster than FAISS.
        halves = faiss.rev_swig_ptr(shard.codes.data(), shard.codes.size()).view(np.float16)
        return torch.from_numpy(halves).view(-1, shard.d)[start:stop].float()
    return torch.from_numpy(shard.reconstruct_n(start, stop - start))


def _is_exhaustive(index: faiss.Index) -> bool:
    """Tell whether a search on the CPU compares the query with every vector."""
    return all(isinstance(shard, faiss.IndexFlat | faiss.IndexScalarQuantizer) for shard in shards_of(index))


@contextmanager
def _faiss_errors(prefix: str) -> Iterator[None]:
    """Raise the errors of FAISS as InfluenceErrors that begin with `prefix`."""
    try:
        yield
    except RuntimeError as error:
        raise InfluenceError(f"{prefix}: {str(error).strip().splitlines()[-1]}") from error


def _write(folder: Path, number: int, shard: faiss.Index) -> None:
    atomic_write(folder / f"shard-{number:05d}.faiss", lambda file: faiss.write_index(shard, str(file)))
