"""One look for all figures: colors and text that read on light and on dark pages, and what figures share."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from transformers.utils import logging

from hf_fastif.artifacts.files import atomic_write
from hf_fastif.errors import MissingExtraError, needs_extra


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.get_logger(__name__)

# Each has a contrast of 3.6 or more with white and with the dark pages of the Hub.
HELPFUL, HARMFUL, NEUTRAL = "#2f7fc1", "#cf5c1f", "#7d838c"
OTHERS = ("#2a9164", "#9463c7", "#a87f10", "#cc4f8f", "#15909c")
TEXT = "#737a84"
COLORS = {"helpful": HELPFUL, "harmful": HARMFUL, "random": NEUTRAL}
SIZES = {"title": 10, "label": 9, "tick": 8, "legend": 8}  # in points
LETTERS_PER_INCH = 11  # of a title
DPI = 150


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """Return a color for each of some series; helpful, harmful and random ones have the same in all figures."""
    others = [name for name in dict.fromkeys(names) if name not in COLORS]
    free = OTHERS if {*names} & {*COLORS} else (HELPFUL, HARMFUL, *OTHERS, NEUTRAL)
    return COLORS | {name: free[number % len(free)] for number, name in enumerate(others)}


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, title: str | None = None, **shared: bool
) -> tuple[Figure, np.ndarray]:
    """Make a figure with panels.

    Args:
        width (`float`): Inches.
        height (`float`): Inches.
        rows (`int`, *optional*, defaults to 1): Rows of panels.
        columns (`int`, *optional*, defaults to 1): Columns of panels.
        title (`str`, *optional*): What the figure shows, in a sentence.
        **shared: `sharex` and `sharey`.

    Returns:
        The figure and its panels, `(rows, columns)`.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    with needs_extra("plots"):
        from matplotlib.figure import Figure  # slow to import
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    panels = figure.subplots(rows, columns, squeeze=False, **shared)
    for axes in panels.ravel():
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(TEXT)
        axes.tick_params(which="both", color=TEXT, labelcolor=TEXT, labelsize=SIZES["tick"])
        axes.grid(color=NEUTRAL, alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set(color=TEXT, fontsize=SIZES["label"])
    if title:
        lines = textwrap.fill(title[0].upper() + title[1:], int(LETTERS_PER_INCH * width))
        figure.suptitle(lines, x=0.01, ha="left", color=TEXT, fontsize=SIZES["title"], fontweight="bold")
    return figure, panels


def draw_curve(
    axes: Axes, x: ArrayLike, y: ArrayLike, low: ArrayLike | None = None, high: ArrayLike | None = None, **style: Any
) -> None:
    """Draw a line, with a band from `low` to `high` around it if these are given."""
    (line,) = axes.plot(x, y, **style)
    if low is not None:
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)


def draw_points(
    axes: Axes, x: ArrayLike, y: ArrayLike, low: ArrayLike, high: ArrayLike, sideways: bool = False, **style: Any
) -> None:
    """Draw points with bars from `low` to `high`, along y or (`sideways`) along x; where these are NaN no bar."""
    middle = np.asarray(x if sideways else y, dtype=float)
    bars = np.abs(np.stack([np.asarray(low, dtype=float), np.asarray(high, dtype=float)]) - middle)
    axes.errorbar(
        x, y, **{"xerr" if sideways else "yerr": bars, "capsize": 2, "markersize": 4, "elinewidth": 1} | style
    )


def name_panel(axes: Axes, name: str) -> None:
    """Write a name above a panel."""
    axes.set_title(name, fontsize=SIZES["label"], color=TEXT)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows 0, 1, ... of a panel, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def count_steps(axes: Axes, name: str = "steps") -> None:
    """Make x an axis of whole steps."""
    axes.set_xlabel(name)
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)


def draw_level(axes: Axes, y: float, **style: Any) -> None:
    """Draw a horizontal line to compare with, such as at no change."""
    axes.axhline(y, **{"color": NEUTRAL, "linewidth": 0.9, "zorder": 1} | style)


def mark_sizes(axes: Axes, sizes: Iterable[int]) -> None:
    """Make x a logarithmic axis that marks the sizes that occur; sizes close to each other are not all named."""
    marked = sorted(set(sizes))
    if not marked:
        return
    apart = 0.1 * np.log(marked[-1] / marked[0])
    names, last = {}, np.inf
    for size in reversed(marked):
        if np.log(last / size) > apart:
            names[size], last = f"{size:,}", size
    axes.set_xscale("log")
    axes.set_xlim(marked[0] / 1.4, marked[-1] * 1.4)
    axes.set_xticks(marked, [names.get(size, "") for size in marked])
    axes.minorticks_off()


def add_legend(figure: Figure, axes: Axes, place: str = "right center", **style: Any) -> None:
    """Name the series of a panel outside all panels."""
    style = {"fontsize": SIZES["legend"], "labelcolor": TEXT, "frameon": False} | style
    handles, names = axes.get_legend_handles_labels()
    named = dict(zip(names, handles, strict=True))
    legend = figure.legend(named.values(), named.keys(), loc=f"outside {place}", **style)
    legend.get_title().set(color=TEXT, fontsize=SIZES["legend"])


def try_to_draw(draw: Callable[[], object]) -> bool:
    """Draw a figure that can be done without; warn where matplotlib is not installed, and return whether it is."""
    try:
        draw()
    except MissingExtraError as error:
        logger.warning_once(f"A figure is left out: {error}")
        return False
    return True


def save_figure(figure: Figure, *paths: str | Path, dpi: int = DPI) -> list[Path]:
    """Write a figure into files; the suffix says in which format, and without one it is PNG."""
    return [
        atomic_write(
            Path(path), lambda file, path=path: figure.savefig(file, format=Path(path).suffix[1:] or "png", dpi=dpi)
        )
        for path in paths
    ]
