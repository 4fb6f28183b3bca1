"""`InfluenceResult`: which training examples influenced which predictions, to read, save and show."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset

from hf_fastif.columns import with_label_names
from hf_fastif.files import write_whole


if TYPE_CHECKING:
    import pandas as pd

SIGN = (
    "A positive influence is harmful: giving the training example more weight raises the loss of the query. "
    "A negative one is helpful: more weight lowers the loss."
)


@dataclass
class InfluenceResult:
    """The strongest training examples of each query, in both directions.

    Attributes:
        influences (`datasets.Dataset`): One row for each (query, candidate): `query_index` (position among the
            queries), `train_index` (position among the candidates, which are `trainer.train_dataset` unless others
            were given), `influence`, `direction` ("helpful" or "harmful"), `rank` (1 is the strongest of its
            direction), and the plain columns (texts, labels, numbers) of both, named `query_*` and `train_*`.
        queries (`datasets.Dataset`): One row for each query: its plain columns, `prediction`, `probability` of the
            prediction (NaN unless one label is predicted), `loss`, and `residual` and `std_err` of its s_test. Of
            anchors, which are asked about as one, all rows have the `query_index` 0.
        summary (`dict`): Settings and sizes: model, damping, largest eigenvalue, solver, number of candidates.
    """

    influences: Dataset
    queries: Dataset
    summary: dict[str, Any]

    def helpful(self, query: int) -> Dataset:
        """The helpful training examples of a query, strongest first: plain columns, `influence` and `rank`."""
        return self._training_examples(query, "helpful")

    def harmful(self, query: int) -> Dataset:
        """The harmful training examples of a query, strongest first: plain columns, `influence` and `rank`."""
        return self._training_examples(query, "harmful")

    def to_pandas(self) -> pd.DataFrame:
        """`influences` as a data frame, with the names of labels in place of their numbers."""
        return with_label_names(self.influences).to_pandas()

    def to_html(self, path: str | os.PathLike[str], title: str = "Influential training examples") -> Path:
        """Writes a self-contained page: each query with its most helpful and most harmful examples side by side."""
        from hf_fastif.visualization.report import render_report

        return write_whole(Path(path), lambda temporary: temporary.write_text(render_report(self, title), "utf-8"))

    def save_to_disk(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `influences.parquet`, `queries.parquet` and `summary.json` into a folder.

        The summary is removed first and written last, so that a folder with a summary is whole.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").unlink(missing_ok=True)
        write_whole(folder / "influences.parquet", self.influences.to_parquet)
        write_whole(folder / "queries.parquet", self.queries.to_parquet)
        text = json.dumps(self.summary, indent=2, allow_nan=False) + "\n"
        write_whole(folder / "summary.json", lambda path: path.write_text(text, "utf-8"))
        return folder

    @classmethod
    def load_from_disk(cls, folder: str | os.PathLike[str]) -> InfluenceResult:
        """Reads what `save_to_disk` wrote.

        Raises:
            FileNotFoundError: If the folder holds no complete result.
        """
        folder = Path(folder)
        names = ("summary.json", "influences.parquet", "queries.parquet")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"folder={str(folder)!r} holds no complete result ({', '.join(missing)} missing); "
                "give a folder that InfluenceResult.save_to_disk wrote."
            )
        return cls(
            influences=Dataset(pq.read_table(folder / "influences.parquet")),
            queries=Dataset(pq.read_table(folder / "queries.parquet")),
            summary=json.loads((folder / "summary.json").read_text("utf-8")),
        )

    def __repr__(self) -> str:
        lines = [
            f"InfluenceResult: {self.summary['num_queries']} queries, {len(self.influences)} rows out of "
            f"{self.summary['num_candidates']:,} candidates, damping {self.summary['damping']:.4g}",
            f"  {SIGN}",
        ]
        first = np.unique(self.queries["query_index"], return_index=True)[1]  # of anchors one row
        for row in with_label_names(self.queries.select(first[:3])):
            query = row["query_index"]
            lines.append(
                f"  query {query}: {self._describe(row)} predicted {row['prediction']}, loss {row['loss']:.3g}"
            )
            for direction in ("helpful", "harmful"):
                examples = with_label_names(self._training_examples(query, direction))
                lines += [
                    f"    {direction} #{example['train_index']} {example['influence']:+.3g} {self._describe(example)}"
                    for example in examples.select(range(min(1, len(examples))))
                ]
        if len(first) > 3:
            lines.append(f"  and {len(first) - 3} more queries")
        if len(first) < len(self.queries):
            lines.append(f"  query 0 is the mean of {len(self.queries)} anchors")
        return "\n".join(lines)

    def _describe(self, row: dict[str, Any]) -> str:
        text = " | ".join(str(row[name]) for name in self.summary["text_columns"])
        return f"{text[:100]!r} [{row.get(self.summary['label_column'])}]"

    def _training_examples(self, query: int, direction: str) -> Dataset:
        count = self.summary["num_queries"]
        if not 0 <= query < count:
            raise IndexError(f"query={query}: the result holds the queries 0 to {count - 1}.")
        table = self.influences
        chosen = (np.asarray(table["query_index"]) == query) & (np.asarray(table["direction"]) == direction)
        rows = np.flatnonzero(chosen)
        rows = rows[np.argsort(np.asarray(table["rank"])[rows])]
        query_columns = [name for name in table.column_names if name.startswith("query_")]
        examples = table.select(rows).remove_columns([*query_columns, "direction"])
        plain = [name for name in examples.column_names if name.startswith("train_") and name != "train_index"]
        return examples.rename_columns({name: name.removeprefix("train_") for name in plain})
