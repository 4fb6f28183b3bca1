"""The engine: a session on a model and its data, in which s_test is solved for and candidates are scored."""

from hf_fastif.influence.predictions import Predictions, loss_gradients, sharded_gradients
from hf_fastif.influence.session import InfluenceSession, SessionCache, batches_of, folder_of, open_session


__all__ = [
    "InfluenceSession",
    "Predictions",
    "SessionCache",
    "batches_of",
    "folder_of",
    "loss_gradients",
    "open_session",
    "sharded_gradients",
]
