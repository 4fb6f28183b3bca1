"""Work that one of several processes does for all, or by itself."""

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
    """Stands for an `Accelerator` where a process works by itself, whatever the others do meanwhile.

    Attributes:
        device (`torch.device`): Of the process.
    """

    device: torch.device

    process_index = 0
    num_processes = 1
    is_main_process = True

    def reduce(self, tensor: torch.Tensor, _reduction: str = "sum") -> torch.Tensor:
        """There is nothing to add."""
        return tensor


def shard_for_rank(items: Sequence[T], accelerator: Accelerator | PartialState | SingleProcess) -> list[T]:
    """The items that are this process's to work on.

    They are dealt to and fro: where they are sorted by how much work they are, no process always gets the most.
    """
    count, rank = accelerator.num_processes, accelerator.process_index
    return [item for i, item in enumerate(items) if i % (2 * count) in (rank, 2 * count - 1 - rank)]


def from_main(compute: Callable[[], T], accelerator: Accelerator | PartialState | SingleProcess) -> T:
    """What the main process computes, on every process; an error of it is raised on every process."""
    if accelerator.num_processes == 1:
        return compute()
    found, error = None, None
    if accelerator.is_main_process:
        try:
            found = compute()
        except Exception as raised:  # whatever it is, nobody may be left waiting for an answer
            error = raised
    found, error = broadcast_object_list([found, error])
    if error is not None:
        raise error
    return found


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
    """Give back the random states as they were: what is done within the block leaves no trace in training."""
    before, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(of_numpy)


def check_same_folder(folder: Path, accelerator: Accelerator) -> None:
    """Check that all processes were given the same `output_dir`: the main process writes what the others read.

    Raises:
        InfluenceError: On every process, if they were given different ones.
    """
    if accelerator.num_processes == 1:
        return
    folders = gather_object([str(folder)])
    other = next((rank for rank, each in enumerate(folders) if each != folders[0]), None)
    if other is not None:
        raise InfluenceError(
            f"output_dir: process 0 was given {folders[0]!r} and process {other} {folders[other]!r}, and what one "
            "writes the others read. Give all processes the same folder: a name with the time in it is made once, "
            "before the launch, and passed as a flag (--output_dir), or made by one process and sent to the others "
            "with accelerate.utils.broadcast_object_list."
        )


def check_shared_folder(folder: Path, accelerator: Accelerator) -> None:
    """Several machines must see the same files: the main process writes what the others read.

    Raises:
        ValueError: If a process does not see what the main process writes into the folder.
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
