"""The influence of many candidates, given s_test."""

from hf_fastif.scoring.by_rows import batch_scores_by_rows
from hf_fastif.scoring.forward_mode import batch_scores
from hf_fastif.scoring.scan import influence_scores


__all__ = ["batch_scores", "batch_scores_by_rows", "influence_scores"]
