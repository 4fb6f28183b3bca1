"""Divide work among processes, or do it on one process for all."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, GradientState, PartialState, is_initialized
from accelerate.utils import broadcast_object_list, gather_object, patch_environment

from hf_fastif.errors import InfluenceError


T = TypeVar("T")
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # of torchrun and of MPI's launchers


@dataclass(frozen=True)
class SingleProcess:
    """A replacement for `Accelerator` in a process that works alone, independently of the others.

    Attributes:
        device (`torch.device`): The device of the process.
    """

    device: torch.device

    process_index = 0
    num_processes = 1
    is_main_process = True

    def reduce(self, tensor: torch.Tensor, _reduction: str = "sum") -> torch.Tensor:
        """Return the tensor unchanged: a single process has nothing to add."""
        return tensor


def shard_for_rank(items: Sequence[T], accelerator: Accelerator | PartialState | SingleProcess) -> list[T]:
    """Return the items that are assigned to this process.

    Items are assigned in snake order (0, 1, ..., n-1, n-1, ..., 0), so that no rank always receives the most expensive
    item of a sorted list.

    Example:

    ```python
    shard_for_rank(["a", "b", "c", "d", "e"], accelerator)  # of 2 processes: rank 0 gets a, d, e and rank 1 b, c
    ```
    """
    count, rank = accelerator.num_processes, accelerator.process_index
    return [item for i, item in enumerate(items) if i % (2 * count) in (rank, 2 * count - 1 - rank)]


def from_main(compute: Callable[[], T], accelerator: Accelerator | PartialState | SingleProcess) -> T:
    """Compute a value on the main process and return it on every process.

    An exception on the main process is raised on every process.

    Example:

    ```python
    config = from_main(lambda: json.loads(path.read_text()), accelerator)  # read once, even on several machines
    ```
    """
    if accelerator.num_processes == 1:
        return compute()
    value, error = None, None
    if accelerator.is_main_process:
        try:
            value = compute()
        except Exception as raised:  # of any class: the other processes wait for an answer
            error = raised
    value, error = broadcast_object_list([value, error])
    if error is not None:
        raise error
    return value


@contextmanager
def single_process() -> Iterator[None]:
    """Let one of several processes train a model by itself: a `Trainer` that is made here does not wrap it in DDP.

    Accelerate is started anew as if nothing had launched several processes, and put back afterwards. What is made here
    must not be used outside, nor the other way round. On GPUs the settings must exist already or be a copy of such:
    new `TrainingArguments` of a process that is alone take the first GPU, or all of them.
    """
    here = PartialState()
    if here.distributed_type == DistributedType.NO:
        yield
        return
    states = [here, GradientState(), *([AcceleratorState()] if is_initialized() else [])]
    before = [dict(vars(state)) for state in states]
    device = here.device
    alone = {"LOCAL_RANK": -1, "ACCELERATE_TORCH_DEVICE": device, **dict.fromkeys(SIZES, 1)}
    try:
        with patch_environment(**alone):
            _forget_processes()
            PartialState(cpu=device.type == "cpu")
            yield
    finally:
        _forget_processes()
        for state, values in zip(states, before, strict=True):
            vars(state).update(values)


def _forget_processes() -> None:
    """Empty the states that all accelerators of a process share, as new `TrainingArguments` do."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@contextmanager
def same_random_state() -> Iterator[None]:
    """Restore all random states after the block, so that it does not change training.

    Example:

    ```python
    with same_random_state():
        torch.manual_seed(0)
        order = torch.randperm(100)
    ```
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def check_same_folder(folder: Path, accelerator: Accelerator) -> None:
    """Refuse processes with different `output_dir`s: the others read what the main process writes.

    Raises:
        InfluenceError: On every process, naming two of the folders.
    """
    if accelerator.num_processes == 1:
        return
    folders = gather_object([str(folder)])
    differing = next((rank for rank, each in enumerate(folders) if each != folders[0]), None)
    if differing is not None:
        raise InfluenceError(
            f"output_dir: process 0 was given {folders[0]!r} and process {differing} {folders[differing]!r}, but they "
            "read each other's files. Give all processes the same folder. If its name contains the time, create the "
            "name once: before the launch, as a flag (--output_dir), or on one process, which sends it to the others "
            "with accelerate.utils.broadcast_object_list."
        )


def check_shared_folder(folder: Path, accelerator: Accelerator) -> None:
    """Refuse a folder that machines do not share: the others read what the main process writes.

    Raises:
        InfluenceError: Naming the processes that do not see the files of the main process.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)) == accelerator.num_processes:
        return
    mark = folder / f".seen-by-all-{os.environ.get('TORCHELASTIC_RUN_ID', '')}"
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    accelerator.wait_for_everyone()
    blind = gather_object([] if mark.exists() else [accelerator.process_index])
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        mark.unlink()
    if blind:
        raise InfluenceError(
            f"output_dir: the processes {', '.join(map(str, blind))} do not see what the main process writes to "
            f"{folder}; on several machines give a folder that all of them share."
        )
