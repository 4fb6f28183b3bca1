"""Finished pieces of long work, kept on disk until all of it is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from hf_fastif.files import write_whole


logger = logging.get_logger(__name__)

Tensors = dict[str, torch.Tensor]
MANIFEST = "manifest.json"


class Pieces:
    """Keeps what long work has finished, so that a run that was killed goes on from there.

    The main process writes and reads; every process must make the same calls and gets the same answers. What is kept
    of other work (another model, dataset or setting) is deleted, with a line that says what has changed.

    Args:
        folder (`Path`): For the pieces; made when the first one is written.
        manifest (`Mapping[str, str]`): What the answer depends on.
        accelerator (`Accelerator`): The processes.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, str], accelerator: Accelerator):
        self.folder = folder
        self.manifest = dict(manifest)
        self.accelerator = accelerator
        names = self._open() if accelerator.is_main_process else set()
        self._finished: set[str] = broadcast_object_list([names])[0]
        if self._finished:
            logger.warning_once(f"Going on with {folder}: {len(self._finished)} pieces of the work are there already.")

    def get(self, name: str, compute: Callable[[], Tensors]) -> Tensors:
        """The piece of that name, read if it is there and else computed and written.

        A piece `"a"` takes the place of the pieces `"a.b"` that it was made of: these are deleted.
        """
        path = self.folder / f"{name}.safetensors"
        if name in self._finished:
            tensors = broadcast_object_list([load_file(path) if self.accelerator.is_main_process else None])[0]
            # A copy lies in memory as a computed tensor does; what a file gave may round otherwise in the last bit.
            return {key: values.to(self.accelerator.device, copy=True) for key, values in tensors.items()}
        tensors = compute()
        if self.accelerator.is_main_process:
            self._write(path, tensors)
        return tensors

    def delete(self) -> None:
        """Deletes all pieces: the work is done."""
        if self.accelerator.is_main_process and self.folder.exists():
            shutil.rmtree(self.folder)

    def _open(self) -> set[str]:
        path = self.folder / MANIFEST
        if not path.exists():
            return set()
        there = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in self.manifest | there if self.manifest.get(key) != there.get(key)]
        if changed:
            logger.warning(f"{self.folder} was begun with another {' and another '.join(changed)}: starting afresh.")
            shutil.rmtree(self.folder)
            return set()
        return {file.stem for file in self.folder.glob("*.safetensors")}

    def _write(self, path: Path, tensors: Tensors) -> None:
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            text = json.dumps(self.manifest, indent=2)
            write_whole(self.folder / MANIFEST, lambda file: file.write_text(text, encoding="utf-8"))
        write_whole(path, lambda file: save_file({k: v.contiguous() for k, v in tensors.items()}, file))
        for part in self.folder.glob(f"{path.stem}.*.safetensors"):
            part.unlink()


@contextmanager
def pieces_of(folder: Path, manifest: Mapping[str, str], accelerator: Accelerator) -> Iterator[Pieces]:
    """[`Pieces`] that are deleted when the work within the block is done, and left when it fails."""
    pieces = Pieces(folder, manifest, accelerator)
    yield pieces
    pieces.delete()
