"""Results to read, save, join and publish, and their report."""

from hf_fastif.results.build import build_result
from hf_fastif.results.card import about_damping, about_residual
from hf_fastif.results.report.figure import FORMATS, plot_graph
from hf_fastif.results.report.graph import influence_graph
from hf_fastif.results.report.page import settings_table
from hf_fastif.results.report.tables import save_tables
from hf_fastif.results.result import InfluenceResult
from hf_fastif.results.tables import NUMBERS, SUMMARY
from hf_fastif.results.trained_without import HARMFUL, NOTHING, RANDOM, TrainedWithout, check_text


__all__ = [
    "FORMATS",
    "HARMFUL",
    "InfluenceResult",
    "NOTHING",
    "NUMBERS",
    "RANDOM",
    "SUMMARY",
    "TrainedWithout",
    "about_damping",
    "about_residual",
    "build_result",
    "check_text",
    "influence_graph",
    "plot_graph",
    "save_tables",
    "settings_table",
]
