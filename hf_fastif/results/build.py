"""Build the tables of an `InfluenceResult` from scores: the strongest examples, with texts and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Value

from hf_fastif.artifacts import versions
from hf_fastif.data import label_column, plain_columns, prefixed, set_apart, text_columns
from hf_fastif.influence import Predictions
from hf_fastif.model import LOSS
from hf_fastif.results.result import InfluenceResult
from hf_fastif.results.summary import ResultSummary
from hf_fastif.results.tables import TOKEN_COLUMNS
from hf_fastif.scoring import QueryScores, grade_of, percentiles, sign_of, strongest


INFLUENCE_COLUMNS = Features(
    {
        "query_index": Value("int32"),
        "train_index": Value("int64"),
        "influence": Value("float32"),
        "predicted_loss_change": Value("float32"),
        "percentile": Value("float32"),
        "direction": Value("string"),
        "rank": Value("int32"),
    }
)


def build_result(
    queries: Dataset,
    candidates: Dataset,
    predictions: Predictions,
    attributed: np.ndarray,
    scores: Sequence[QueryScores],
    num_examples: int | None,
    label_names: dict[int, str],
    settings: dict[str, Any],
    token_texts: Mapping[int, list[str]] | None = None,
) -> InfluenceResult:
    """Join scores, texts and predictions, keeping the strongest examples of each direction.

    Args:
        queries (`datasets.Dataset`): The queries.
        candidates (`datasets.Dataset`): The training examples that were scored.
        predictions (`Predictions`): The model's predictions for the queries.
        attributed (`np.ndarray` of shape `(queries,)`): What is attributed, at the checkpoints where influence was
            taken: the loss of each query, or what is measured in its place.
        scores (`Sequence[QueryScores]`): The scores, one for each query; or a single one if the queries are anchors,
            whose mean loss is one query.
        num_examples (`int`, *optional*): How many examples of each direction to keep; None keeps all.
        label_names (`dict[int, str]`): The names of the model's labels.
        settings (`dict`): The settings for the summary.
        token_texts (`Mapping[int, list[str]]`, *optional*): The texts of the tokens of each candidate, if the scores
            contain the influence of tokens.
    """
    queries, candidates = set_apart(queries), set_apart(candidates)
    label = label_column(candidates)
    names = _label_names(candidates.features[label] if label else None, label_names)
    summary = ResultSummary(
        **settings,
        damping=scores[0].quality["damping"],
        scale=scores[0].quality["scale"],
        num_queries=len(scores),
        num_candidates=len(candidates),
        text_columns=text_columns(candidates),
        label_column=label,
        sign=sign_of(settings.get("measure", LOSS)),
        versions=versions(),
    )
    return InfluenceResult(
        influences=_influence_table(queries, candidates, scores, num_examples, summary, names, token_texts),
        queries=_query_table(queries, predictions, attributed, scores, summary, names),
        summary=summary,
    )


def _influence_table(
    queries: Dataset,
    candidates: Dataset,
    scores: Sequence[QueryScores],
    num_examples: int | None,
    summary: ResultSummary,
    names: list[str],
    token_texts: Mapping[int, list[str]] | None,
) -> Dataset:
    label, factor = summary.label_column, summary.change_per_influence
    columns: dict[str, list[np.ndarray]] = {name: [] for name in INFLUENCE_COLUMNS}
    for query, outcome in enumerate(scores):
        for direction, order in strongest(outcome.rows, outcome.scores, num_examples).items():
            unknown = np.full(len(order), None)
            columns["query_index"].append(np.full(len(order), query))
            columns["train_index"].append(outcome.rows[order])
            columns["influence"].append(outcome.scores[order])
            columns["predicted_loss_change"].append(unknown if factor is None else factor * outcome.scores[order])
            scored_all = len(outcome.scores) == len(candidates)
            columns["percentile"].append(percentiles(outcome.scores, order) if scored_all else unknown)
            columns["direction"].append(np.full(len(order), direction, dtype=object))
            columns["rank"].append(np.arange(1, len(order) + 1))
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    tables = [prefixed(_readable_rows(candidates, joined["train_index"], label, names), "train_")]
    if token_texts is not None:
        tables.insert(0, _token_table(joined["query_index"], joined["train_index"], scores, token_texts))
    if len(scores) == len(queries):
        tables.insert(0, prefixed(_readable_rows(queries, joined["query_index"], label, names), "query_"))
    return _side_by_side(Dataset.from_dict(joined, features=INFLUENCE_COLUMNS), *tables)


def _token_table(
    queries: np.ndarray, rows: np.ndarray, scores: Sequence[QueryScores], texts: Mapping[int, list[str]]
) -> Dataset:
    """Return the texts of the tokens of each listed candidate, and their influence."""
    pairs = list(zip(queries.tolist(), rows.tolist(), strict=True))
    values = {
        "tokens": [texts[row] for _, row in pairs],
        "token_influence": [scores[query].tokens[row] for query, row in pairs],
    }
    return Dataset.from_dict(values, features=Features(TOKEN_COLUMNS))


def _query_table(
    queries: Dataset,
    predictions: Predictions,
    attributed: np.ndarray,
    scores: Sequence[QueryScores],
    summary: ResultSummary,
    names: list[str],
) -> Dataset:
    numbers = np.arange(len(queries)) if len(scores) == len(queries) else np.zeros(len(queries), dtype=np.int64)
    computed = {
        "query_index": numbers,
        "prediction": predictions.names(names),
        "probability": predictions.probabilities(),
        "loss": predictions.losses,
        "loss_at_attribution": attributed.astype(np.float32),
        "residual": [scores[number].quality["residual"] for number in numbers],
        "std_err": [scores[number].quality["std_err"] for number in numbers],
        "ranking": [grade_of(scores[number].quality["residual"], summary.by_index) for number in numbers],
    }
    plain = _readable_rows(queries, range(len(queries)), summary.label_column, names)
    return _side_by_side(Dataset.from_dict(computed), plain)


def _label_names(feature: Any, model_names: dict[int, str]) -> list[str]:
    """Return the model's names of the labels, or the dataset's if the model has none."""
    names = [model_names[label] for label in sorted(model_names)]
    unnamed = names == [f"LABEL_{label}" for label in range(len(names))]
    return (
        feature.names if unnamed and isinstance(feature, ClassLabel) and feature.num_classes == len(names) else names
    )


def _readable_rows(dataset: Dataset, rows: Sequence[int] | np.ndarray, label: str | None, names: list[str]) -> Dataset:
    """Return the plain columns of some rows, with class numbers replaced by the names that predictions have."""
    chosen = plain_columns(dataset).select(rows)
    features = chosen.features.copy()
    if label in features and _are_classes(dataset, label, len(names)):
        features[label] = ClassLabel(names=names)
    return Dataset.from_dict(chosen.to_dict(), features=features)


def _are_classes(dataset: Dataset, column: str, count: int) -> bool:
    """Tell whether a column contains the numbers of that many classes; -1 stands for no label."""
    values = dataset.select_columns(column).with_format("arrow")[:][column]
    if not pa.types.is_integer(values.type):
        return False
    ends = pc.min_max(values).as_py()
    return ends["min"] is None or (ends["min"] >= -1 and ends["max"] < count)


def _side_by_side(*tables: Dataset) -> Dataset:
    columns = {name: values for table in tables for name, values in table.to_dict().items()}
    features = {name: feature for table in tables for name, feature in table.features.items()}
    return Dataset.from_dict(columns, features=Features(features))
