"""`InfluenceIndex`: a FAISS index with what belongs to it, on disk and attached to its dataset."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import torch
from datasets import Dataset
from datasets.search import FaissIndex
from safetensors import safe_open
from safetensors.torch import save_file

from hf_fastif.curvature.layers import layers_from_json, layers_to_json
from hf_fastif.index.gradients import TENSORS, Part
from hf_fastif.index.store import on_device, read_shards, search_both_ends, shard_files, write_shards


MANIFEST, PARTS = "manifest.json", "features.safetensors"


@dataclass
class InfluenceIndex:
    """An index over the rows of one dataset, made with one model.

    Attributes:
        name (`str`): Its features: `"pooled"`, `"last_layer_gradient"`, `"gradient_sketch"` or `"own"`.
        faiss_index (`faiss.Index`): The vectors.
        manifest (`dict`): Model and dataset that it belongs to, sizes and settings.
        parts (`list[list[Part]]`, *optional*): Which entries of gradients the features are, for each checkpoint.
        folder (`Path`, *optional*): Where it lies.
    """

    name: str
    faiss_index: faiss.Index
    manifest: dict[str, str | int | bool | None]
    parts: list[list[Part]] | None = None
    folder: Path | None = None

    def __len__(self) -> int:
        return self.faiss_index.ntotal

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """The rows (Q, k) nearest to each query (Q, d), nearest first; by inner product those at both ends, in turns.

        Raises:
            ValueError: If an approximate index visits fewer than k vectors.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if self.manifest["inner_product"]:
            found = search_both_ends(self.faiss_index, queries, k)
        else:
            found = self.faiss_index.search(queries, k)[1]
        if (found < 0).any():
            raise ValueError(
                f"num_neighbors={k}: the index found only {int((found >= 0).sum(axis=1).min())} of them with "
                f"index_search={self.manifest['search']!r}; let it visit more, as with 'nprobe=64'."
            )
        return found.astype(np.int64)

    def attach(self, dataset: Dataset) -> None:
        """Attaches the index to the dataset, in place: `dataset.get_nearest_examples(name, vector, k)` works then.

        Raises:
            ValueError: If the dataset has another number of rows.
        """
        if len(dataset) != len(self):
            raise ValueError(f"dataset has {len(dataset):,} rows, but the index holds {len(self):,}.")
        dataset._indexes[self.name] = FaissIndex(custom_index=self.faiss_index)

    @staticmethod
    def write(
        folder: Path,
        name: str,
        trained: faiss.Index,
        blocks: Iterable[np.ndarray],
        manifest: Mapping[str, str | int | bool | None],
        parts: list[list[Part]] | None,
        add_to: InfluenceIndex | None = None,
    ) -> None:
        """Writes an index of vectors, given block by block, into a folder that is whole or not there.

        The shards of `add_to` come before them.
        """
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for shard in [] if add_to is None else shard_files(add_to.folder):
            shutil.copyfile(shard, temporary / shard.name)
        write_shards(temporary, trained, blocks, manifest["shard_size"])
        if parts is not None:
            layers = layers_to_json(part.layer for own in parts for part in own)
            facts = {"layers": layers, "counts": json.dumps([len(own) for own in parts])}
            save_file(_tensors(parts), temporary / PARTS, facts)
        text = json.dumps({"name": name, **manifest}, indent=2)
        (temporary / MANIFEST).write_text(text, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)

    @classmethod
    def load(cls, folder: str | Path, on_disk: bool = False, device: int | None = None) -> InfluenceIndex:
        """Reads what was written.

        Args:
            folder (`str` or `Path`): The index.
            on_disk (`bool`, *optional*, defaults to `False`): Leaves the vectors in the files and maps them.
            device (`int`, *optional*): GPU to search on.

        Raises:
            FileNotFoundError: If there is no index.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).exists():
            raise FileNotFoundError(f"{folder} holds no index; trainer.build_index() makes one.")
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        parts = _read_parts(folder / PARTS) if (folder / PARTS).exists() else None
        index = on_device(read_shards(folder, on_disk), device)
        return cls(manifest.pop("name"), index, manifest, parts, folder)

    def emptied(self) -> faiss.Index:
        """An index like this one, trained and without vectors, to fill more shards."""
        index = faiss.read_index(str(shard_files(self.folder)[-1]))
        index.reset()
        return index

    def check(self, belongs: Mapping[str, str]) -> None:
        """Refuses another model, another dataset or another order of its rows.

        Raises:
            ValueError: If the index was made with something else, naming both.
        """
        for what, name in belongs.items():
            if self.manifest[what] != name:
                raise ValueError(
                    f"The index {self.name!r} was made with the {what} {self.manifest[what]}, and this is {name}; "
                    "build it anew with trainer.build_index()."
                )


def _tensors(parts: list[list[Part]]) -> dict[str, torch.Tensor]:
    every = [part for own in parts for part in own]
    return {f"{name}/{i}": getattr(part, name).contiguous() for i, part in enumerate(every) for name in TENSORS}


def _read_parts(path: Path) -> list[list[Part]]:
    with safe_open(path, framework="pt") as file:
        layers = layers_from_json(file.metadata()["layers"])
        counts = json.loads(file.metadata()["counts"])
        every = (Part(layer, *(file.get_tensor(f"{name}/{i}") for name in TENSORS)) for i, layer in enumerate(layers))
        return [[next(every) for _ in range(count)] for count in counts]
