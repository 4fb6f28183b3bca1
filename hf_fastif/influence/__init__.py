"""The engine: a session on a model and its data, in which s_test is solved for and candidates are scored."""

from hf_fastif.influence.predictions import Predictions, loss_gradients, sharded_gradients
from hf_fastif.influence.session import Context, Kept, batches_of, context_of, folder_of


__all__ = [
    "Context",
    "Kept",
    "Predictions",
    "batches_of",
    "context_of",
    "folder_of",
    "loss_gradients",
    "sharded_gradients",
]
