"""Score candidates, given s_test, and tell which tokens carry the influence."""

from hf_fastif.scoring.gradients import self_influence
from hf_fastif.scoring.scan import Scoring, choose_scoring, covering_layers, influence_scores
from hf_fastif.scoring.scores import (
    DIRECTIONS,
    SIGN,
    GroupScores,
    QueryScores,
    TokenInfluence,
    sign_of,
    strongest,
    verbs_of,
)
from hf_fastif.scoring.token_influence import influence_of_tokens, texts_of_tokens
from hf_fastif.scoring.token_scores import has_token_losses


__all__ = [
    "DIRECTIONS",
    "GroupScores",
    "QueryScores",
    "SIGN",
    "Scoring",
    "TokenInfluence",
    "choose_scoring",
    "covering_layers",
    "has_token_losses",
    "influence_of_tokens",
    "influence_scores",
    "self_influence",
    "sign_of",
    "strongest",
    "texts_of_tokens",
    "verbs_of",
]
