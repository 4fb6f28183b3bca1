"""Groups of settings, each with its checks; `hf_fastif.config` composes them."""

from hf_fastif.settings.checkpoints import CHECKPOINT_WORDS, CHECKPOINTS_FIX, CheckpointSettings, check_checkpoints
from hf_fastif.settings.fields import AutoFloat, check_at_least_one, check_choice, positive_or_auto, setting
from hf_fastif.settings.index import FeatureName, IndexSettings
from hf_fastif.settings.loss import LossSettings, Reduction
from hf_fastif.settings.passes import PassSettings, ScoringName
from hf_fastif.settings.solver import SolverSettings


__all__ = [
    "CHECKPOINTS_FIX",
    "CHECKPOINT_WORDS",
    "AutoFloat",
    "CheckpointSettings",
    "FeatureName",
    "IndexSettings",
    "LossSettings",
    "PassSettings",
    "Reduction",
    "ScoringName",
    "SolverSettings",
    "check_at_least_one",
    "check_checkpoints",
    "check_choice",
    "positive_or_auto",
    "setting",
]
