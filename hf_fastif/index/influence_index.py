"""Save, load, search, attach and publish an index: `InfluenceIndex`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import faiss
import numpy as np
import torch
from datasets import Dataset
from datasets.search import FaissIndex
from huggingface_hub import CommitInfo
from safetensors import safe_open
from safetensors.torch import save_file

from hf_fastif.artifacts import (
    CardSection,
    PushOptions,
    atomic_folder,
    check_files,
    describe_files,
    differences,
    fetch,
    read_manifest,
    reading,
)
from hf_fastif.curvature import PART_TENSORS, Entries, Part, Sketch, layers_from_json, layers_to_json
from hf_fastif.errors import InfluenceError, NotFoundError
from hf_fastif.index.publish import MANIFEST, push_index
from hf_fastif.index.store import (
    inner_products,
    on_device,
    read_shard,
    read_shards,
    search_both_ends,
    shard_files,
    vector_blocks,
    write_shards,
)


SKETCHES = "sketches.safetensors"
MANIFEST_TYPES = {
    "name": str,
    "model": str,
    "dataset": str,
    "model_name": str,
    "base_model": str | None,
    "datasets": list,
    "versions": dict,
    "inner_product": bool,
    "factory": str,
    "search": str | None,
    "rows": int,
}


@dataclass
class InfluenceIndex:
    """A nearest-neighbour index over the rows of one dataset, built with one model.

    Attributes:
        name (`str`): The kind of its features: `"gradient_sketch"`, `"pooled"`, `"mean_pooled"`, or `"own"` if the
            user supplied them.
        faiss_index (`faiss.Index`): The vectors.
        manifest (`dict`): Digests of the model and dataset that it was built with, sizes, settings and files.
        folder (`Path`): The folder that it was loaded from.
        sketches (`list[Sketch]`, *optional*): For gradient sketches: the sketch of each checkpoint.

    Example:
        ```python
        index = trainer.build_index()
        print(len(index), index.name, index.folder)
        ```
    """

    name: str
    faiss_index: faiss.Index
    manifest: dict[str, Any]
    folder: Path
    sketches: list[Sketch] | None = None

    def __len__(self) -> int:
        return self.faiss_index.ntotal

    @property
    def identity(self) -> str:
        """Everything that search results depend on; rebuilding the same index gives the same identity."""
        # The file of sketches is left out: safetensors writes its header in no fixed order, so that equal sketches
        # may have different digests, and model and settings determine them anyway.
        shards = {name: file["sha256"] for name, file in self.manifest["files"].items() if name != SKETCHES}
        return json.dumps(self.manifest | {"files": shards})

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return the k nearest rows of each query, nearest first.

        With inner products, rows with the largest and with the smallest one alternate: helpful and harmful candidates
        are at opposite ends.

        Args:
            queries (`np.ndarray` of shape `(Q, d)`): Features of the queries.
            k (`int`): The number of rows per query.

        Returns:
            `np.ndarray` of shape `(Q, k)`, int64: Positions in the indexed dataset.

        Raises:
            InfluenceError: If an approximate index returns fewer than k rows.

        Example:
            ```python
            rows = index.search(query_features, k=100)
            ```
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if self.manifest["inner_product"]:
            rows = search_both_ends(self.faiss_index, queries, k)
        else:
            rows = self.faiss_index.search(queries, k)[1]
        if (rows < 0).any():
            raise InfluenceError(
                f"num_neighbors={k}: the index found only {int((rows >= 0).sum(axis=1).min())} of them with "
                f"index_search={self.manifest['search']!r}; let it visit more, as with 'nprobe=64'."
            )
        return rows.astype(np.int64)

    def scores(self, queries: np.ndarray) -> np.ndarray:
        """Compute the negative inner products (Q, N) of the features of queries (Q, d) with those of all rows."""
        return inner_products(self.faiss_index, -queries).numpy()

    def squares(self, weights: torch.Tensor) -> np.ndarray:
        """Compute sum_k w_k v_k^2 (N,) over the features v of each row, with weights w (d,)."""
        return torch.cat([vectors.square() @ weights.cpu() for vectors in vector_blocks(self.faiss_index)]).numpy()

    @cached_property
    def share_of_half(self) -> float:
        """The smallest share of the rows that holds half of all squared gradient in the sketches."""
        squares = np.sort(self.squares(torch.cat([sketch.eigenvalues for sketch in self.sketches])))[::-1]
        return float(np.searchsorted(np.cumsum(squares), squares.sum() / 2) + 1) / len(squares)

    def attach(self, dataset: Dataset) -> None:
        """Attach the index to its dataset, in place, for `get_nearest_examples` and the like of `datasets`.

        Raises:
            InfluenceError: If the number of rows of the dataset differs from that of the index.

        Example:
            ```python
            index.attach(train)
            scores, examples = train.get_nearest_examples(index.name, vector, k=5)
            ```
        """
        if len(dataset) != len(self):
            raise InfluenceError(
                f"dataset has {len(dataset):,} rows, but the index holds {len(self):,}; give the indexed dataset."
            )
        dataset._indexes[self.name] = FaissIndex(custom_index=self.faiss_index)

    @staticmethod
    def write(
        folder: Path,
        name: str,
        trained: faiss.Index,
        blocks: Iterable[np.ndarray],
        manifest: Mapping[str, Any],
        sketches: list[Sketch] | None,
        add_to: InfluenceIndex | None = None,
    ) -> None:
        """Write an index into a folder, atomically.

        Args:
            folder (`Path`): The folder to create or replace.
            name (`str`): The kind of features.
            trained (`faiss.Index`): An empty index, trained if it needs training.
            blocks (`Iterable[np.ndarray]`): The vectors, in blocks of shape (n, d).
            manifest (`Mapping`): The manifest, without name and files.
            sketches (`list[Sketch]`, *optional*): The sketch of each checkpoint.
            add_to ([`InfluenceIndex`], *optional*): An index whose shards are copied and precede the new vectors.
        """
        with atomic_folder(folder) as temporary:
            for shard in [] if add_to is None else shard_files(add_to.folder):
                shutil.copyfile(shard, temporary / shard.name)
            write_shards(temporary, trained, blocks, manifest["shard_size"])
            if sketches is not None:
                layers = layers_to_json(layer for sketch in sketches for layer in sketch.entries.layers)
                counts = json.dumps([len(sketch.entries.parts) for sketch in sketches])
                save_file(_tensors(sketches), temporary / SKETCHES, {"layers": layers, "counts": counts})
            files = describe_files(temporary, sorted(file.name for file in temporary.iterdir()))
            text = json.dumps({"name": name, **manifest, "files": files}, indent=2)
            (temporary / MANIFEST).write_text(text, encoding="utf-8")

    @classmethod
    def is_written(cls, folder: Path, name: str, manifest: Mapping[str, Any]) -> bool:
        """Tell whether the folder holds a complete index with this name and manifest."""
        try:
            written = cls.load(folder, on_disk=True)
        except (OSError, ValueError):
            return False
        return written.name == name and not differences(written.manifest, manifest)

    @classmethod
    def load(cls, folder: str | Path, on_disk: bool = False, device: int | None = None) -> InfluenceIndex:
        """Load an index from a folder.

        Args:
            folder (`str` or `Path`): A folder that `build_index` wrote.
            on_disk (`bool`, *optional*, defaults to `False`): Whether to memory-map the vectors instead of loading
                them.
            device (`int`, *optional*): The GPU to search on.

        Returns:
            [`InfluenceIndex`]: The index. It is not attached to a dataset.

        Raises:
            NotFoundError: If the folder holds no index.
            InfluenceError: If a file differs from its entry in the manifest.

        Example:
            ```python
            index = InfluenceIndex.load(trainer.build_index().folder, on_disk=True)
            ```
        """
        folder = Path(folder)
        if not (folder / MANIFEST).exists():
            raise NotFoundError(f"{folder} holds no index; trainer.build_index() writes one.")
        manifest = read_manifest(folder / MANIFEST, **MANIFEST_TYPES)
        shards = {file.name for file in shard_files(folder)}
        if not shards or shards != set(manifest["files"]) - {SKETCHES}:
            raise InfluenceError(
                f"{folder}: its manifest does not list the shards that are there; build the index again."
            )
        check_files(folder, manifest["files"])
        whole = read_shards(folder, on_disk)
        if whole.ntotal != manifest["rows"]:
            raise InfluenceError(f"{folder} holds {whole.ntotal:,} vectors; its manifest says {manifest['rows']:,}.")
        sketches = _read_sketches(folder / SKETCHES) if SKETCHES in manifest["files"] else None
        return cls(manifest.pop("name"), on_device(whole, device), manifest, folder, sketches)

    @classmethod
    def from_pretrained(
        cls,
        repo_id_or_path: str | Path,
        revision: str | None = None,
        token: str | bool | None = None,
        on_disk: bool = False,
        device: int | None = None,
    ) -> InfluenceIndex:
        """Load an index from a folder or from the Hub, without executing any code in it.

        Args:
            repo_id_or_path (`str` or `Path`): A folder that `build_index` wrote, or the id of a repository that
                `push_to_hub` created.
            revision (`str`, *optional*): A branch, tag or commit of the repository.
            token (`str` or `bool`, *optional*): As in `huggingface_hub`.
            on_disk (`bool`, *optional*, defaults to `False`): Whether to memory-map the vectors instead of loading
                them.
            device (`int`, *optional*): The GPU to search on.

        Returns:
            [`InfluenceIndex`]: The index. It is not attached to a dataset; `trainer.load_index` does that.

        Raises:
            NotFoundError: If there is no such folder or repository, or no index in it.
            InfluenceError: If a file differs from its entry in the manifest.

        Example:
            ```python
            index = InfluenceIndex.from_pretrained("me/demo-index")
            ```
        """
        return cls.load(fetch(repo_id_or_path, "indexes/", MANIFEST, revision, token), on_disk, device)

    def push_to_hub(
        self,
        repo_id: str,
        dataset: Dataset | None = None,
        include_text: bool = False,
        recall: CardSection | None = None,
        **options: Unpack[PushOptions],
    ) -> CommitInfo:
        """Publish the index as a dataset repository: its files, a table of the indexed rows, and a card.

        Files that are already uploaded are not sent again, so repeating an interrupted push resumes it.

        Args:
            repo_id (`str`): The repository, as in `"me/mnli-index"`; created if it does not exist.
            dataset (`datasets.Dataset`, *optional*): The dataset that was indexed; only needed for `include_text`.
            include_text (`bool`, *optional*, defaults to `False`): Whether to publish the texts, labels and other
                plain columns of the dataset along with the row numbers.
            recall ([`Recall`], *optional*): The return value of `hf_fastif.analysis.recall`, for the card.
            **options: `private`, `revision` (a branch, created if needed), `create_pr`, `token` and `commit_message`,
                as in `huggingface_hub`.

        Returns:
            `huggingface_hub.CommitInfo`: The commit or pull request.

        Raises:
            NotAllowedError: If the token has no write access to the repository.
            InfluenceError: If `include_text` is set and `dataset` is missing or has a different number of rows.

        Example:
            ```python
            index.push_to_hub("me/mnli-index", private=True)
            ```
        """
        return push_index(self, repo_id, dataset, include_text, recall, **options)

    def emptied(self) -> faiss.Index:
        """Return a trained copy without vectors, to fill further shards."""
        index = read_shard(shard_files(self.folder)[-1])
        index.reset()
        return index

    def check(self, belongs: Mapping[str, str]) -> None:
        """Refuse the index if it was built with another model, loss, dataset or order of rows.

        Args:
            belongs (`Mapping[str, str]`): Current digests of model, trained parameters, dataset and loss.

        Raises:
            InfluenceError: If a digest differs; the message gives both.
        """
        for what in differences(self.manifest, belongs):
            raise InfluenceError(
                f"The index {self.name!r} was built with the {what} {self.manifest.get(what)}, and this is "
                f"{belongs[what]}; build it again with trainer.build_index()."
            )


def _tensors(sketches: list[Sketch]) -> dict[str, torch.Tensor]:
    tensors = {}
    for number, sketch in enumerate(sketches):
        tensors |= {f"{number}/basis": sketch.basis, f"{number}/eigenvalues": sketch.eigenvalues}
        for i, part in enumerate(sketch.entries.parts):
            tensors |= {f"{number}/{i}/{name}": getattr(part, name) for name in PART_TENSORS}
    return {name: values.contiguous() for name, values in tensors.items()}


def _read_sketches(path: Path) -> list[Sketch]:
    with reading(path), safe_open(path, framework="pt") as file:
        layers = layers_from_json(file.metadata()["layers"])
        counts = json.loads(file.metadata()["counts"])
        if sum(counts) != len(layers):
            raise InfluenceError(f"it describes {len(layers)} layers and {sum(counts)} parts")
        remaining, sketches = iter(layers), []
        for number, count in enumerate(counts):
            parts = tuple(
                Part(next(remaining), *(file.get_tensor(f"{number}/{i}/{name}") for name in PART_TENSORS))
                for i in range(count)
            )
            basis, eigenvalues = (file.get_tensor(f"{number}/{name}") for name in ("basis", "eigenvalues"))
            sketches.append(Sketch(Entries(parts), basis, eigenvalues))
        return sketches
