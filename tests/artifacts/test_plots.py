"""The look that all figures share."""

from __future__ import annotations

from itertools import combinations

import pytest

from hf_fastif.artifacts.plots import (
    HARMFUL,
    HELPFUL,
    NEUTRAL,
    OTHERS,
    TEXT,
    colors_of,
    draw_curve,
    draw_points,
    mark_sizes,
    new_figure,
    save_figure,
    try_to_draw,
)
from hf_fastif.errors import InfluenceError


def luminance(color: str) -> float:
    shares = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117"])
def test_colors_read_on_light_and_dark_pages(page):
    for color in (HELPFUL, HARMFUL, NEUTRAL, TEXT, *OTHERS):
        dark, light = sorted((luminance(color), luminance(page)))
        assert (light + 0.05) / (dark + 0.05) > 3.6


def test_series_have_colors_of_their_own():
    colors = colors_of(["helpful", "anchors", "helpful", "harmful", "random", "balanced"])
    assert (colors["helpful"], colors["harmful"], colors["random"]) == (HELPFUL, HARMFUL, NEUTRAL)
    assert all(colors[one] != colors[other] for one, other in combinations(colors, 2))
    assert len({colors_of([str(number) for number in range(8)])[str(number)] for number in range(8)}) == 8


def test_sizes_are_named_where_they_do_not_lie_close():
    _, ((axes,),) = new_figure(4, 3)
    mark_sizes(axes, [1000, 10, 990, 1000])
    assert axes.get_xticks().tolist() == [10, 990, 1000]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "", "1,000"]
    mark_sizes(axes, [5])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5"]


def test_figures_are_written_in_the_format_of_their_names(tmp_path):
    figure, panels = new_figure(8, 3, columns=2, title="what is shown " * 20)
    draw_curve(panels[0, 0], [1, 2], [3, 4], [2, 3], [4, 5])
    draw_points(panels[0, 1], [1, 2], [0, 1], [0.5, float("nan")], [1.5, float("nan")], sideways=True, fmt="o")
    png, svg = save_figure(figure, tmp_path / "drawn.png", tmp_path / "drawn.svg")
    assert png.read_bytes().startswith(b"\x89PNG") and b"<svg" in svg.read_bytes()
    assert figure.get_suptitle().startswith("What is shown") and "\n" in figure.get_suptitle()


def test_without_matplotlib_the_extra_is_named(without_matplotlib):
    assert not try_to_draw(lambda: new_figure(4, 3))
    with pytest.raises(InfluenceError, match=r"matplotlib is not installed.*pip install 'hf_fastif\[plots\]'"):
        new_figure(4, 3)
