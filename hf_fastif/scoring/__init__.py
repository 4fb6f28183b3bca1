"""Score candidates, given s_test, and tell which tokens carry the influence."""

from hf_fastif.scoring.grades import GOOD, POOR, grade_of, limits_of
from hf_fastif.scoring.gradients import self_influence
from hf_fastif.scoring.scan import Scoring, choose_scoring, covering_layers, influence_scores
from hf_fastif.scoring.scores import (
    ADDED,
    DIRECTIONS,
    REMOVED,
    SIGN,
    GroupScores,
    QueryScores,
    TokenInfluence,
    less_is_better,
    percentiles,
    sign_of,
    strongest,
    verbs_of,
)
from hf_fastif.scoring.token_influence import influence_of_tokens, texts_of_tokens
from hf_fastif.scoring.token_scores import has_token_losses


__all__ = [
    "ADDED",
    "DIRECTIONS",
    "GOOD",
    "GroupScores",
    "POOR",
    "QueryScores",
    "REMOVED",
    "SIGN",
    "Scoring",
    "TokenInfluence",
    "choose_scoring",
    "covering_layers",
    "grade_of",
    "has_token_losses",
    "influence_of_tokens",
    "influence_scores",
    "less_is_better",
    "limits_of",
    "percentiles",
    "self_influence",
    "sign_of",
    "strongest",
    "texts_of_tokens",
    "verbs_of",
]
