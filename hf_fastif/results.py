"""`InfluenceResult`: which training examples influenced which predictions, to read, save and show."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_fastif.columns import with_label_names
from hf_fastif.errors import InfluenceError, NoSuchQueryError, NotFoundError
from hf_fastif.files import write_whole, writing
from hf_fastif.manifests import check_files, describe_files, read_manifest, reading


if TYPE_CHECKING:
    import pandas as pd
    from huggingface_hub import CommitInfo

    from hf_fastif.analysis import Recall
    from hf_fastif.diagnosis import Diagnosis
    from hf_fastif.hub.publishing import PushOptions

SIGN = (
    "A positive influence is harmful: giving the training example more weight raises the loss of the query. "
    "A negative one is helpful: more weight lowers the loss."
)

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
class InfluenceResult:
    """The strongest training examples of each query, in both directions.

    Attributes:
        influences (`datasets.Dataset`): One row for each (query, candidate): `query_index` (position among the
            queries), `train_index` (position among the candidates, which are `trainer.train_dataset` unless others
            were given), `influence`, `direction` ("helpful" or "harmful"), `rank` (1 is the strongest of its
            direction), and the plain columns (texts, labels, numbers) of both, named `query_*` and `train_*`; one that
            is called like a column of the result gets an underscore behind its name. Where an example has a label for
            each token (language models), `tokens` are what the candidate's tokens read, and `token_influence` is the
            influence of predicting each: they add up to `influence`.
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

    def to_html(
        self,
        path: str | os.PathLike[str],
        title: str = "Influential training examples",
        slice_column: str | None = None,
        subset_column: str | None = None,
        diagnosis: Diagnosis | None = None,
    ) -> Path:
        """Writes a self-contained page to explore the result.

        It holds each query beside its most helpful and most harmful examples, the training examples that influence
        many queries, and the graph of both (figure 5 of the paper).

        Args:
            path (`str` or `Path`): The file.
            title (`str`, *optional*): The heading of the page.
            slice_column (`str`, *optional*): The column of the queries that names their slice in the graph; unless
                given, the results that `join` made one are the slices.
            subset_column (`str`, *optional*): The column of the training examples that names their subset; each
                subset gets a circle of its own in the graph.
            diagnosis ([`Diagnosis`], *optional*): What `trainer.diagnose()` returned, for a section of its own.

        Raises:
            ValueError: If there is no such column.
        """
        from hf_fastif.visualization.report import render_report

        page = render_report(self, title, slice_column, subset_column, diagnosis)
        return write_whole(Path(path), lambda temporary: temporary.write_text(page, "utf-8"))

    @classmethod
    def join(cls, results: Mapping[str, InfluenceResult]) -> InfluenceResult:
        """Makes one result of several that were computed for the same model and candidates, such as one a slice.

        The queries keep their order, one result behind the other. `summary["slices"]` tells the names and sizes of
        the parts, which are the slices of the graph.

        Args:
            results (`Mapping[str, InfluenceResult]`): The results by the names of their slices.

        Raises:
            ValueError: If they are of different models, candidates or settings.
        """
        from hf_fastif.joining import join_results

        return join_results(results)

    def save_to_disk(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `influences.parquet`, `queries.parquet` and `summary.json` into a folder.

        The summary is removed first and written last, so that a folder with a summary is whole. It tells the size and
        digest of the other two.
        """
        folder = Path(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        (folder / SUMMARY).unlink(missing_ok=True)
        write_whole(folder / "influences.parquet", self.influences.to_parquet)
        write_whole(folder / "queries.parquet", self.queries.to_parquet)
        files = describe_files(folder, NUMBERS)
        files["influences.parquet"]["rows"], files["queries.parquet"]["rows"] = len(self.influences), len(self.queries)
        summary = self.summary | {"files": files}
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        write_whole(folder / SUMMARY, lambda path: path.write_text(text, "utf-8"))
        return folder

    @classmethod
    def load_from_disk(cls, folder: str | os.PathLike[str]) -> InfluenceResult:
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

    def without_text(self) -> InfluenceResult:
        """The same result with indices and scores alone: no texts, labels or other columns of the examples."""
        return replace(
            self,
            influences=self.influences.select_columns(list(NUMBERS["influences.parquet"])),
            queries=self.queries.select_columns(list(NUMBERS["queries.parquet"])),
            summary=self.summary | {"text_columns": [], "label_column": None},
        )

    def push_to_hub(
        self,
        repo_id: str,
        include_text: bool = False,
        diagnosis: Diagnosis | None = None,
        recall: Recall | None = None,
        **options: Unpack[PushOptions],
    ) -> CommitInfo:
        """Publishes the result as a dataset repository: its tables, `report.html`, figures and a card.

        What is uploaded already is not sent again, so a push that was interrupted goes on when it is repeated.

        Args:
            repo_id (`str`): Where to, as in `"me/mnli-influences"`. The repository is created if it is not there.
            include_text (`bool`, *optional*, defaults to `False`): Whether the texts, labels and other columns of the
                queries and training examples are published too, in every row. Otherwise indices, scores and
                predictions are, and the report shows no texts either.
            diagnosis ([`Diagnosis`], *optional*): What `trainer.diagnose()` returned, for the card.
            recall ([`Recall`], *optional*): What `hf_fastif.analysis.recall` returned, for the card.
            **options: `private`, `revision` (a branch, created if needed), `create_pr`, `token` and `commit_message`,
                as in `huggingface_hub`.

        Returns:
            `huggingface_hub.CommitInfo`: The commit, or the pull request.

        Raises:
            PermissionError: If the token may not write there.
        """
        from hf_fastif.hub.artifacts import push_result

        return push_result(self, repo_id, include_text, diagnosis, recall, **options)

    def push_report_to_hub(
        self,
        repo_id: str,
        include_text: bool = False,
        title: str = "Influential training examples",
        **options: Unpack[PushOptions],
    ) -> CommitInfo:
        """Publishes the page of `to_html` as a static Space. The arguments are those of `push_to_hub`."""
        from hf_fastif.hub.artifacts import push_report

        return push_report(self, repo_id, include_text, title, **options)

    @classmethod
    def from_hub(cls, repo_id: str, revision: str | None = None, token: str | bool | None = None) -> InfluenceResult:
        """Downloads a result that `push_to_hub` published. Nothing in it is executed.

        Args:
            repo_id (`str`): The dataset repository.
            revision (`str`, *optional*): A branch, tag or commit.
            token (`str` or `bool`, *optional*): As in `huggingface_hub`.

        Raises:
            FileNotFoundError: If there is no such repository, or no result in it.
            ValueError: If a file is not what the result's summary says.
        """
        from hf_fastif.hub.loading import fetch

        return cls.load_from_disk(fetch(repo_id, "", SUMMARY, revision, token))

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
        if not self.summary["text_columns"] and self.summary["label_column"] is None:
            return "(no text)"
        text = " | ".join(str(row[name]).strip() for name in self.summary["text_columns"] if name in row)
        label = self.summary["label_column"]
        return f"{text[:100]!r}" if label is None else f"{text[:100]!r} [{row.get(label)}]"

    def _training_examples(self, query: int, direction: str) -> Dataset:
        count = self.summary["num_queries"]
        if not 0 <= query < count:
            raise NoSuchQueryError(f"query={query}: the result holds the queries 0 to {count - 1}.")
        table = self.influences
        chosen = (np.asarray(table["query_index"]) == query) & (np.asarray(table["direction"]) == direction)
        rows = np.flatnonzero(chosen)
        rows = rows[np.argsort(np.asarray(table["rank"])[rows])]
        query_columns = [name for name in table.column_names if name.startswith("query_")]
        examples = table.select(rows).remove_columns([*query_columns, "direction"])
        plain = [name for name in examples.column_names if name.startswith("train_") and name != "train_index"]
        return examples.rename_columns({name: name.removeprefix("train_") for name in plain})


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
