"""Positions of the nodes of an influence graph (appendix C.2 of the paper).

Queries lie on the circle of radius 1, slice by slice. Training examples lie inside, each placed near the queries it
influences most. The position of training example i is

    x_i = argmin over x of  sum over queries q of  |I_iq| * ||x - p_q||,    ||x|| <= R

so an example that several queries share is closer to the centre. With several subsets, each has a separate circle, and
the constraint is ||x|| = R_k. (The authors' code computes two such optima, over the helpful and over the harmful
edges, and draws their mean.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from hf_fastif.results.report.graph import InfluenceGraph


TRAIN_RADIUS = 0.72  # radius of the disk of training examples, or of the largest of several circles
GAP = 0.012  # between slices, as a share of the circle
DOT = 0.008  # diameter of a training example
NUM_STEPS = 2000
TOLERANCE = 1e-6  # a smaller step ends the search
NUM_ANGLES = 180  # starting points tried on a circle, which can have several local optima


@dataclass(frozen=True)
class Layout:
    """Coordinates within the circle of radius 1, with y pointing up.

    Attributes:
        queries (`np.ndarray` of shape `(Q, 2)`): Positions of the queries.
        trains (`np.ndarray` of shape `(M, 2)`): Positions of the training examples.
        arcs (`np.ndarray` of shape `(S, 2)`): Begin and end of the arc of each slice, in radians, clockwise from the
            top.
        radii (`np.ndarray`): R of each subset.
    """

    queries: np.ndarray
    trains: np.ndarray
    arcs: np.ndarray
    radii: np.ndarray


def lay_out(graph: InfluenceGraph) -> Layout:
    """Place the nodes of a graph; equal graphs get equal layouts.

    Training examples that would overlap at the rim of their circle are stacked inwards, the most influential one
    outermost.
    """
    arcs, angles = _arcs(np.bincount(graph.query_slices, minlength=len(graph.slices)))
    queries = on_circle(angles, 1.0)
    count, several = len(graph.subsets), len(graph.subsets) > 1
    radii = TRAIN_RADIUS * np.arange(1, count + 1) / count
    train_radii = radii[graph.train_subsets]
    size = np.abs(graph.influences)
    weights = csr_array((size, (graph.edge_trains, graph.edge_queries)), shape=(len(train_radii), len(queries)))
    optima = optimal_positions(weights, queries, train_radii, several)
    depth = 0.6 * TRAIN_RADIUS / count if several else 0.3 * TRAIN_RADIUS
    trains = _stack(optima, train_radii, np.asarray(weights.sum(axis=1)), depth)
    return Layout(queries, trains, arcs, radii)


def on_circle(angles: np.ndarray, radius: float | np.ndarray) -> np.ndarray:
    """Return points (n, 2) at some angles, in radians, clockwise from the top."""
    return np.stack([radius * np.sin(angles), radius * np.cos(angles)], axis=1)


def optimal_positions(weights: csr_array, anchors: np.ndarray, radii: np.ndarray, exactly: bool) -> np.ndarray:
    """Minimise sum_q w_iq ||x_i - p_q|| for each i, over the disk of radius R_i or over its boundary.

    Each step minimises sum_q w_iq ||x - p_q||^2 / (2 ||x_i - p_q||), which touches the objective at x_i and bounds it
    from above (Weiszfeld's algorithm). Its level sets are circles, so the constrained minimum is a projection.

    Args:
        weights (`csr_array` of shape `(M, Q)`): Not negative, with at least one entry per row.
        anchors (`np.ndarray` of shape `(Q, 2)`): p_q, all of them outside the disks.
        radii (`np.ndarray` of shape `(M,)`): R_i.
        exactly (`bool`): Whether ||x_i|| = R_i; otherwise ||x_i|| <= R_i, in which case the optimum is unique.

    Returns:
        `np.ndarray` of shape `(M, 2)`: x_i.
    """
    edges = weights.tocoo()
    rows, columns, size = *edges.coords, edges.data / weights.max(axis=1).toarray()[edges.coords[0]]
    positions = _best_angles(weights, anchors, radii) if exactly else np.zeros((len(radii), 2))
    for _ in range(NUM_STEPS):
        pull = size / np.linalg.norm(positions[rows] - anchors[columns], axis=1)
        total = np.bincount(rows, pull, len(radii))
        moving = np.flatnonzero(total)
        sums = [np.bincount(rows, pull * anchors[columns, axis], len(radii))[moving] for axis in (0, 1)]
        target = np.stack(sums, axis=1) / total[moving, None]
        length = np.maximum(np.linalg.norm(target, axis=1), np.finfo(float).tiny)
        limit = radii[moving] / length
        target *= (limit if exactly else np.minimum(limit, 1))[:, None]
        moved = np.linalg.norm(target - positions[moving], axis=1)
        positions[moving] = target
        going = np.zeros(len(radii), dtype=bool)
        going[moving[moved > TOLERANCE]] = True
        remaining = going[rows]
        rows, columns, size = rows[remaining], columns[remaining], size[remaining]
        if not len(rows):
            break
    return positions


def _best_angles(weights: csr_array, anchors: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Return the best of some points on the circle of each row, as starting points."""
    angles = np.arange(NUM_ANGLES) * 2 * np.pi / NUM_ANGLES
    best = np.empty(len(radii))
    for radius in np.unique(radii):
        on_radius = np.flatnonzero(radii == radius)
        points = on_circle(angles, radius)
        distances = np.linalg.norm(anchors[:, None] - points[None], axis=2)
        best[on_radius] = angles[(weights[on_radius] @ distances).argmin(axis=1)]
    return on_circle(best, radii)


def _arcs(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return begin and end of each slice's arc (S, 2), in proportion to its queries, and the angle of each query."""
    gap = GAP if len(sizes) > 1 else 0.0
    step = (1 - gap * len(sizes)) / sizes.sum()
    ends = np.cumsum(sizes * step + gap) - gap / 2
    begins = ends - sizes * step
    places = np.concatenate(
        [begin + (np.arange(size) + 0.5) * step for begin, size in zip(begins, sizes, strict=True)]
    )
    return 2 * np.pi * np.stack([begins, ends], axis=1), 2 * np.pi * places


def _stack(positions: np.ndarray, radii: np.ndarray, strengths: np.ndarray, depth: float) -> np.ndarray:
    """Move points at the rim with (nearly) equal angles inwards, each by one more step, by at most `depth`."""
    lengths = np.linalg.norm(positions, axis=1)
    rim = np.flatnonzero(lengths > radii - DOT / 2)
    angles = np.arctan2(positions[rim, 0], positions[rim, 1]) % (2 * np.pi)
    bins = np.round(angles * radii[rim] / DOT).astype(np.int64)
    order = np.lexsort((rim, -strengths[rim], bins, radii[rim]))
    changes = np.diff(bins[order], prepend=-1) != 0
    changes |= np.diff(radii[rim][order], prepend=-1) != 0
    starts = np.flatnonzero(changes)
    sizes = np.diff(starts, append=len(order))
    within = np.arange(len(order)) - np.repeat(starts, sizes)
    inward = within * np.repeat(np.minimum(DOT, depth / np.maximum(sizes, 1)), sizes)
    moved = rim[order]
    stacked = positions.copy()
    stacked[moved] *= (1 - inward / lengths[moved])[:, None]
    return stacked
