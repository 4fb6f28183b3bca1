"""Merge several results into one, in which each is a slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
from datasets import Dataset, Features

from hf_fastif.errors import InfluenceError
from hf_fastif.results.tables import ResultTables


SAME = (
    "model num_parameters num_candidates num_neighbors num_examples curvature damping solver checkpoints measure "
    "num_train change text_columns label_column"
).split()


def join_results(results: Mapping[str, ResultTables]) -> ResultTables:
    """Concatenate the queries of several results; see `InfluenceResult.join`."""
    if not results:
        raise InfluenceError("results is empty; give at least one result.")
    summaries = {name: result.summary for name, result in results.items()}
    first_name, first = next(iter(summaries.items()))
    for name, summary in summaries.items():
        if different := [key for key in SAME if getattr(summary, key) != getattr(first, key)]:
            key = different[0]
            one, other = getattr(first, key), getattr(summary, key)
            raise InfluenceError(
                f"results: {first_name!r} and {name!r} differ in {key} ({one!r} and {other!r}); "
                "join only results of one model and one set of candidates with the same settings."
            )
    sizes = {name: summary.num_queries for name, summary in summaries.items()}
    starts = dict(zip(sizes, [sum(list(sizes.values())[:i]) for i in range(len(sizes))], strict=True))
    rows = [summary.query_rows for summary in summaries.values()]
    query_rows = None if None in rows else [row for part in rows for row in part]
    cautions = [f"{name}: {line}" for name, summary in summaries.items() for line in summary.cautions]
    counts = {"num_queries": sum(sizes.values()), "slices": sizes, "query_rows": query_rows}
    # A check by retraining is about the queries of one result.
    joined = replace(first, **counts, cautions=cautions, trained_without=None)
    return ResultTables(
        _stacked({name: result.influences for name, result in results.items()}, starts),
        _stacked({name: result.queries for name, result in results.items()}, starts),
        joined,
    )


def _stacked(tables: Mapping[str, Dataset], starts: Mapping[str, int]) -> Dataset:
    """Concatenate tables, renumbering their queries; a column that a table lacks is empty in its rows."""
    features: dict = {}
    parts = []
    for name, table in tables.items():
        for column, feature in table.features.items():
            if features.setdefault(column, feature) != feature:
                raise InfluenceError(f"results: column {column!r} of {name!r} is {feature}, not {features[column]}.")
        part = table.with_format("arrow")[:]
        numbers = pa.array(part["query_index"].to_numpy() + starts[name], part["query_index"].type)
        place = part.column_names.index("query_index")
        parts.append(part.set_column(place, "query_index", numbers).replace_schema_metadata(None))
    whole = Features(features)
    stacked = pa.concat_tables(parts, promote_options="default").select(list(whole))
    return Dataset(stacked.cast(whole.arrow_schema))
