"""Rows of a result as text for the page: texts, labels, other columns and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from hf_fastif.data import COMPUTED, with_label_names
from hf_fastif.model import LOSS
from hf_fastif.results.summary import ResultSummary
from hf_fastif.results.tables import ResultTables
from hf_fastif.results.words import MINUS, ScoreWords, plain


NUM_CHARACTERS = 600  # of a text; longer texts are folded
FAINT = 0.01  # relative to the strongest token; weaker tokens are not marked
NUM_NAMED = 3  # tokens whose influence is also listed as text


def query_rows(result: ResultTables) -> list[dict[str, Any]]:
    """Return every row of `result.queries`: its columns, the prediction, and whether that is right."""
    source_rows = result.summary.query_rows or [None] * len(result.queries)
    verdicts = _verdicts(result.queries, result.summary.label_column)
    rows = with_label_names(result.queries).to_list()
    return [
        plain_row(row, result.summary)
        | {
            "query": row["query_index"],
            "source_row": source_row,
            "prediction": row["prediction"],
            "probability": None if math.isnan(row["probability"]) else f"{row['probability']:.1%}",
            "loss": f"{row['loss']:.3g}",
            "attributed": _attributed(row, result.summary),
            "ranking": row["ranking"],
            "verdict": verdict,
        }
        for row, verdict, source_row in zip(rows, verdicts, source_rows, strict=True)
    ]


def training_rows(result: ResultTables, rows: np.ndarray) -> list[dict[str, Any]]:
    """Return the training examples in some rows of `result.influences`, with the computed columns."""
    table = result.influences.select(rows)
    query_columns = [name for name in table.column_names if name.startswith("query_") and name != "query_index"]
    plain_rows = with_label_names(table.remove_columns(query_columns)).to_list()
    return [
        {name.removeprefix("train_"): value for name, value in row.items() if name not in COMPUTED}
        | {name: value for name, value in row.items() if name in COMPUTED}
        for row in plain_rows
    ]


def plain_row(row: dict[str, Any], summary: ResultSummary) -> dict[str, Any]:
    """Return the plain columns of a query or a training example: its texts, its label, and the others as tags."""
    texts = [name for name in summary.text_columns if row.get(name) is not None]
    apart = {*COMPUTED, *texts, summary.label_column}
    return {
        "texts": [_text(name, row[name]) for name in texts],
        "label": _plain(row.get(summary.label_column)),
        "tags": [(name, _plain(value)) for name, value in row.items() if name not in apart and _plain(value)],
    }


def token_row(row: dict[str, Any], words: ScoreWords) -> dict[str, Any] | None:
    """Group the tokens of a training example into runs, marking those with influence; None if it has no tokens.

    Each run has a text. A marked token also has its `number` as text, its `direction`, and its `share` relative to
    the strongest token, in percent.
    """
    if not row.get("tokens"):
        return None
    texts, values = row["tokens"], row["token_influence"]
    largest = max(map(abs, values)) or 1.0
    runs: list[dict[str, Any]] = []
    for text, value in zip(texts, values, strict=True):
        if abs(value) >= FAINT * largest:
            direction = "helpful" if value < 0 else "harmful"
            share = round(100 * abs(value) / largest)
            runs.append({"text": text, "number": words.number(value), "direction": direction, "share": share})
        elif runs and runs[-1]["number"] is None:
            runs[-1]["text"] += text
        else:
            runs.append({"text": text, "number": None})
    marked = sorted((run for run in runs if run["number"]), key=lambda run: -run["share"])
    named = [(run["text"].strip() or "\N{OPEN BOX}", run["number"]) for run in marked[:NUM_NAMED]]
    return {"runs": runs, "named": named, "text": "".join(texts)}


def span(values: Sequence[float]) -> str:
    """Format the smallest and the largest of some numbers that may be NaN."""
    known = [f"{value:.2g}" for value in sorted(values) if not math.isnan(value)]
    return " to ".join(dict.fromkeys([known[0], known[-1]])) if known else ""


def _attributed(row: dict[str, Any], summary: ResultSummary) -> tuple[str, str] | None:
    """Return name and value of what is attributed; None if it is the loss that is shown anyway, or unknown."""
    value = row["loss_at_attribution"]
    text = None if value is None else plain(value, MINUS)
    if text is None or summary.measure == LOSS and text == plain(row["loss"], MINUS):
        return None
    return ("loss at attribution" if summary.measure == LOSS else summary.measure), text


def _verdicts(queries: Dataset, label_column: str | None) -> list[str | None]:
    """Tell whether each prediction is "right" or "wrong"; None unless the label is one of several classes."""
    feature = queries.features.get(label_column)
    if not isinstance(feature, ClassLabel):
        return [None] * len(queries)
    expected = [feature.int2str(label) for label in queries[label_column]]
    return ["right" if e == p else "wrong" for e, p in zip(expected, queries["prediction"], strict=True)]


def _text(name: str, text: str) -> dict[str, str | None]:
    beginning = text[: NUM_CHARACTERS // 2] if len(text) > NUM_CHARACTERS else None
    return {"name": name, "text": text, "beginning": beginning}


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
