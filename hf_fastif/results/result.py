"""`InfluenceResult`: the training examples that influenced predictions, to read, save and display."""

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
from hf_fastif.model import LOSS
from hf_fastif.results.join import join_results
from hf_fastif.results.publish import push_report, push_result
from hf_fastif.results.report.page import write_report
from hf_fastif.results.tables import SUMMARY, ResultTables, attributed_values
from hf_fastif.results.words import ScoreWords, plain
from hf_fastif.scoring import GOOD


if TYPE_CHECKING:
    import pandas as pd
    from huggingface_hub import CommitInfo


@dataclass(repr=False)
class InfluenceResult(ResultTables):
    """The strongest training examples of each query, in both directions.

    Attributes:
        influences (`datasets.Dataset`): One row for each (query, candidate): `query_index` (position among the
            queries), `train_index` (position among the candidates, by default `trainer.train_dataset`), `influence`,
            `predicted_loss_change` (the predicted change of the query's loss, or of what is measured in its place, if
            the example were removed from the N training examples and the model trained again: -influence / N; if
            candidates are no training examples, if they were added; null for solvers without curvature), `percentile`
            (the percentage of candidates whose influence is weaker in absolute value; null if only k were scored),
            `direction` ("helpful" or "harmful"), `rank` (1 is the strongest of its direction), and the plain columns
            (texts, labels, numbers) of both, named `query_*` and `train_*`. A plain column with the name of a column
            of the result gets a trailing underscore. If examples have a label for each token (language models),
            `tokens` are the texts of the candidate's tokens, and `token_influence` is the influence of predicting each
            of them; these add up to `influence`.
        queries (`datasets.Dataset`): One row for each query: its plain columns, `prediction`, `probability` of the
            prediction (NaN unless exactly one label is predicted), `loss`, `loss_at_attribution` (the loss, or what is
            measured in its place, as a mean over the checkpoints where influence was taken, while `loss` is that of
            the model), `residual` and `std_err` of its s_test, and `ranking`, which grades by the residual how well
            candidates are ranked: "good", "rough" or "poor" (null if unknown).
            Anchors form a single query, so their rows all have the `query_index` 0.
        summary ([`ResultSummary`]): Settings and sizes: model, damping, solver, number of candidates and more.

    Example:

    ```python
    result = trainer.find_influential(queries, num_examples=10)
    print(result)
    print(result.harmful(0)["text"])
    ```
    """

    def helpful(self, query: int) -> Dataset:
        """Return the helpful training examples of a query, strongest first.

        Args:
            query (`int`): Position of the query.

        Returns:
            `datasets.Dataset`: `train_index`, `influence`, `predicted_loss_change`, `percentile`, `rank` and the plain
            columns of the training examples.

        Raises:
            NoSuchQueryError: If there is no such query.

        Example:

        ```python
        for row in result.helpful(0):
            print(row["rank"], row["train_index"], row["predicted_loss_change"])
        ```
        """
        return self._training_examples(query, "helpful")

    def harmful(self, query: int) -> Dataset:
        """Return the harmful training examples of a query, strongest first.

        Args:
            query (`int`): Position of the query.

        Returns:
            `datasets.Dataset`: `train_index`, `influence`, `predicted_loss_change`, `percentile`, `rank` and the plain
            columns of the training examples.

        Raises:
            NoSuchQueryError: If there is no such query.

        Example:

        ```python
        suspects = result.harmful(0)["train_index"][:5]
        ```
        """
        return self._training_examples(query, "harmful")

    def to_pandas(self) -> pd.DataFrame:
        """Return `influences` as a data frame, with label names instead of numbers.

        Example:

        ```python
        frame = result.to_pandas()
        print(frame.groupby("direction")["influence"].describe())
        ```
        """
        return with_label_names(self.influences).to_pandas()

    def to_html(
        self,
        path: str | os.PathLike[str],
        title: str = "Influential training examples",
        slice_column: str | None = None,
        subset_column: str | None = None,
        diagnosis: CardSection | None = None,
    ) -> Path:
        """Write a self-contained HTML page to explore the result, and return its path.

        It shows each query beside its most helpful and most harmful examples, the training examples that influence
        many queries, and the graph of both (figure 5 of the paper).

        Args:
            path (`str` or `Path`): The file to write.
            title (`str`, *optional*): The heading of the page.
            slice_column (`str`, *optional*): The column of the queries that names their slice in the graph. By
                default, the results that `join` merged are the slices.
            subset_column (`str`, *optional*): The column of the training examples that names their subset; each subset
                gets a separate circle in the graph.
            diagnosis ([`Diagnosis`], *optional*): The return value of `trainer.diagnose()`, for a separate section.

        Raises:
            InfluenceError: If there is no such column.

        Example:

        ```python
        result.to_html("report.html", title="Errors on HANS", diagnosis=trainer.diagnose())
        ```
        """
        return write_report(self, Path(path), title, slice_column, subset_column, diagnosis)

    @classmethod
    def join(cls, results: Mapping[str, InfluenceResult]) -> InfluenceResult:
        """Merge results that were computed for the same model and candidates; each becomes a slice of the graph.

        The queries keep their order, one result after the other. `summary.slices` maps the names of the slices to
        their numbers of queries.

        Args:
            results (`Mapping[str, InfluenceResult]`): The results by the names of their slices.

        Raises:
            InfluenceError: If there are no results, or if models, candidates or settings differ.

        Example:

        ```python
        joined = InfluenceResult.join({"MNLI": mnli_result, "HANS": hans_result})
        joined.to_html("report.html")
        ```
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
        """Publish the result as a dataset repository: its tables, `report.html`, figures and a card.

        Files that are already uploaded are not sent again, so repeating an interrupted push resumes it.

        Args:
            repo_id (`str`): The repository, such as `"me/mnli-influences"`. It is created if it does not exist.
            include_text (`bool`, *optional*, defaults to `False`): Whether to publish the texts, labels and other
                columns of the queries and training examples, in all rows and in the report. By default, only indices,
                scores and predictions are published.
            diagnosis ([`Diagnosis`], *optional*): The return value of `trainer.diagnose()`, for the card.
            recall ([`Recall`], *optional*): The return value of `hf_fastif.analysis.recall`, for the card.
            **options: `private`, `revision` (a branch, created if needed), `create_pr`, `token` and `commit_message`,
                as in `huggingface_hub`.

        Returns:
            `huggingface_hub.CommitInfo`: The commit, or the pull request.

        Raises:
            NotAllowedError: If the token does not permit writing to the repository.

        Example:

        ```python
        result.push_to_hub("me/mnli-influences", include_text=True, private=True)
        ```
        """
        return push_result(self, repo_id, include_text, diagnosis, recall, **options)

    def push_report_to_hub(
        self,
        repo_id: str,
        include_text: bool = False,
        title: str = "Influential training examples",
        **options: Unpack[PushOptions],
    ) -> CommitInfo:
        """Publish the page of `to_html` as a static Space. The arguments are those of `push_to_hub`.

        Args:
            repo_id (`str`): The Space. It is created if it does not exist.
            include_text (`bool`, *optional*, defaults to `False`): Whether the page shows texts, labels and other
                columns.
            title (`str`, *optional*): The title of the Space and heading of the page.
            **options: As in `push_to_hub`.

        Returns:
            `huggingface_hub.CommitInfo`: The commit, or the pull request.

        Raises:
            NotAllowedError: If the token does not permit writing to the repository.

        Example:

        ```python
        result.push_report_to_hub("me/mnli-report", include_text=True)
        ```
        """
        return push_report(self, repo_id, include_text, title, **options)

    @classmethod
    def from_hub(cls, repo_id: str, revision: str | None = None, token: str | bool | None = None) -> InfluenceResult:
        """Download a result that `push_to_hub` published. Nothing in it is executed.

        Args:
            repo_id (`str`): The dataset repository.
            revision (`str`, *optional*): A branch, tag or commit.
            token (`str` or `bool`, *optional*): As in `huggingface_hub`.

        Raises:
            NotFoundError: If there is no such repository, or no result in it.
            InfluenceError: If a file does not match the result's summary.

        Example:

        ```python
        from hf_fastif import InfluenceResult

        result = InfluenceResult.from_hub("me/mnli-influences", revision="main")
        ```
        """
        return cls.load_from_disk(fetch(repo_id, "", SUMMARY, revision, token))

    def __repr__(self) -> str:
        words, before = ScoreWords(self.summary), attributed_values(self)
        lines = [
            f"InfluenceResult: {self.summary.num_queries} queries, {len(self.influences)} rows out of "
            f"{self.summary.num_candidates:,} candidates, damping {self.summary.damping:.4g}",
            f"  {words.caption}",
            *(f"  Caution: {line}" for line in self.summary.cautions),
        ]
        first = np.unique(self.queries["query_index"], return_index=True)[1]  # anchors share an index
        for row in with_label_names(self.queries.select(first[:3])):
            query = row["query_index"]
            lines.append(f"  query {query}: {self._describe(row)} {self._answer(row)}")
            for direction in ("helpful", "harmful"):
                examples = with_label_names(self._training_examples(query, direction))
                for example in examples.select(range(min(1, len(examples)))):
                    number = words.number(example["influence"])
                    lines.append(f"    {direction} #{example['train_index']} {number} {self._describe(example)}")
                    consequences = (
                        words.consequence(before[query], example["influence"]),
                        words.strength(example["percentile"]),
                    )
                    if text := "; ".join(filter(None, consequences)):
                        lines.append(f"      {text}")
        if len(first) > 3:
            lines.append(f"  and {len(first) - 3} more queries")
        if len(first) < len(self.queries):
            lines.append(f"  query 0 is the mean of {len(self.queries)} anchors")
        return "\n".join(lines)

    def _describe(self, row: dict[str, Any]) -> str:
        if not self.summary.text_columns and self.summary.label_column is None:
            return "(no text)"
        text = " | ".join(str(row[name]).strip() for name in self.summary.text_columns if name in row)
        label = self.summary.label_column
        return f"{text[:100]!r}" if label is None else f"{text[:100]!r} [{row.get(label)}]"

    def _answer(self, row: dict[str, Any]) -> str:
        """Describe the prediction of a query, its loss, and what is attributed if that is another number."""
        text = f"predicted {row['prediction']}, loss {row['loss']:.3g}"
        if row["ranking"] not in (None, GOOD):
            text += f", {row['ranking']} ranking"
        value, measure = row["loss_at_attribution"], self.summary.measure
        if value is None or measure == LOSS and plain(value) == plain(row["loss"]):
            return text
        return f"{text} ({plain(value)} at attribution)" if measure == LOSS else f"{text}, {measure} {plain(value)}"

    def _training_examples(self, query: int, direction: str) -> Dataset:
        count = self.summary.num_queries
        if not 0 <= query < count:
            raise NoSuchQueryError(f"query={query}: must be between 0 and {count - 1}, the last query of the result.")
        table = self.influences
        chosen = (np.asarray(table["query_index"]) == query) & (np.asarray(table["direction"]) == direction)
        rows = np.flatnonzero(chosen)
        rows = rows[np.argsort(np.asarray(table["rank"])[rows])]
        query_columns = [name for name in table.column_names if name.startswith("query_")]
        examples = table.select(rows).remove_columns([*query_columns, "direction"])
        plain = [name for name in examples.column_names if name.startswith("train_") and name != "train_index"]
        return examples.rename_columns({name: name.removeprefix("train_") for name in plain})
