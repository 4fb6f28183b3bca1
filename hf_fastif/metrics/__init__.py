"""Measure influence with `evaluate` modules, which work offline."""

from hf_fastif.metrics.datamodeling import SubsetLosses, lds, rank_correlations
from hf_fastif.metrics.influence_correlation import COEFFICIENTS, InfluenceCorrelation, correlations
from hf_fastif.metrics.intervals import two_way_interval
from hf_fastif.metrics.linear_datamodeling_score import LinearDatamodelingScore
from hf_fastif.metrics.recall_at_m import RecallAtM


__all__ = [
    "COEFFICIENTS",
    "InfluenceCorrelation",
    "LinearDatamodelingScore",
    "RecallAtM",
    "SubsetLosses",
    "correlations",
    "lds",
    "rank_correlations",
    "two_way_interval",
]
