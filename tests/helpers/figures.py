"""What figures show."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import Container


def curves(axes: Axes) -> dict[str, np.ndarray]:
    """Return the points (n, 2) of each curve of a panel that has a label, with or without bars for its errors."""
    labelled = zip(*axes.get_legend_handles_labels(), strict=True)
    lines = {label: handle[0] if isinstance(handle, Container) else handle for handle, label in labelled}
    return {label: line.get_xydata() for label, line in lines.items()}


def bars(axes: Axes) -> list[float]:
    """Return the lengths of the horizontal bars of a panel, from the first that was drawn."""
    return [bar.get_width() for bar in axes.patches]
