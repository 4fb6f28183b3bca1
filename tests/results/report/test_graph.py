"""The graph of a result, where its nodes are placed, and its figure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array
from synthetic import synthetic_result

from hf_fastif.results.report.figure import plot_graph
from hf_fastif.results.report.graph import influence_graph
from hf_fastif.results.report.layout import DOT, TRAIN_RADIUS, lay_out, on_circle, optimal_positions


SLICES = {"small": 3, "large": 5}


@pytest.fixture(scope="module")
def result():
    return synthetic_result(SLICES, num_trains=60, k=15)


def place(weights, anchors, radius=0.7, exactly=False):
    weights = np.atleast_2d(np.asarray(weights, dtype=float))
    return optimal_positions(csr_array(weights), np.asarray(anchors), np.full(len(weights), radius), exactly)


def objective(points, weights, anchors):
    return (weights * np.linalg.norm(points[:, None] - anchors[None], axis=2)).sum(axis=1)


def test_every_row_is_an_edge_between_its_query_and_its_training_example(result):
    graph = influence_graph(result, "group", "group")
    table = result.to_pandas()
    assert graph.slices == ["large", "small"] and graph.subsets == ["group 0", "group 1", "group 2"]
    assert graph.query_indices[graph.edge_queries].tolist() == table["query_index"].tolist()
    assert graph.train_indices[graph.edge_trains].tolist() == table["train_index"].tolist()
    np.testing.assert_allclose(graph.influences, table["influence"])
    assert [graph.slices[i] for i in graph.edge_slices] == table["query_group"].tolist()
    assert [graph.subsets[i] for i in graph.edge_subsets] == table["train_group"].tolist()
    assert (np.diff(graph.query_slices) >= 0).all()


def test_strength_is_relative_to_the_slice(result):
    graph = influence_graph(result, "group")
    strengths = graph.strengths()
    for number in (0, 1):
        own = graph.edge_slices == number
        size = np.abs(graph.influences[own])
        assert strengths[own].max() == 1
        np.testing.assert_allclose(strengths[own], np.minimum(1, size / np.quantile(size, 0.99)))


@pytest.mark.parametrize("budget, rank", [(20, 1), (35, 2), (10**6, 15)])
def test_the_strongest_edges_that_fit(result, budget, rank):
    graph = influence_graph(result, "group", "group")
    ranks = np.asarray(result.influences["rank"])
    kept = graph.strongest(ranks, budget)
    assert kept.edge_rows.tolist() == np.flatnonzero(ranks <= rank).tolist()
    table = result.to_pandas()[ranks <= rank]
    assert kept.train_indices[kept.edge_trains].tolist() == table["train_index"].tolist()
    assert [kept.subsets[i] for i in kept.edge_subsets] == table["train_group"].tolist()
    assert kept.query_indices.tolist() == graph.query_indices.tolist()


def test_a_column_that_is_not_there(result):
    with pytest.raises(ValueError, match="slice_column='genre': there is no such column; give one of .*premise"):
        influence_graph(result, "genre")
    with pytest.raises(ValueError, match="subset_column='genre': there is no such column; give one of .*premise"):
        influence_graph(result, None, "genre")


def test_one_query_draws_its_example_to_the_rim_beside_it():
    angle = np.array([0.3])
    np.testing.assert_allclose(place([2.0], on_circle(angle, 1.0)), on_circle(angle, 0.7), atol=1e-6)


def test_three_equal_queries_hold_their_example_in_the_centre():
    anchors = on_circle(np.array([0.1, 0.1 + 2 * np.pi / 3, 0.1 + 4 * np.pi / 3]), 1.0)
    np.testing.assert_allclose(place([1, 1, 1], anchors), [[0, 0]], atol=1e-6)


def test_sides_of_3_4_5_meet_at_the_angles_that_balance_them():
    # At an inner optimum the pulls, unit vectors times weights, add up to nothing: they form a triangle.
    anchors = on_circle(np.array([0.2, 2.4, 4.1]), 1.0)
    found = place([3, 4, 5], anchors)
    pulls = (anchors - found) / np.linalg.norm(anchors - found, axis=1)[:, None] * [[3], [4], [5]]
    np.testing.assert_allclose(pulls.sum(axis=0), 0, atol=1e-4)
    assert pulls[0] @ pulls[1] == pytest.approx(0, abs=1e-3)  # the right angle of the triangle with sides 3, 4, 5


@pytest.mark.parametrize("exactly", [False, True])
def test_no_point_of_a_fine_grid_is_better(exactly):
    random = np.random.default_rng(0)
    anchors = on_circle(np.sort(random.uniform(0, 2 * np.pi, 6)), 1.0)
    weights = random.gamma(0.5, 1, (40, 6)) * (random.random((40, 6)) < 0.6) + np.eye(6)[random.integers(0, 6, 40)]
    found = place(weights, anchors, exactly=exactly)
    lengths = np.linalg.norm(found, axis=1)
    assert (np.abs(lengths - 0.7) < 1e-9).all() if exactly else (lengths < 0.7 + 1e-9).all()
    assert exactly or (lengths < 0.69).any()
    angles = np.linspace(0, 2 * np.pi, 721)
    grid = np.concatenate([on_circle(angles, r) for r in ([0.7] if exactly else np.linspace(0, 0.7, 71))])
    best = np.min([objective(np.repeat(point[None], 40, 0), weights, anchors) for point in grid], axis=0)
    assert (objective(found, weights, anchors) <= best * (1 + 1e-6)).all()


def test_sizes_of_weights_do_not_matter():
    anchors = on_circle(np.array([0.2, 2.4, 4.1]), 1.0)
    np.testing.assert_allclose(place([3e-30, 4e-30, 5e-30], anchors), place([3, 4, 5], anchors), atol=1e-9)


def test_queries_stand_on_the_arc_of_their_slice(result):
    graph = influence_graph(result, "group")
    layout = lay_out(graph)
    np.testing.assert_allclose(np.linalg.norm(layout.queries, axis=1), 1)
    angles = np.arctan2(layout.queries[:, 0], layout.queries[:, 1]) % (2 * np.pi)
    assert (np.diff(angles) > 0).all()
    begins, ends = layout.arcs[graph.query_slices].T
    assert ((begins < angles) & (angles < ends)).all()
    lengths = np.diff(layout.arcs, axis=1)[:, 0]
    assert lengths[0] / lengths[1] == pytest.approx(5 / 3)
    assert layout.arcs[1, 0] > layout.arcs[0, 1]  # a gap


def test_examples_at_the_rim_are_stacked_the_most_influential_outermost(result):
    layout = lay_out(influence_graph(synthetic_result({"one": 1}, num_trains=30, k=200)))
    graph = influence_graph(synthetic_result({"one": 1}, num_trains=30, k=200))
    lengths = np.linalg.norm(layout.trains, axis=1)
    strongest = np.argsort(-np.abs(graph.influences))
    by_strength = lengths[graph.edge_trains[strongest]]
    assert by_strength[0] == pytest.approx(TRAIN_RADIUS)
    steps = -np.diff(by_strength)
    assert (steps > 0).all() and steps.max() <= DOT + 1e-9
    assert TRAIN_RADIUS - by_strength[-1] < 0.3 * TRAIN_RADIUS


def test_subsets_have_circles_of_their_own(result):
    graph = influence_graph(result, "group", "group")
    layout = lay_out(graph)
    lengths = np.linalg.norm(layout.trains, axis=1)
    np.testing.assert_allclose(layout.radii, TRAIN_RADIUS * np.array([1, 2, 3]) / 3)
    own = layout.radii[graph.train_subsets]
    assert (lengths <= own + 1e-9).all() and (lengths > own - 0.6 * TRAIN_RADIUS / 3 - 1e-9).all()


def test_the_order_of_the_rows_does_not_matter(result):
    graph = influence_graph(result, "group")
    order = np.random.default_rng(1).permutation(len(graph.influences))
    names = ("edge_rows", "edge_queries", "edge_trains", "influences")
    mixed = replace(graph, **{name: getattr(graph, name)[order] for name in names})
    np.testing.assert_allclose(lay_out(mixed).trains, lay_out(graph).trains, atol=1e-6)
    assert np.array_equal(lay_out(graph).trains, lay_out(influence_graph(result, "group")).trains)


def test_the_figure_names_slices_and_subsets(result, tmp_path):
    graph = influence_graph(result, "group", "group")
    paths = plot_graph(graph, *(tmp_path / f"graph.{end}" for end in ("png", "svg", "pdf")), title="What helped")
    png, svg, pdf = (path.read_bytes() for path in paths)
    assert png[:4] == b"\x89PNG" and pdf[:4] == b"%PDF"
    counts = np.bincount(graph.train_subsets)
    for text in ("What helped", "small (3)", "large (5)", f"group 2 ({counts[2]})", "harmful (raises the loss)"):
        assert f"<!-- {text} -->".encode() in svg
    with pytest.raises(ValueError, match=r"give a name that ends in .png, .svg, .pdf"):
        plot_graph(graph, tmp_path / "other.png", tmp_path / "graph.jpg")
    assert not (tmp_path / "other.png").exists()


def test_the_legend_says_which_way_examples_change_a_measure(result, tmp_path):
    graph = replace(influence_graph(result, "group"), measure="Margin()")
    svg = plot_graph(graph, tmp_path / "graph.svg")[0].read_text("utf-8")
    assert "<!-- helpful (raises the measure) -->" in svg and "<!-- harmful (lowers the measure) -->" in svg
