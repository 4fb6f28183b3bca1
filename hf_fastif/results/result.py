"""`InfluenceResult`: which training examples influenced which predictions, to read, save and show."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from datasets import Dataset

from hf_fastif.artifacts import CardSection, PushOptions, fetch
from hf_fastif.data import with_label_names
from hf_fastif.errors import NoSuchQueryError
from hf_fastif.results.join import join_results
from hf_fastif.results.publish import push_report, push_result
from hf_fastif.results.report.page import write_report
from hf_fastif.results.tables import SUMMARY, ResultTables
from hf_fastif.scoring import SIGN


if TYPE_CHECKING:
    import pandas as pd
    from huggingface_hub import CommitInfo


@dataclass(repr=False)
class InfluenceResult(ResultTables):
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
        diagnosis: CardSection | None = None,
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
        return write_report(self, Path(path), title, slice_column, subset_column, diagnosis)

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
        joined = join_results(results)
        return cls(joined.influences, joined.queries, joined.summary)

    def push_to_hub(
        self,
        repo_id: str,
        include_text: bool = False,
        diagnosis: CardSection | None = None,
        recall: CardSection | None = None,
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
        return push_result(self, repo_id, include_text, diagnosis, recall, **options)

    def push_report_to_hub(
        self,
        repo_id: str,
        include_text: bool = False,
        title: str = "Influential training examples",
        **options: Unpack[PushOptions],
    ) -> CommitInfo:
        """Publishes the page of `to_html` as a static Space. The arguments are those of `push_to_hub`."""
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
