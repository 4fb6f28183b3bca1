"""The figure of a result on its card."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hf_fastif.artifacts.plots import COLORS, NEUTRAL, add_legend, name_rows, new_figure, save_figure
from hf_fastif.results.report.figure import short_effects
from hf_fastif.results.tables import ResultTables
from hf_fastif.results.words import ScoreWords
from hf_fastif.scoring import DIRECTIONS


NUM_SHOWN = 20  # queries


def plot_influences(result: ResultTables, path: Path) -> None:
    """Draw the score of every listed training example, a line for each of the first queries."""
    count = min(NUM_SHOWN, result.summary.num_queries)
    queries, directions = np.asarray(result.influences["query_index"]), np.asarray(result.influences["direction"])
    words = ScoreWords(result.summary)
    numbers = words.factor * np.asarray(result.influences["influence"])
    figure, ((axes,),) = new_figure(8, 1.6 + 0.25 * count)
    axes.axvline(0, color=NEUTRAL, linewidth=0.9)
    for direction in DIRECTIONS:
        chosen = (directions == direction) & (queries < count)
        axes.plot(numbers[chosen], queries[chosen], "o", color=COLORS[direction], alpha=0.6, label=direction)
    name_rows(axes, [str(query) for query in range(count)])
    side = "above" if words.signs["helpful"] == "+" else "below"
    effect = "" if words.predicts else f", it {short_effects(result.summary.measure)['helpful']}"
    axes.set(xlabel=f"{words.noun} (helpful: {side} 0{effect})", ylabel="query")
    add_legend(figure, axes, "upper center", ncols=2)
    save_figure(figure, path)
