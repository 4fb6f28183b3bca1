"""Keep the moments of training at which influence is taken, find them again, and sum over them."""

from hf_fastif.checkpoints.checkpoint import Checkpoint, has_same_parameters, read_parameters
from hf_fastif.checkpoints.checkpoint_set import CheckpointSet
from hf_fastif.checkpoints.find import automatic_checkpoints, find_checkpoints, kept_checkpoints, weights_of
from hf_fastif.checkpoints.keep import KeepCheckpoints
from hf_fastif.checkpoints.runs import checkpoints_of, run_that_led_to, write_run_end


__all__ = [
    "Checkpoint",
    "CheckpointSet",
    "KeepCheckpoints",
    "automatic_checkpoints",
    "checkpoints_of",
    "find_checkpoints",
    "has_same_parameters",
    "kept_checkpoints",
    "read_parameters",
    "run_that_led_to",
    "weights_of",
    "write_run_end",
]
