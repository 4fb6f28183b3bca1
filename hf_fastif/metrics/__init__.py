"""Measures of influence as `evaluate` modules, which work offline.

Each file also serves as it is: `evaluate.load("hf_fastif/metrics/recall_at_m.py")`.
"""

from hf_fastif.metrics.influence_correlation import InfluenceCorrelation
from hf_fastif.metrics.linear_datamodeling_score import LinearDatamodelingScore
from hf_fastif.metrics.recall_at_m import RecallAtM


__all__ = ["InfluenceCorrelation", "LinearDatamodelingScore", "RecallAtM"]
