"""The influence of many candidates, given s_test."""

from hf_fastif.scoring.forward_mode import influence_scores


__all__ = ["influence_scores"]
