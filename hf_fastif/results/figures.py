"""The figure of a result on its card."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hf_fastif.results.report.figure import COLORS
from hf_fastif.results.tables import ResultTables


NUM_SHOWN = 20  # queries


def plot_influences(result: ResultTables, path: Path) -> None:
    """Draws the influence of every listed training example, a line for each of the first queries."""
    from matplotlib.figure import Figure  # slow to import

    count = min(NUM_SHOWN, result.summary.num_queries)
    queries, directions = np.asarray(result.influences["query_index"]), np.asarray(result.influences["direction"])
    influences = np.asarray(result.influences["influence"])
    figure = Figure(figsize=(8, 1.6 + 0.25 * count), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="#888888", linewidth=0.8)
    for direction, color in COLORS.items():
        chosen = (directions == direction) & (queries < count)
        axes.plot(influences[chosen], queries[chosen], "o", color=color, alpha=0.5, label=direction)
    axes.set(xlabel="influence", ylabel="query", ylim=(count - 0.5, -0.5), yticks=range(count))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=130)
