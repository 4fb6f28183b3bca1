"""`InfluenceIndex`: a FAISS index with what belongs to it, on disk and attached to its dataset."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
from hf_fastif.curvature import layers_from_json, layers_to_json
from hf_fastif.errors import InfluenceError, NotFoundError
from hf_fastif.index.gradients import TENSORS, Part
from hf_fastif.index.publish import MANIFEST, push_index
from hf_fastif.index.store import on_device, read_shard, read_shards, search_both_ends, shard_files, write_shards


PARTS = "features.safetensors"
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
    """An index over the rows of one dataset, made with one model.

    Attributes:
        name (`str`): Its features: `"pooled"`, `"mean_pooled"`, `"last_layer_gradient"`, `"gradient_sketch"`
            or `"own"`.
        faiss_index (`faiss.Index`): The vectors.
        manifest (`dict`): Model and dataset that it belongs to, sizes, settings and files.
        folder (`Path`): Where it lies.
        parts (`list[list[Part]]`, *optional*): Which entries of gradients the features are, for each checkpoint.
    """

    name: str
    faiss_index: faiss.Index
    manifest: dict[str, Any]
    folder: Path
    parts: list[list[Part]] | None = None

    def __len__(self) -> int:
        return self.faiss_index.ntotal

    @property
    def identity(self) -> str:
        """What its answers depend on: the same when it is built again."""
        # Leaves out the parts, which model and settings decide: safetensors writes its header in no fixed order.
        shards = {name: file["sha256"] for name, file in self.manifest["files"].items() if name != PARTS}
        return json.dumps(self.manifest | {"files": shards})

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
            raise InfluenceError(
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
            raise InfluenceError(f"dataset has {len(dataset):,} rows, but the index holds {len(self):,}.")
        dataset._indexes[self.name] = FaissIndex(custom_index=self.faiss_index)

    @staticmethod
    def write(
        folder: Path,
        name: str,
        trained: faiss.Index,
        blocks: Iterable[np.ndarray],
        manifest: Mapping[str, Any],
        parts: list[list[Part]] | None,
        add_to: InfluenceIndex | None = None,
    ) -> None:
        """Writes an index of vectors, given block by block, into a folder that is whole or not there.

        The shards of `add_to` come before them.
        """
        with atomic_folder(folder) as temporary:
            for shard in [] if add_to is None else shard_files(add_to.folder):
                shutil.copyfile(shard, temporary / shard.name)
            write_shards(temporary, trained, blocks, manifest["shard_size"])
            if parts is not None:
                layers = layers_to_json(part.layer for own in parts for part in own)
                facts = {"layers": layers, "counts": json.dumps([len(own) for own in parts])}
                save_file(_tensors(parts), temporary / PARTS, facts)
            files = describe_files(temporary, sorted(file.name for file in temporary.iterdir()))
            text = json.dumps({"name": name, **manifest, "files": files}, indent=2)
            (temporary / MANIFEST).write_text(text, encoding="utf-8")

    @classmethod
    def is_written(cls, folder: Path, name: str, manifest: Mapping[str, Any], parts: list[list[Part]] | None) -> bool:
        """Whether an index is there, whole, that `write` would write just so, but for its vectors."""
        try:
            there = cls.load(folder, on_disk=True)
        except (OSError, ValueError):
            return False
        own, wanted = (None if each is None else _tensors(each) for each in (there.parts, parts))
        if there.name != name or differences(there.manifest, manifest):
            return False
        if own is None or wanted is None:
            return own is wanted
        return own.keys() == wanted.keys() and all(torch.equal(own[key], wanted[key].cpu()) for key in own)

    @classmethod
    def load(cls, folder: str | Path, on_disk: bool = False, device: int | None = None) -> InfluenceIndex:
        """Reads what was written.

        Args:
            folder (`str` or `Path`): The index.
            on_disk (`bool`, *optional*, defaults to `False`): Leaves the vectors in the files and maps them.
            device (`int`, *optional*): GPU to search on.

        Raises:
            FileNotFoundError: If there is no index.
            ValueError: If a file is not the one that was written.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).exists():
            raise NotFoundError(f"{folder} holds no index; trainer.build_index() makes one.")
        manifest = read_manifest(folder / MANIFEST, **MANIFEST_TYPES)
        shards = {file.name for file in shard_files(folder)}
        if not shards or shards != set(manifest["files"]) - {PARTS}:
            raise InfluenceError(
                f"{folder}: its manifest does not list the shards that are there; build the index anew."
            )
        check_files(folder, manifest["files"])
        whole = read_shards(folder, on_disk)
        if whole.ntotal != manifest["rows"]:
            raise InfluenceError(f"{folder} holds {whole.ntotal:,} vectors; its manifest says {manifest['rows']:,}.")
        parts = _read_parts(folder / PARTS) if PARTS in manifest["files"] else None
        return cls(manifest.pop("name"), on_device(whole, device), manifest, folder, parts)

    @classmethod
    def from_pretrained(
        cls,
        repo_id_or_path: str | Path,
        revision: str | None = None,
        token: str | bool | None = None,
        on_disk: bool = False,
        device: int | None = None,
    ) -> InfluenceIndex:
        """Reads an index from a folder or from the Hub. Nothing in it is executed.

        Args:
            repo_id_or_path (`str` or `Path`): What `build_index` wrote, or the repository that `push_to_hub` made.
            revision (`str`, *optional*): A branch, tag or commit of the repository.
            token (`str` or `bool`, *optional*): As in `huggingface_hub`.
            on_disk (`bool`, *optional*, defaults to `False`): Leaves the vectors in the files and maps them.
            device (`int`, *optional*): GPU to search on.

        Raises:
            FileNotFoundError: If there is no such folder or repository, or no index in it.
            ValueError: If a file is not what the manifest says.
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
        """Publishes the index as a dataset repository: its files, a table of the indexed rows, and a card.

        What is uploaded already is not sent again, so a push that was interrupted goes on when it is repeated.

        Args:
            repo_id (`str`): Where to, as in `"me/mnli-index"`. The repository is created if it is not there.
            dataset (`datasets.Dataset`, *optional*): What was indexed; only needed for its texts.
            include_text (`bool`, *optional*, defaults to `False`): Whether the texts, labels and other plain columns
                of the dataset are published with the positions of its rows.
            recall ([`Recall`], *optional*): What `hf_fastif.analysis.recall` returned, for the card.
            **options: `private`, `revision` (a branch, created if needed), `create_pr`, `token` and `commit_message`,
                as in `huggingface_hub`.

        Returns:
            `huggingface_hub.CommitInfo`: The commit, or the pull request.

        Raises:
            PermissionError: If the token may not write there.
            ValueError: If texts are asked for without the dataset that holds them, or with another one.
        """
        return push_index(self, repo_id, dataset, include_text, recall, **options)

    def emptied(self) -> faiss.Index:
        """An index like this one, trained and without vectors, to fill more shards."""
        index = read_shard(shard_files(self.folder)[-1])
        index.reset()
        return index

    def check(self, belongs: Mapping[str, str]) -> None:
        """Refuses another model, another loss, another dataset or another order of its rows.

        Raises:
            ValueError: If the index was made with something else, naming both.
        """
        for what in differences(self.manifest, belongs):
            raise InfluenceError(
                f"The index {self.name!r} was made with the {what} {self.manifest.get(what)}, and this is "
                f"{belongs[what]}; build it anew with trainer.build_index()."
            )


def _tensors(parts: list[list[Part]]) -> dict[str, torch.Tensor]:
    every = [part for own in parts for part in own]
    return {f"{name}/{i}": getattr(part, name).contiguous() for i, part in enumerate(every) for name in TENSORS}


def _read_parts(path: Path) -> list[list[Part]]:
    with reading(path), safe_open(path, framework="pt") as file:
        layers = layers_from_json(file.metadata()["layers"])
        counts = json.loads(file.metadata()["counts"])
        if sum(counts) != len(layers):
            raise InfluenceError(f"{len(layers)} parts are not {sum(counts)}")
        every = (Part(layer, *(file.get_tensor(f"{name}/{i}") for name in TENSORS)) for i, layer in enumerate(layers))
        return [[next(every) for _ in range(count)] for count in counts]
