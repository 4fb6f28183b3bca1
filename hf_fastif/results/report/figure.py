"""The influence graph as a figure (figure 5 of the paper)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_fastif.artifacts.plots import (
    COLORS,
    NEUTRAL,
    OTHERS,
    SIZES,
    TEXT,
    add_legend,
    new_figure,
    save_figure,
)
from hf_fastif.errors import InfluenceError
from hf_fastif.model import LOSS
from hf_fastif.results.report.graph import InfluenceGraph
from hf_fastif.results.report.layout import Layout, lay_out, on_circle
from hf_fastif.scoring import verbs_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUBSET_COLORS = (NEUTRAL, *OTHERS)  # taken in turn
FORMATS = ("png", "svg", "pdf")


def plot_graph(graph: InfluenceGraph, *paths: str | os.PathLike[str], title: str | None = None) -> list[Path]:
    """Draw a graph into files and return their paths: queries on a circle, training examples inside, edges between.

    The color of an edge shows its sign, its opacity the strength. In SVG and PDF files the edges are a bitmap of 300
    dots per inch; everything else is lines and text.

    Args:
        graph ([`InfluenceGraph`]): The graph to draw.
        *paths (`str` or `Path`): Files to write, `.png`, `.svg` or `.pdf`.
        title (`str`, *optional*): The title above the graph.

    Raises:
        InfluenceError: If a file name has another suffix.

    Example:

    ```python
    from hf_fastif.results import influence_graph, plot_graph

    plot_graph(influence_graph(result), "graph.pdf", "graph.png", title="Errors on HANS")
    ```
    """
    for path in map(Path, paths):
        if path.suffix[1:] not in FORMATS:
            raise InfluenceError(f"path={str(path)!r}: give a name that ends in .{', .'.join(FORMATS)}.")
    layout = lay_out(graph)
    figure, ((axes,),) = new_figure(6.2, 6.9, title=title)
    axes.set(xlim=(-1.16, 1.16), ylim=(-1.16, 1.16), aspect="equal")
    axes.set_axis_off()
    _draw_edges(axes, graph, layout)
    _draw_nodes(axes, graph, layout)
    _draw_names(axes, graph, layout)
    _add_names(axes, graph)
    add_legend(figure, axes, "lower center", ncols=2)
    return save_figure(figure, *paths, dpi=300)


def subset_color(number: int) -> str:
    """Return the color of the training examples of a subset."""
    return SUBSET_COLORS[number % len(SUBSET_COLORS)]


def short_effects(measure: str) -> dict[str, str]:
    """Return what training examples of each direction do, in words that fit into a figure whatever the measure."""
    subject = "the loss" if measure == LOSS else "the measure"
    return {direction: f"{verb}s {subject}" for direction, verb in verbs_of(measure).items()}


def _draw_edges(axes: Axes, graph: InfluenceGraph, layout: Layout) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb

    strengths = graph.strengths()
    order = np.argsort(strengths, kind="stable")  # the strongest on top
    colors = np.empty((len(order), 4))
    colors[:, :3] = np.where((graph.influences < 0)[:, None], to_rgb(COLORS["helpful"]), to_rgb(COLORS["harmful"]))
    thin = min(1.0, (4000 / len(order)) ** 0.5)  # many edges cover each other
    colors[:, 3] = 0.05 * thin + 0.75 * thin**0.5 * strengths**1.5
    segments = np.stack([layout.trains[graph.edge_trains], layout.queries[graph.edge_queries]], axis=1)
    widths = 0.3 + 0.9 * strengths
    axes.add_collection(
        LineCollection(segments[order], colors=colors[order], linewidths=widths[order], rasterized=True, zorder=1)
    )


def _draw_nodes(axes: Axes, graph: InfluenceGraph, layout: Layout) -> None:
    size = float(np.clip(60 / len(layout.trains) ** 0.5, 0.6, 6))
    for subset in range(len(graph.subsets)):
        positions = layout.trains[graph.train_subsets == subset]
        color = subset_color(subset)
        axes.scatter(*positions.T, s=size, color=color, linewidths=0, rasterized=True, zorder=2)
    for begin, end in layout.arcs:
        axes.plot(*on_circle(np.linspace(begin, end, 200), 1.03).T, color=TEXT, linewidth=1.2)
    axes.scatter(*layout.queries.T, s=float(np.clip(1500 / len(layout.queries), 3, 30)), color=TEXT, zorder=3)


def _draw_names(axes: Axes, graph: InfluenceGraph, layout: Layout) -> None:
    counts = np.bincount(graph.query_slices, minlength=len(graph.slices))
    for name, count, angle in zip(graph.slices, counts, layout.arcs.mean(axis=1), strict=True):
        turn = -np.degrees(angle) % 360
        upside_down = 90 < turn < 270
        axes.text(
            *on_circle(np.array([angle]), 1.1)[0],
            f"{name} ({count:,})",
            rotation=turn + 180 * upside_down,
            ha="center",
            va="center",
            color=TEXT,
            fontsize=SIZES["label"],
        )


def _add_names(axes: Axes, graph: InfluenceGraph) -> None:
    """Add what the legend shows: lines for signs, and dots for subsets."""
    for sign, effect in short_effects(graph.measure).items():
        axes.plot([], [], color=COLORS[sign], label=f"{sign} ({effect})")
    counts = np.bincount(graph.train_subsets, minlength=len(graph.subsets))
    for number, (name, count) in enumerate(zip(graph.subsets, counts, strict=True)):
        axes.plot([], [], "o", markersize=4, color=subset_color(number), label=f"{name} ({count:,})")
