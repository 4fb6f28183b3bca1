"""The loss of single examples as a function of the trained parameters, for every head and for losses of the user's."""

from hf_fastif.objective.along import derivatives_along
from hf_fastif.objective.compiled import uncompiled
from hf_fastif.objective.heads import IGNORED, Batch, TokenHead, without_targets_of_padding
from hf_fastif.objective.objective import STATES, FrozenLayers, Objective, differentiable
from hf_fastif.objective.own_loss import OwnLoss, OwnStep
from hf_fastif.objective.padding import settle_padding
from hf_fastif.objective.trained_loss import LossFacts, trained_loss


__all__ = [
    "IGNORED",
    "STATES",
    "Batch",
    "FrozenLayers",
    "LossFacts",
    "Objective",
    "OwnLoss",
    "OwnStep",
    "TokenHead",
    "derivatives_along",
    "differentiable",
    "settle_padding",
    "trained_loss",
    "uncompiled",
    "without_targets_of_padding",
]
