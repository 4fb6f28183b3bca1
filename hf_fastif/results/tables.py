"""The tables of a result: their columns, and reading and writing them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_fastif.artifacts import atomic_write, check_files, describe_files, read_manifest, reading, writing
from hf_fastif.errors import InfluenceError, NotFoundError


SUMMARY = "summary.json"
NUMBERS = {  # what is computed; every other column is of the queries and candidates themselves
    "influences.parquet": ("query_index", "train_index", "influence", "direction", "rank"),
    "queries.parquet": ("query_index", "prediction", "probability", "loss", "residual", "std_err"),
}
# Of heads with a label for each token; the only columns that hold lists.
TOKEN_COLUMNS = {"tokens": List(Value("string")), "token_influence": List(Value("float32"))}
SUMMARY_TYPES = {
    "model": str,
    "num_queries": int,
    "num_candidates": int,
    "damping": float | int,
    "text_columns": list,
    "label_column": str | None,
}


@dataclass
class ResultTables:
    """The tables of a result; see [`InfluenceResult`], which shows and publishes them."""

    influences: Dataset
    queries: Dataset
    summary: dict[str, Any]

    def save_to_disk(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `influences.parquet`, `queries.parquet` and `summary.json` into a folder.

        The summary is removed first and written last, so that a folder with a summary is whole. It tells the size and
        digest of the other two.
        """
        folder = Path(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        (folder / SUMMARY).unlink(missing_ok=True)
        atomic_write(folder / "influences.parquet", self.influences.to_parquet)
        atomic_write(folder / "queries.parquet", self.queries.to_parquet)
        files = describe_files(folder, NUMBERS)
        files["influences.parquet"]["rows"], files["queries.parquet"]["rows"] = len(self.influences), len(self.queries)
        summary = self.summary | {"files": files}
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        atomic_write(folder / SUMMARY, lambda path: path.write_text(text, "utf-8"))
        return folder

    @classmethod
    def load_from_disk(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads what `save_to_disk` wrote.

        Raises:
            FileNotFoundError: If the folder holds no complete result.
            ValueError: If a file is not the one that was written, or not what a result holds.
        """
        folder = Path(folder)
        missing = [name for name in (SUMMARY, *NUMBERS) if not (folder / name).is_file()]
        if missing:
            raise NotFoundError(
                f"folder={str(folder)!r} holds no complete result ({', '.join(missing)} missing); "
                "give a folder that InfluenceResult.save_to_disk wrote."
            )
        summary = read_manifest(folder / SUMMARY, **SUMMARY_TYPES)
        files = summary.pop("files")
        if set(files) != set(NUMBERS):
            raise InfluenceError(
                f"{folder / SUMMARY} names the files {', '.join(files)}; a result has {', '.join(NUMBERS)}."
            )
        check_files(folder, files)
        tables = [_read_table(folder / name, files[name].get("rows")) for name in NUMBERS]
        return cls(*tables, summary)

    def without_text(self) -> Self:
        """The same result with indices and scores alone: no texts, labels or other columns of the examples."""
        return replace(
            self,
            influences=self.influences.select_columns(list(NUMBERS["influences.parquet"])),
            queries=self.queries.select_columns(list(NUMBERS["queries.parquet"])),
            summary=self.summary | {"text_columns": [], "label_column": None},
        )


def _read_table(path: Path, num_rows: int | None) -> Dataset:
    """Reads a table of a result, after a look at its columns and number of rows."""
    with reading(path):
        found = pq.read_metadata(path)
        features = Features.from_arrow_schema(found.schema.to_arrow_schema())
    strange = [
        name
        for name, feature in features.items()
        if not isinstance(feature, Value | ClassLabel) and feature != TOKEN_COLUMNS.get(name)
    ]
    missing = [name for name in NUMBERS[path.name] if name not in features]
    if strange or missing or found.num_rows != num_rows:
        raise InfluenceError(
            f"{path} is no table of a result: it has {found.num_rows} rows of {num_rows}, lacks the columns "
            f"{missing}, and holds more than numbers, labels and texts in {strange}."
        )
    return Dataset(pq.read_table(path))
