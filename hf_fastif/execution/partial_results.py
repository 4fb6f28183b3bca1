"""Keep finished parts of long work on disk until all of it is done."""

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
    """Finished parts of long work, from which a killed run resumes.

    The main process reads and writes. Every process must make the same calls, and gets the same tensors. Parts that
    belong to another model, dataset or setting are deleted with a warning that names what changed. Two runs may resume
    the same work: each part records what it depends on, and a part that the other run has deleted is computed again.

    Args:
        folder (`Path`): The folder of the parts, which is created with the first of them.
        manifest (`Mapping[str, str]`): What the results depend on.
        accelerator (`Accelerator`): The processes.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, str], accelerator: Accelerator):
        self.folder = folder
        self.manifest = dict(manifest)
        self.accelerator = accelerator
        self._finished = from_main(self._open, accelerator)

    def get(self, name: str, compute: Callable[[], Tensors]) -> Tensors:
        """Read a part, or compute and write it if it is not on disk.

        A part `"a"` replaces the parts `"a.b"` that were merged into it, which are deleted.

        Args:
            name (`str`): Name of the part.
            compute (`Callable`): Computes its tensors, on all processes together.

        Returns:
            `dict[str, torch.Tensor]`: The tensors, equal on every process.
        """
        if name in self._finished:
            tensors = from_main(lambda: self._read(name), self.accelerator)
            if tensors is not None:
                # A copy is aligned like a computed tensor; tensors from a file may not be, and then round differently.
                return {key: values.to(self.accelerator.device, copy=True) for key, values in tensors.items()}
        tensors = compute()
        self._add(name, tensors)
        self._finished.add(name)
        return tensors

    def has(self, name: str) -> bool:
        """Tell whether a part is finished, on its own or inside a merged part."""
        return any(name == part or name.startswith(f"{part}.") for part in self._finished)

    def compute_missing(self, work: Mapping[str, Callable[[], Tensors]], title: str | None = None) -> None:
        """Compute the missing parts in parallel, one per process, so that later `get` calls find them.

        Parts that exist on disk, on their own or inside a merged part, are skipped.

        Args:
            work (`Mapping[str, Callable]`): What computes each part, without communication between processes.
            title (`str`, *optional*): Title of the progress bar. None shows no bar.
        """
        missing = [name for name in work if not self.has(name)]
        rank, count = self.accelerator.process_index, self.accelerator.num_processes
        with tqdm(total=len(missing), desc=title, disable=title is None) as bar:
            for start in range(0, len(missing), count):
                names = missing[start : start + count]
                tensors = None
                if rank < len(names):
                    tensors = {key: values.cpu() for key, values in work[names[rank]]().items()}
                for process, name in enumerate(names):
                    self._add(name, broadcast_object_list([tensors], from_process=process)[0])
                    self._finished.add(name)
                bar.update(len(names))

    def delete(self) -> None:
        """Delete all parts, once the work is done."""
        if self.accelerator.is_main_process:
            _delete_folder(self.folder)

    def _open(self) -> set[str]:
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return set()
        except ValueError:
            manifest = {"manifest": "damaged"}
        changed = differences(manifest, dict.fromkeys(manifest) | self.manifest)
        if changed:
            logger.warning(f"Starting over in {self.folder}: {', '.join(changed)} changed since its work was begun.")
            _delete_folder(self.folder)
            return set()
        self.manifest = manifest  # which may differ in the last digits of a loss
        finished = {file.stem for file in self.folder.glob("*.safetensors")}
        if finished:
            logger.warning(f"Resuming from {self.folder}: {len(finished)} parts of the work are finished.")
        return finished

    def _read(self, name: str) -> Tensors | None:
        path = self._path(name)
        try:
            with safe_open(path, framework="pt") as file:
                written = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except FileNotFoundError:
            return None  # another run of the same work has finished and deleted it
        except SafetensorError as error:
            logger.warning(f"{path} is damaged ({error}); computing it again.")
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
            self._write_into_folder(path, values)  # another run of the same work deleted the folder meanwhile
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
        """Return the metadata of a part, which identifies the work that it belongs to."""
        return {"work": hexdigest([json.dumps(self.manifest, sort_keys=True)])}


def _delete_folder(folder: Path) -> None:
    """Delete a folder that another run may be writing to or deleting."""
    (folder / MANIFEST).unlink(missing_ok=True)  # first: parts that remain are not used without it
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def open_partial_results(
    folder: Path, manifest: Mapping[str, str], accelerator: Accelerator
) -> Iterator[PartialResults]:
    """Open [`PartialResults`] for a block: they are deleted when it succeeds, and stay when it fails.

    Example:

    ```python
    with open_partial_results(Path("out/unfinished"), {"model": digest}, accelerator) as partials:
        scores = [partials.get(f"scores-{n}", lambda n=n: {"scores": score(n)})["scores"] for n in range(100)]
    ```
    """
    partials = PartialResults(folder, manifest, accelerator)
    yield partials
    partials.delete()
