"""The influence of many candidates, given s_test."""

from hf_fastif.scoring.forward_mode import forward_mode_scores
from hf_fastif.scoring.gradients import gradient_scores, self_influence
from hf_fastif.scoring.scan import Scoring, choose_scoring, covering_layers, influence_scores
from hf_fastif.scoring.tokens import check_token_losses, has_token_losses, token_scores


__all__ = [
    "Scoring",
    "check_token_losses",
    "choose_scoring",
    "covering_layers",
    "forward_mode_scores",
    "gradient_scores",
    "has_token_losses",
    "influence_scores",
    "self_influence",
    "token_scores",
]
