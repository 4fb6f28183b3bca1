"""The data of the page's graph as JSON: numbers in base64, each text once."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import numpy as np

from hf_fastif.results.report.figure import subset_color
from hf_fastif.results.report.graph import InfluenceGraph
from hf_fastif.results.report.layout import lay_out
from hf_fastif.results.report.rows import plain_row, query_rows, training_rows
from hf_fastif.results.report.tables import EVERY, correlation_table, edge_table
from hf_fastif.results.tables import ResultTables
from hf_fastif.results.words import MINUS, ScoreWords


NUM_EDGES = 40_000  # edges on the page; its tables count all edges
COORDINATE = 32_000  # integer that encodes the radius of the outer circle
STRENGTH = 255  # integer that encodes the strongest edge


def graph_section(result: ResultTables, graph: InfluenceGraph, words: ScoreWords) -> dict[str, Any]:
    """Return the variables of the graph's template."""
    ranks = np.asarray(result.influences.with_format("numpy")["rank"])[graph.edge_rows]
    shown = graph.strongest(ranks, NUM_EDGES)
    left_out = len(ranks) - len(shown.influences)
    examples = result.summary.num_examples
    return {
        "data": json.dumps(_data(result, shown, words), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
        "slices": graph.slices,
        "subsets": [{"name": name, "color": subset_color(i)} for i, name in enumerate(graph.subsets)],
        "num_queries": f"{len(graph.query_indices):,}",
        "num_trains": f"{len(shown.train_indices):,}",
        "num_edges": f"{len(shown.influences):,}",
        "left_out": f"{left_out:,}" if left_out else None,
        "num_strongest": f"{ranks[np.isin(graph.edge_rows, shown.edge_rows)].max():,}",
        "num_examples": None if examples is None else f"{examples:,}",
        "table": _edge_rows(graph, words),
        "correlations": _correlation_rows(graph) if len(graph.slices) > 1 else [],
    }


def _data(result: ResultTables, graph: InfluenceGraph, words: ScoreWords) -> dict[str, Any]:
    layout, strengths = lay_out(graph), graph.strengths()
    order = np.argsort(-strengths, kind="stable")  # the page draws the strongest first
    first = np.unique(graph.edge_trains, return_index=True)[1]
    query_data: dict[int, dict[str, Any]] = {}
    for row in query_rows(result):
        query_data.setdefault(row["query"], row | {"anchors": 0})["anchors"] += 1
    places = np.concatenate([layout.queries, layout.trains])
    return {
        "slices": [
            {"name": name, "begin": round(begin, 5), "end": round(end, 5)}
            for name, (begin, end) in zip(graph.slices, layout.arcs.tolist(), strict=True)
        ],
        "subsets": [
            {"name": name, "radius": round(radius, 5), "color": subset_color(i)}
            for i, (name, radius) in enumerate(zip(graph.subsets, layout.radii.tolist(), strict=True))
        ],
        "places": _packed(np.round(COORDINATE * places), "<i2"),
        "querySlices": _packed(graph.query_slices, "<u4"),
        "trainSubsets": _packed(graph.train_subsets, "<u4"),
        "queries": [_node(query_data[query], query) for query in graph.query_indices.tolist()],
        "trains": [
            _node(plain_row(row, result.summary), row["train_index"])
            for row in training_rows(result, graph.edge_rows[first])
        ],
        "edgeQueries": _packed(graph.edge_queries[order], "<u4"),
        "edgeTrains": _packed(graph.edge_trains[order], "<u4"),
        "factor": words.factor,
        "noun": words.noun,
        "influences": _packed(graph.influences[order], "<f4"),
        "strengths": _packed(np.round(STRENGTH * strengths[order]), "u1"),
    }


def _node(row: dict[str, Any], index: int) -> dict[str, Any]:
    """Return the data of a node: its index, shortened texts, label, tags and, for a query, its prediction."""
    texts = [
        (text["name"], text["text"] if text["beginning"] is None else f"{text['beginning']}…") for text in row["texts"]
    ]
    node = {"index": index, "texts": texts, "label": row["label"], "tags": row["tags"]}
    node |= {name: row[name] for name in ("prediction", "probability", "loss", "verdict") if row.get(name)}
    return node | ({"anchors": row["anchors"]} if row.get("anchors", 1) > 1 else {})


def _packed(values: np.ndarray, kind: str) -> str:
    return b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode("ascii")


def _edge_rows(graph: InfluenceGraph, words: ScoreWords) -> list[dict[str, str]]:
    rows = edge_table(graph).to_dict("records")
    return [
        {
            "slice": row["slice"],
            "subset": "" if row["subset"] == EVERY else row["subset"],
            "queries": f"{row['queries']:,}",
            **{f"{name}_edges": f"{row[f'{name}_edges']:,}" for name in ("helpful", "harmful")},
            **{
                f"{name}_mean": words.number(sign * row[f"{name}_mean"]) if row[f"{name}_edges"] else "–"
                for name, sign in (("helpful", -1), ("harmful", 1))
            },
        }
        for row in rows
    ]


def _correlation_rows(graph: InfluenceGraph) -> list[dict[str, Any]]:
    """Return a row for each slice, with a cell for each slice."""
    cells = [
        {
            "value": "–" if np.isnan(row["pearson"]) else f"{row['pearson']:.2f}".replace("-", MINUS),
            "pairs": f"{row['pairs']:,}",
        }
        for row in correlation_table(graph).to_dict("records")
    ]
    count = len(graph.slices)
    return [{"slice": name, "cells": cells[i * count : (i + 1) * count]} for i, name in enumerate(graph.slices)]
