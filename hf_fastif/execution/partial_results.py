"""Finished pieces of long work, kept on disk until all of it is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, tqdm
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging

from hf_fastif.artifacts import atomic_write, differences
from hf_fastif.data import hexdigest
from hf_fastif.execution.processes import from_main


logger = logging.get_logger(__name__)

Tensors = dict[str, torch.Tensor]
MANIFEST = "manifest.json"


class PartialResults:
    """Keeps what long work has finished, so that a run that was killed goes on from there.

    The main process writes and reads; every process must make the same calls and gets the same answers. What is kept
    of other work (another model, dataset or setting) is deleted, with a line that says what has changed. Two runs may
    go on with the same work: each piece says what it depends on, and one that the other run has deleted is computed.

    Args:
        folder (`Path`): For the pieces; made when the first one is written.
        manifest (`Mapping[str, str]`): What the answer depends on.
        accelerator (`Accelerator`): The processes.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, str], accelerator: Accelerator):
        self.folder = folder
        self.manifest = dict(manifest)
        self.accelerator = accelerator
        self._finished = from_main(self._open, accelerator)

    def get(self, name: str, compute: Callable[[], Tensors]) -> Tensors:
        """The piece of that name, read if it is there and else computed and written.

        A piece `"a"` takes the place of the pieces `"a.b"` that it was made of: these are deleted.
        """
        if name in self._finished:
            tensors = from_main(lambda: self._read(name), self.accelerator)
            if tensors is not None:
                # A copy lies in memory as a computed tensor does; what a file gave may round otherwise.
                return {key: values.to(self.accelerator.device, copy=True) for key, values in tensors.items()}
        tensors = compute()
        self._add(name, tensors)
        self._finished.add(name)
        return tensors

    def has(self, name: str) -> bool:
        """Whether that piece is there, or a whole that took its place."""
        return any(name == there or name.startswith(f"{there}.") for there in self._finished)

    def compute_missing(self, work: Mapping[str, Callable[[], Tensors]], title: str | None = None) -> None:
        """Makes pieces for `get` to find, each by one process; those that are there, or a whole of them is, are left.

        Args:
            work (`Mapping[str, Callable]`): What computes each, without the other processes.
            title (`str`, *optional*): Of a progress bar.
        """
        missing = [name for name in work if not self.has(name)]
        rank, count = self.accelerator.process_index, self.accelerator.num_processes
        with tqdm(total=len(missing), desc=title, disable=title is None) as bar:
            for start in range(0, len(missing), count):
                names = missing[start : start + count]
                own = None
                if rank < len(names):
                    own = {key: values.cpu() for key, values in work[names[rank]]().items()}
                for process, name in enumerate(names):
                    self._add(name, broadcast_object_list([own], from_process=process)[0])
                    self._finished.add(name)
                bar.update(len(names))

    def delete(self) -> None:
        """Deletes all pieces: the work is done."""
        if self.accelerator.is_main_process:
            _delete_folder(self.folder)

    def _open(self) -> set[str]:
        try:
            there = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return set()
        except ValueError:
            there = {"manifest": "damaged"}
        changed = differences(there, dict.fromkeys(there) | self.manifest)
        if changed:
            logger.warning(f"Starting afresh in {self.folder}: since it was begun, {', '.join(changed)} changed.")
            _delete_folder(self.folder)
            return set()
        self.manifest = there  # which may differ in the last digits of a loss
        found = {file.stem for file in self.folder.glob("*.safetensors")}
        if found:
            logger.warning(f"Going on with {self.folder}: {len(found)} pieces of the work are there already.")
        return found

    def _read(self, name: str) -> Tensors | None:
        path = self._path(name)
        try:
            with safe_open(path, framework="pt") as file:
                written = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except FileNotFoundError:
            return None  # another run was done first
        except SafetensorError as error:
            logger.warning(f"{path} is damaged ({error}) and is computed again.")
            return None
        return tensors if written == self._mark else None

    def _add(self, name: str, tensors: Tensors) -> None:
        if self.accelerator.is_main_process:
            self._write(self._path(name), tensors)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _write(self, path: Path, tensors: Tensors) -> None:
        values = {name: tensor.contiguous() for name, tensor in tensors.items()}
        try:
            self._write_into_folder(path, values)
        except (FileNotFoundError, SafetensorError):
            if self.folder.exists():
                raise
            self._write_into_folder(path, values)  # another run was done, and deleted the folder meanwhile
        for part in self.folder.glob(f"{path.stem}.*.safetensors"):
            part.unlink(missing_ok=True)

    def _write_into_folder(self, path: Path, values: Tensors) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / MANIFEST).exists():
            text = json.dumps(self.manifest, indent=2)
            atomic_write(self.folder / MANIFEST, lambda file: file.write_text(text, encoding="utf-8"))
        atomic_write(path, lambda file: save_file(values, file, self._mark))

    @property
    def _mark(self) -> dict[str, str]:
        """What a piece says it depends on."""
        return {"work": hexdigest([json.dumps(self.manifest, sort_keys=True)])}


def _delete_folder(folder: Path) -> None:
    """Delete a folder that another run may be writing to or deleting."""
    (folder / MANIFEST).unlink(missing_ok=True)  # first: without it nothing that stays is taken up again
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def open_partial_results(
    folder: Path, manifest: Mapping[str, str], accelerator: Accelerator
) -> Iterator[PartialResults]:
    """[`PartialResults`] that are deleted when the work within the block is done, and left when it fails."""
    partials = PartialResults(folder, manifest, accelerator)
    yield partials
    partials.delete()
