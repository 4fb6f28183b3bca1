"""The report of a result: its queries, the training examples that several of them share, and the graph of both."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_fastif.artifacts import CardSection, atomic_write
from hf_fastif.artifacts.plots import try_to_draw
from hf_fastif.model import LOSS
from hf_fastif.results.report.graph import InfluenceGraph, influence_graph
from hf_fastif.results.report.page_data import graph_section
from hf_fastif.results.report.rows import plain_row, query_rows, span, token_row, training_rows
from hf_fastif.results.summary import ResultSummary
from hf_fastif.results.tables import ResultTables, attributed_values
from hf_fastif.results.trained_without import check_sentence, check_table
from hf_fastif.results.words import ARROW, MINUS, ScoreWords, signed
from hf_fastif.scoring import DIRECTIONS, limits_of


NUM_LISTED = 50  # examples of each direction on the page; a result may contain all candidates
NUM_LISTED_IN_ALL = 4000  # examples on the page if there are many queries
NUM_SHARED = 30  # training examples that influence several queries
ENVIRONMENT = Environment(
    loader=PackageLoader("hf_fastif.results.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(
    result: ResultTables,
    path: Path,
    title: str = "Influential training examples",
    slice_column: str | None = None,
    subset_column: str | None = None,
    diagnosis: CardSection | None = None,
) -> Path:
    """Write the report of a result into a file; see `InfluenceResult.to_html`."""
    page = render_report(result, title, slice_column, subset_column, diagnosis)
    return atomic_write(path, lambda temporary: temporary.write_text(page, "utf-8"))


def render_report(
    result: ResultTables,
    title: str,
    slice_column: str | None = None,
    subset_column: str | None = None,
    diagnosis: CardSection | None = None,
) -> str:
    """Render a result as a self-contained HTML page, which loads nothing and shows texts as plain text.

    The arguments are those of `InfluenceResult.to_html`.

    Returns:
        `str`: The page.
    """
    graph = influence_graph(result, slice_column, subset_column) if len(result.influences) else None
    words = ScoreWords(result.summary, MINUS, ARROW)
    cards = _cards(result, words)
    rows = [row for card in cards for row in card["rows"]]
    models = result.summary.models_without
    return ENVIRONMENT.get_template("report.html.j2").render(
        title=title,
        model=result.summary.model,
        num_candidates=f"{result.summary.num_candidates:,}",
        measure=result.summary.measure,
        words=words,
        cautions=result.summary.cautions,
        by_index=result.summary.by_index,
        limits=limits_of(result.summary.by_index),
        cards=cards,
        check_sentence=check_sentence(models) if models else None,
        check_table=check_table(models) if models else None,
        has_earlier_losses=result.summary.measure == LOSS and any(row["attributed"] for row in rows),
        shared=_shared(result, graph) if graph else [],
        has_tokens="tokens" in result.influences.column_names,
        graph=graph_section(result, graph, words) if graph else None,
        diagnosis=diagnosis,
        diagnosis_figure=_figure(diagnosis) if diagnosis else None,
        settings=settings_table(result),
    )


def _cards(result: ResultTables, words: ScoreWords) -> list[dict[str, Any]]:
    """Return a card for each query, with its prediction, or the predictions of all anchors."""
    cards: dict[int, dict[str, Any]] = {}
    for row in query_rows(result):
        cards.setdefault(row["query"], {"index": row["query"], "rows": []})["rows"].append(row)
    directions = _directions(result, words)
    for query, card in cards.items():
        verdicts = {row["verdict"] for row in card["rows"]}
        card |= {
            "verdict": "wrong" if "wrong" in verdicts else verdicts.pop(),
            "directions": [directions[query, name] for name in DIRECTIONS],
        }
    return list(cards.values())


def _directions(result: ResultTables, words: ScoreWords) -> dict[tuple[int, str], dict[str, Any]]:
    """Return the strongest examples of each query and direction, as many as the page has room for."""
    count, table = result.summary.num_queries, result.influences.with_format("arrow")[:]
    queries, ranks = (table[name].to_numpy() for name in ("query_index", "rank"))
    harmful = table["direction"].to_numpy() == DIRECTIONS[1]
    sizes = np.bincount(2 * queries + harmful, minlength=2 * count)
    strongest = np.zeros(count)
    np.maximum.at(strongest, queries, np.abs(table["influence"].to_numpy()))
    room = int(np.clip(NUM_LISTED_IN_ALL // (2 * max(count, 1)), 3, NUM_LISTED))
    rows = np.flatnonzero(ranks <= room)
    lists: dict[tuple[int, str], dict[str, Any]] = {
        (query, name): {"name": name, "examples": [], "num_left_out": max(0, int(sizes[2 * query + i]) - room)}
        for query in range(count)
        for i, name in enumerate(DIRECTIONS)
    }
    before = attributed_values(result)
    for row in training_rows(result, rows[np.argsort(ranks[rows], kind="stable")]):
        query, influence = row["query_index"], row["influence"]
        consequences = words.consequence(before[query], influence), words.strength(row["percentile"])
        example = _with_tokens(plain_row(row, result.summary), row, words) | {
            "index": row["train_index"],
            "rank": row["rank"],
            "number": words.number(influence),
            "influence": signed(influence, MINUS),
            "consequences": [text for text in consequences if text],
            "percent": f"{100 * abs(influence) / strongest[query]:.1f}",
        }
        lists[query, row["direction"]]["examples"].append(example)
    return lists


def _with_tokens(example: dict[str, Any], row: dict[str, Any], words: ScoreWords) -> dict[str, Any]:
    """Return an example with its marked tokens, which replace the texts that they repeat."""
    tokens = token_row(row, words)
    if tokens is None:
        return example | {"tokens": None}
    return example | {
        "tokens": tokens,
        "texts": [text for text in example["texts"] if text["text"].strip() not in tokens["text"]],
    }


def _shared(result: ResultTables, graph: InfluenceGraph) -> list[dict[str, Any]]:
    """Return the training examples that influence most queries, at least two, with these queries."""
    counts = np.bincount(graph.edge_trains)
    weight = np.bincount(graph.edge_trains, graph.strengths())
    order = np.lexsort((graph.train_indices, -weight, -counts))[:NUM_SHARED]
    chosen = order[counts[order] > 1]
    edges = [np.flatnonzero(graph.edge_trains == train) for train in chosen]
    first = np.array([graph.edge_rows[edge_numbers[0]] for edge_numbers in edges], dtype=np.int64)
    examples = []
    for row, edge_numbers in zip(training_rows(result, first), edges, strict=True):
        queries, helps = graph.query_indices[graph.edge_queries[edge_numbers]], graph.influences[edge_numbers] < 0
        of_direction = {"helpful": np.sort(queries[helps]).tolist(), "harmful": np.sort(queries[~helps]).tolist()}
        examples.append(plain_row(row, result.summary) | {"index": row["train_index"], "queries": of_direction})
    return examples


def _figure(diagnosis: CardSection) -> str | None:
    """Return the figure of a diagnosis as a PNG in base64; None where it cannot be drawn."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "diagnosis.png"
        drawn = try_to_draw(lambda: diagnosis.plot(path))
        return b64encode(path.read_bytes()).decode("ascii") if drawn else None


def _checkpoints(summary: ResultSummary) -> str:
    """Return the names of the checkpoints that influence was summed over; empty for the final model only."""
    names = [
        entry["name"] if entry["epoch"] is None else f"{entry['name']} (epoch {entry['epoch']:.3g})"
        for entry in summary.checkpoints
    ]
    return "" if names == ["final"] else ", ".join(names)


def _unit(summary: ResultSummary) -> str:
    """Return what scores predict."""
    if summary.change is None:
        return ""
    return f"{ScoreWords(summary).noun}, of {summary.num_train:,} training examples"


def settings_table(result: ResultTables) -> list[tuple[str, str]]:
    """Return the names and values of the known settings of a run."""
    summary, damping, largest = result.summary, result.summary.damping, result.summary.largest_eigenvalue
    share = f", {damping / largest:.2%} of the largest eigenvalue {largest:.4g}" if largest else ""
    if summary.damping_by_layer:
        share = ", mean over the layers; each uses a tenth of its mean eigenvalue"
    total, k = f"{summary.num_candidates:,}", summary.num_neighbors
    scale = "" if summary.scale is None else f", scale {summary.scale:.4g}"
    settings = {
        "Model": summary.model,
        "Measure": "" if summary.measure == LOSS else summary.measure,
        "Unit of scores": _unit(summary),
        "Accuracy": f"{summary.accuracy:.1%}" if summary.accuracy is not None else "",
        "Checkpoints": _checkpoints(summary),
        "Parameters attributed": f"{summary.num_parameters:,}",
        "Candidates": f"all {total} (full scan)" if k is None else f"the {k:,} nearest to each query, of {total}",
        "Curvature": summary.curvature.replace("_", "-").title(),
        "Damping \N{GREEK SMALL LETTER LAMDA}": f"{damping:.4g}{share}",
        "Solver": summary.solver + scale,
        "Residual": span(result.queries["residual"]),
        "Standard error": span(result.queries["std_err"]),
        "Seconds": ", ".join(f"{stage} {time:,.1f}" for stage, time in summary.seconds.items()),
        "Versions": ", ".join(f"{name} {number}" for name, number in summary.versions.items()),
    }
    return [(name, value) for name, value in settings.items() if value]
