"""The tables of a result: their columns, reading and writing."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_fastif.artifacts import atomic_write, check_files, describe_files, read_manifest, reading, writing
from hf_fastif.errors import InfluenceError, NotFoundError
from hf_fastif.results.summary import ResultSummary


SUMMARY = "summary.json"
NUMBERS = {  # the computed columns; all others are columns of the queries and candidates
    "influences.parquet": (
        *("query_index", "train_index", "influence", "predicted_loss_change", "percentile", "direction", "rank"),
    ),
    "queries.parquet": (
        *("query_index", "prediction", "probability", "loss", "loss_at_attribution", "residual", "std_err", "ranking"),
    ),
}
NULLABLE = (
    "predicted_loss_change",
    "percentile",
    "loss_at_attribution",
    "ranking",
)  # where unknown; earlier versions had none
# Only for heads with a label for each token; no other column contains lists.
TOKEN_COLUMNS = {"tokens": List(Value("string")), "token_influence": List(Value("float32"))}


@dataclass
class ResultTables:
    """The tables of a result; see [`InfluenceResult`], which displays and publishes them."""

    influences: Dataset
    queries: Dataset
    summary: ResultSummary

    def save_to_disk(self, folder: str | os.PathLike[str]) -> Path:
        """Write `influences.parquet`, `queries.parquet` and `summary.json` into a folder, and return the folder.

        The summary is removed first and written last, so that a folder with a summary is complete. It contains the
        size and digest of both tables.

        Args:
            folder (`str` or `Path`): The folder, which is created if needed.

        Raises:
            DiskFullError: If the disk has no space left.

        Example:

        ```python
        result.save_to_disk("out/result")
        result = InfluenceResult.load_from_disk("out/result")
        ```
        """
        folder, entries = Path(folder), self.summary.to_json()  # refused before anything is deleted
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        (folder / SUMMARY).unlink(missing_ok=True)
        atomic_write(folder / "influences.parquet", self.influences.to_parquet)
        atomic_write(folder / "queries.parquet", self.queries.to_parquet)
        files = describe_files(folder, NUMBERS)
        files["influences.parquet"]["rows"], files["queries.parquet"]["rows"] = len(self.influences), len(self.queries)
        text = json.dumps(entries | {"files": files}, indent=2, allow_nan=False) + "\n"
        atomic_write(folder / SUMMARY, lambda path: path.write_text(text, "utf-8"))
        return folder

    @classmethod
    def load_from_disk(cls, folder: str | os.PathLike[str]) -> Self:
        """Read the result that `save_to_disk` wrote.

        Args:
            folder (`str` or `Path`): The folder.

        Raises:
            NotFoundError: If the folder contains no complete result.
            InfluenceError: If a file has changed since it was written, or is not a table of a result.

        Example:

        ```python
        from hf_fastif import InfluenceResult

        print(InfluenceResult.load_from_disk("out/result"))
        ```
        """
        folder = Path(folder)
        missing = [name for name in (SUMMARY, *NUMBERS) if not (folder / name).is_file()]
        if missing:
            raise NotFoundError(
                f"folder={str(folder)!r} holds no complete result ({', '.join(missing)} missing); "
                "give a folder that InfluenceResult.save_to_disk wrote."
            )
        summary = read_manifest(folder / SUMMARY)
        files = summary.pop("files")
        if set(files) != set(NUMBERS):
            raise InfluenceError(
                f"{folder / SUMMARY} lists the files {', '.join(files)} instead of {', '.join(NUMBERS)}."
            )
        check_files(folder, files)
        tables = [_read_table(folder / name, files[name].get("rows")) for name in NUMBERS]
        result = cls(*tables, ResultSummary.from_json(summary, folder / SUMMARY))
        result._check_queries(folder)
        return result

    def _check_queries(self, folder: Path) -> None:
        """Check that tables and summary have the same queries."""
        queries = range(self.summary.num_queries)
        listed = {*self.queries["query_index"]}
        if listed != {*queries} or not {*self.influences["query_index"]} <= listed:
            raise InfluenceError(
                f"{folder / SUMMARY} says that there are {len(queries)} queries, and the tables hold {len(listed)}; "
                "recreate the result."
            )

    def without_text(self) -> Self:
        """Return the same result with indices and scores only, without texts, labels and other columns.

        Example:

        ```python
        result.without_text().save_to_disk("out/shared")
        ```
        """
        return replace(
            self,
            influences=self.influences.select_columns(list(NUMBERS["influences.parquet"])),
            queries=self.queries.select_columns(list(NUMBERS["queries.parquet"])),
            summary=replace(self.summary, text_columns=[], label_column=None),
        )


def attributed_values(result: ResultTables) -> list[float | None]:
    """Return what is attributed of each query, where influence was taken: of anchors the mean, None where unknown."""
    frame = result.queries.select_columns(["query_index", "loss_at_attribution"]).to_pandas()
    means = frame.groupby("query_index")["loss_at_attribution"].mean()
    return [None if isnan(value) else value for value in means.tolist()]


def _read_table(path: Path, num_rows: int | None) -> Dataset:
    """Read a table of a result, after checking its columns and number of rows."""
    with reading(path):
        metadata = pq.read_metadata(path)
        features = Features.from_arrow_schema(metadata.schema.to_arrow_schema())
    unsupported = [
        name
        for name, feature in features.items()
        if not isinstance(feature, Value | ClassLabel) and feature != TOKEN_COLUMNS.get(name)
    ]
    missing = [name for name in NUMBERS[path.name] if name not in features and name not in NULLABLE]
    if unsupported or missing or metadata.num_rows != num_rows:
        raise InfluenceError(
            f"{path} is not a table of a result: it has {metadata.num_rows} rows instead of {num_rows}, the columns "
            f"{missing} are missing, and {unsupported} contain other values than numbers, labels and texts."
        )
    table = pq.read_table(path)
    for name in NUMBERS[path.name]:
        if name not in features:
            table = table.append_column(name, pa.nulls(len(table), pa.float32()))
    return Dataset(table)
