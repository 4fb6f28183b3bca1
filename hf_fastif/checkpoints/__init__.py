"""Moments of training at which influence is taken: kept while training, found again, and summed over."""

from hf_fastif.checkpoints.checkpoint import Checkpoint, holds, read_parameters
from hf_fastif.checkpoints.checkpoint_set import CheckpointSet
from hf_fastif.checkpoints.find import find_checkpoints, kept_checkpoints, weights_of
from hf_fastif.checkpoints.keep import KeepCheckpoints


__all__ = [
    "Checkpoint",
    "CheckpointSet",
    "KeepCheckpoints",
    "find_checkpoints",
    "holds",
    "kept_checkpoints",
    "read_parameters",
    "weights_of",
]
