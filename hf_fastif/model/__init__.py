"""The loss of single examples as a function of the trained parameters, for every head and for custom losses."""

from hf_fastif.model.along import derivatives_along
from hf_fastif.model.checks import (
    check_adapters,
    check_model,
    check_no_inference_tensors,
    check_whole,
    sharded_by,
    warn_of_half_precision,
)
from hf_fastif.model.heads import IGNORED, Batch, TokenHead, without_targets_of_padding
from hf_fastif.model.measures import LOSS, Contrast, Logit, LogProbability, Margin, Measure
from hf_fastif.model.objective import Objective, differentiable
from hf_fastif.model.padding import settle_padding
from hf_fastif.model.parameters import (
    ParameterSpace,
    freeze,
    frozen_digest,
    load_parameters_,
    model_fingerprint,
    trained_part,
    trained_state,
    weights_digest,
    without_adapters,
)
from hf_fastif.model.prefix_cache import FrozenStates, find_frozen_states
from hf_fastif.model.training_loss import LossFacts, resolve_training_loss


__all__ = [
    "Batch",
    "Contrast",
    "FrozenStates",
    "IGNORED",
    "LOSS",
    "LogProbability",
    "Logit",
    "LossFacts",
    "Margin",
    "Measure",
    "Objective",
    "ParameterSpace",
    "TokenHead",
    "check_adapters",
    "check_model",
    "check_no_inference_tensors",
    "check_whole",
    "derivatives_along",
    "differentiable",
    "find_frozen_states",
    "freeze",
    "frozen_digest",
    "load_parameters_",
    "model_fingerprint",
    "resolve_training_loss",
    "settle_padding",
    "sharded_by",
    "trained_part",
    "trained_state",
    "warn_of_half_precision",
    "weights_digest",
    "without_adapters",
    "without_targets_of_padding",
]
