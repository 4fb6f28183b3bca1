"""Digest models, datasets and losses by their contents, so that equal ones compare equal whatever their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash
from datasets import Dataset


CHUNK_BYTES = 64 << 20  # of a dataset hashed at once, which bounds the memory used
MAX_CHUNK_ROWS = 10_000
SAMPLED_ROWS = 16  # whose collated batch is part of a dataset's digest
TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


def hexdigest(values: Iterable[torch.Tensor | np.ndarray | bytes | str | int | float | bool | None]) -> str:
    """Return a short digest of some values in their order, the same in every process.

    Tensors and arrays are digested by dtype, shape and bytes, byte strings by their bytes, other values by their
    `repr`.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    digest = xxhash.xxh3_128()
    for value in values:
        if isinstance(value, torch.Tensor):
            kind, content = f"{value.dtype}{tuple(value.shape)}", tensor_bytes(value)
        elif isinstance(value, np.ndarray):
            kind = f"{value.dtype}{value.shape}"
            content = np.ascontiguousarray(value).view(np.uint8) if value.size else b""
        else:
            kind, content = "", value if isinstance(value, bytes) else repr(value).encode()
        digest.update(f"{kind}:{len(content)}:".encode())  # the length keeps ("1", "11") and ("11", "1") apart
        digest.update(content)
    return digest.hexdigest()[:16]


def tensor_bytes(tensor: torch.Tensor) -> np.ndarray:
    """Return the bytes of a tensor as an array, without a copy if it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0)


def stored_digest(dataset: Dataset) -> str:
    """Return a digest of the stored rows of a dataset and their order, however it was loaded.

    The width of integers, the size of chunks, and formats or transforms make no difference.
    """
    columns = _ColumnDigests()
    for table in dataset.with_format("arrow").iter(batch_size=_chunk_rows(dataset)):
        for name in table.column_names:
            columns.add(table[name], name)
    return columns.hexdigest()


def stored_rows(dataset: Dataset) -> Iterator[str]:
    """Yield a digest of each stored row of a dataset; formats and transforms make no difference."""
    for table in dataset.with_format("arrow").iter(batch_size=_chunk_rows(dataset)):
        for row in table.select(sorted(table.column_names)).to_pylist():
            yield hexdigest([str(row)])


def _chunk_rows(dataset: Dataset) -> int:
    row_bytes = dataset.data.nbytes / max(1, dataset.data.num_rows)
    return int(np.clip(CHUNK_BYTES / max(1.0, row_bytes), 1, MAX_CHUNK_ROWS))


class _ColumnDigests:
    """Digests of the flat buffers of columns, by the path of each buffer within its column.

    Columns may be added in chunks of any size.
    """

    def __init__(self) -> None:
        self._digests: dict[str, xxhash.xxh3_128] = {}
        self._counts: Counter[str] = Counter()

    def hexdigest(self) -> str:
        return hexdigest(part for place in sorted(self._digests) for part in (place, self._digests[place].digest()))

    def add(self, column: pa.Array | pa.ChunkedArray, place: str) -> None:
        """Add the next values of a column."""
        for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            self._add_array(chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk, place)

    def _add_array(self, column: pa.Array, place: str) -> None:
        kind = column.type
        if column.null_count:
            nulls = np.flatnonzero(pc.is_null(column).to_numpy(zero_copy_only=False))
            self._update(f"{place}?", nulls + self._counts[place])
        self._counts[place] += len(column)
        if pa.types.is_fixed_size_list(kind):
            column = column.cast(pa.large_list(kind.value_type))
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            self._update(f"{place}#", pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64))
            self.add(pc.list_flatten(column), f"{place}[]")
        elif pa.types.is_struct(kind):
            for number, values in enumerate(column.flatten()):
                self.add(values, f"{place}.{kind.field(number).name}")
        elif pa.types.is_boolean(kind) or pa.types.is_integer(kind):
            whole = pc.fill_null(column, pa.scalar(0, kind) if pa.types.is_integer(kind) else False)
            self._update(place, whole.to_numpy(zero_copy_only=False).astype(np.int64))
        elif pa.types.is_floating(kind):
            values = pc.fill_null(column, pa.scalar(0.0, kind)).to_numpy(zero_copy_only=False)
            self._update(f"{place}:{values.dtype}", values)
        elif any(is_kind(kind) for is_kind in TEXTS):
            self._add_bytes(column.cast(pa.large_binary()), place)
        else:
            self._update(place, repr(column.to_pylist()).encode())

    def _add_bytes(self, column: pa.Array, place: str) -> None:
        column = pc.fill_null(column, b"")
        self._update(f"{place}#", pc.binary_length(column).to_numpy().astype(np.int64))
        self._update(place, b"".join(column.to_pylist()))

    def _update(self, place: str, content: bytes | np.ndarray) -> None:
        data = content if isinstance(content, bytes) else np.ascontiguousarray(content).view(np.uint8)
        self._digests.setdefault(place, xxhash.xxh3_128()).update(data)


def batch_digest(batch: Mapping[str, Any]) -> str:
    """Return a digest of a collated batch, which is what the model sees."""
    return hexdigest(part for name in sorted(batch) for part in (name, batch[name]))
