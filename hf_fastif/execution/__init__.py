"""Ranks, sweeps over rows, and partial results that survive a kill."""

from hf_fastif.execution.partial_results import PartialResults, Tensors, open_partial_results
from hf_fastif.execution.processes import (
    SingleProcess,
    check_same_folder,
    check_shared_folder,
    from_main,
    same_random_state,
    shard_for_rank,
    single_process,
)
from hf_fastif.execution.sweeps import Columns, DatasetSweep


__all__ = [
    "Columns",
    "DatasetSweep",
    "PartialResults",
    "SingleProcess",
    "Tensors",
    "check_same_folder",
    "check_shared_folder",
    "from_main",
    "open_partial_results",
    "same_random_state",
    "shard_for_rank",
    "single_process",
]
