"""The engine: a session on a model and its data, in which s_test is solved for and candidates are scored."""

from hf_fastif.influence.cautions import cautions
from hf_fastif.influence.estimate import Estimate, estimate_costs
from hf_fastif.influence.predictions import Predictions, loss_gradients
from hf_fastif.influence.queries import QuerySet
from hf_fastif.influence.ranking import Ranking, self_influence_by_index
from hf_fastif.influence.recorded import recorded_settings, unit_of_scores
from hf_fastif.influence.session import InfluenceSession, folder_of, open_session
from hf_fastif.influence.session_cache import SessionCache


__all__ = [
    "Estimate",
    "InfluenceSession",
    "Predictions",
    "QuerySet",
    "Ranking",
    "SessionCache",
    "cautions",
    "estimate_costs",
    "folder_of",
    "loss_gradients",
    "open_session",
    "recorded_settings",
    "self_influence_by_index",
    "unit_of_scores",
]
