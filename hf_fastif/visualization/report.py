"""The page of a result: each query with its most helpful and most harmful training examples side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datasets import ClassLabel, Dataset
from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_fastif.columns import with_label_names


if TYPE_CHECKING:
    from hf_fastif.results import InfluenceResult


NUM_LISTED = 50  # examples of each direction in the page; a result may hold every candidate
NUM_CHARACTERS = 600  # of a text, before the rest of it is folded away
COMPUTED = "query_index prediction probability loss residual std_err train_index influence rank".split()
ENVIRONMENT = Environment(
    loader=PackageLoader("hf_fastif.visualization"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_report(result: InfluenceResult, title: str) -> str:
    """Renders a result as a self-contained HTML page, which fetches nothing and shows texts as plain text.

    Args:
        result ([`InfluenceResult`]): What to show.
        title (`str`): The heading of the page.

    Returns:
        `str`: The page.
    """
    return ENVIRONMENT.get_template("report.html.j2").render(
        title=title,
        model=result.summary["model"],
        num_candidates=f"{result.summary['num_candidates']:,}",
        cards=_cards(result),
        settings=settings_table(result),
    )


def _cards(result: InfluenceResult) -> list[dict[str, Any]]:
    """A card for each query, with the predictions that it is about: one, or those of all anchors."""
    rows = with_label_names(result.queries).to_list()
    verdicts = _verdicts(result.queries, result.summary["label_column"])
    source_rows = result.summary.get("query_rows", [None] * len(rows))
    cards: dict[int, dict[str, Any]] = {}
    for row, verdict, source_row in zip(rows, verdicts, source_rows, strict=True):
        query = row["query_index"]
        card = cards.setdefault(query, {"index": query, "asked": []})
        probability = None if math.isnan(row["probability"]) else f"{row['probability']:.1%}"
        card["asked"].append(
            _row(row, result.summary)
            | {
                "source_row": source_row,
                "prediction": row["prediction"],
                "probability": probability,
                "loss": f"{row['loss']:.3g}",
                "verdict": verdict,
            }
        )
    for query, card in cards.items():
        verdicts = {asked["verdict"] for asked in card["asked"]}
        card |= {
            "verdict": "wrong" if "wrong" in verdicts else verdicts.pop(),
            "directions": _directions(result, query),
        }
    return list(cards.values())


def _verdicts(queries: Dataset, label_column: str | None) -> list[str | None]:
    """Whether each prediction is "right" or "wrong"; None where the label is not one of several classes."""
    feature = queries.features.get(label_column)
    if not isinstance(feature, ClassLabel):
        return [None] * len(queries)
    expected = [feature.int2str(label) for label in queries[label_column]]
    return ["right" if e == p else "wrong" for e, p in zip(expected, queries["prediction"], strict=True)]


def _directions(result: InfluenceResult, query: int) -> list[dict[str, Any]]:
    tables = {"helpful": result.helpful(query), "harmful": result.harmful(query)}
    strongest = max((abs(value) for table in tables.values() for value in table["influence"]), default=0.0)
    directions = []
    for name, table in tables.items():
        rows = with_label_names(table.select(range(min(NUM_LISTED, len(table))))).to_list()
        examples = [
            _row(row, result.summary)
            | {
                "index": row["train_index"],
                "rank": row["rank"],
                "influence": _signed(row["influence"]),
                "percent": f"{100 * abs(row['influence']) / strongest:.1f}",
            }
            for row in rows
        ]
        directions.append({"name": name, "examples": examples, "num_left_out": len(table) - len(rows)})
    return directions


def _row(row: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """The plain columns of a query or a training example: its texts, its label, and the others as tags."""
    texts = [name for name in summary["text_columns"] if row.get(name) is not None]
    apart = {*COMPUTED, *texts, summary["label_column"]}
    return {
        "texts": [_text(name, row[name]) for name in texts],
        "label": _plain(row.get(summary["label_column"])),
        "tags": [(name, _plain(value)) for name, value in row.items() if name not in apart and _plain(value)],
    }


def _text(name: str, text: str) -> dict[str, str | None]:
    beginning = text[: NUM_CHARACTERS // 2] if len(text) > NUM_CHARACTERS else None
    return {"name": name, "text": text, "beginning": beginning}


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _signed(value: float) -> str:
    return f"{value:+#.3g}".rstrip(".").replace("-", "\N{MINUS SIGN}")


def _span(values: Sequence[float]) -> str:
    known = [f"{value:.2g}" for value in sorted(values) if not math.isnan(value)]
    return " to ".join(dict.fromkeys([known[0], known[-1]])) if known else ""


def _checkpoints(summary: dict[str, Any]) -> str:
    """Those that influence was summed over; nothing to say of the final model alone."""
    names = [
        entry["name"] if entry["epoch"] is None else f"{entry['name']} (epoch {entry['epoch']:.3g})"
        for entry in summary.get("checkpoints", [])
    ]
    return "" if names == ["final"] else ", ".join(names)


def settings_table(result: InfluenceResult) -> list[tuple[str, str]]:
    """Names and values of what was run with, without those that are not known."""
    summary, damping, largest = result.summary, result.summary["damping"], result.summary["largest_eigenvalue"]
    share = f", {damping / largest:.2%} of the largest eigenvalue {largest:.4g}" if largest else ""
    total, k = f"{summary['num_candidates']:,}", summary["num_neighbors"]
    scale = "" if summary["scale"] is None else f", scale {summary['scale']:.4g}"
    settings = {
        "Model": summary["model"],
        "Accuracy": f"{summary['accuracy']:.1%}" if "accuracy" in summary else "",
        "Checkpoints": _checkpoints(summary),
        "Parameters attributed": f"{summary['num_parameters']:,}",
        "Candidates": f"all {total} (full scan)" if k is None else f"the {k:,} nearest to each query, of {total}",
        "Curvature": summary["curvature"].replace("_", "-").title(),
        "Damping \N{GREEK SMALL LETTER LAMDA}": f"{damping:.4g}{share}",
        "Solver": summary["solver"] + scale,
        "Residual": _span(result.queries["residual"]),
        "Standard error": _span(result.queries["std_err"]),
        "Seconds": ", ".join(f"{stage} {time:,.1f}" for stage, time in summary.get("seconds", {}).items()),
        "Versions": ", ".join(f"{name} {number}" for name, number in summary["versions"].items()),
    }
    return [(name, value) for name, value in settings.items() if value]
