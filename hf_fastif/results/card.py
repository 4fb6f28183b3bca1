"""Fill the cards of a result and of a report that is published as a Space."""

from __future__ import annotations

import re
from collections.abc import Sequence

from huggingface_hub import DatasetCard, RepoCard, SpaceCardData

from hf_fastif.artifacts import NOT_MEASURED, TAGS, TEMPLATES, CardSection
from hf_fastif.artifacts.cards import about_recall, cells, dataset_card
from hf_fastif.curvature import RECOMMENDED_DAMPING
from hf_fastif.model import LOSS
from hf_fastif.results.report.page import settings_table
from hf_fastif.results.summary import ResultSummary
from hf_fastif.results.tables import NUMBERS, ResultTables
from hf_fastif.results.words import ScoreWords
from hf_fastif.scoring import limits_of, verbs_of


def result_card(
    result: ResultTables,
    repo_id: str,
    include_text: bool,
    diagnosis: CardSection | None,
    recall: CardSection | None,
    figures: Sequence[str],
) -> DatasetCard:
    """Return the card of a result with some figures; see `push_result`."""
    summary = result.summary
    return dataset_card(
        "result.md",
        summary.to_json(),
        ["influences", "queries"],
        repo_id=repo_id,
        include_text=include_text,
        model=summary.model,
        sign=_sign(summary),
        unit=_unit(summary),
        per_influence=_per_influence(summary),
        measure=None if summary.measure == LOSS else _measure(summary),
        verbs=verbs_of(summary.measure),
        predictions=_predictions(result),
        num_predictions=f"{len(result.queries):,}",
        num_candidates=f"{summary.num_candidates:,}",
        num_influences=f"{len(result.influences):,}",
        influence_columns=_others(result.influences.column_names, NUMBERS["influences.parquet"]),
        query_columns=_others(result.queries.column_names, NUMBERS["queries.parquet"]),
        settings=cells(settings_table(result)),
        damping=about_damping(summary),
        residual=about_residual(result),
        cautions=summary.cautions,
        recall=_candidates_text(summary, recall),
        figures=figures,
        diagnosis=diagnosis,
    )


def space_card(result: ResultTables, title: str, include_text: bool) -> RepoCard:
    """Return the card of a report, which turns a repository into a static Space."""
    summary = result.summary
    data = SpaceCardData(
        title=title,
        sdk="static",
        app_file="index.html",
        models=[summary.base_model] if summary.base_model else None,
        datasets=summary.datasets or None,
        tags=list(TAGS),
    )
    return RepoCard.from_template(
        data,
        template_path=str(TEMPLATES / "space.md"),
        model=summary.model,
        predictions=_predictions(result),
        num_candidates=f"{summary.num_candidates:,}",
        include_text=include_text,
    )


def about_damping(summary: ResultSummary) -> str:
    """Describe the damping relative to the spectrum, and its effect."""
    if summary.damping_by_layer:
        return f"Each layer has a separate λ, a tenth of its mean eigenvalue; their mean is {summary.damping:.2g}."
    if not summary.largest_eigenvalue:
        return "No curvature was used: influence is a product of two gradients."
    share = summary.damping / summary.largest_eigenvalue
    line = f"λ = {summary.damping:.4g} is {share:.2%} of the largest eigenvalue of C"
    if share > RECOMMENDED_DAMPING[1]:
        return (
            f"{line}. This is large: most of the curvature has little effect, and influence approaches a product of "
            "gradients."
        )
    if share < RECOMMENDED_DAMPING[0]:
        return f"{line}. This is small: directions that the training set barely determines have a large effect."
    low, high = RECOMMENDED_DAMPING
    return f"{line}; {low:.1%} to {high:.0%} is recommended."


def about_residual(result: ResultTables) -> str:
    """Describe how accurately s_test was computed."""
    known = dict(settings_table(result))
    if "Residual" not in known:
        return "No system was solved."
    if result.summary.by_index:
        good, rough = limits_of(by_index=True)
        return (
            f"The index leaves out {known['Residual']} of the length of a query's gradient (0 is nothing; from the "
            f"best query to the worst). Up to {good} the ranking is good, up to {rough} rough."
        )
    residual = f"Residual of s_test, ‖v − (C + λI) x‖ / ‖v‖ on a sample of the training set: {known['Residual']}"
    error = f"Its standard error: {known['Standard error']}." if "Standard error" in known else ""
    return f"{residual} (0 is exact; from the best query to the worst). {error}".strip()


def _predictions(result: ResultTables) -> str:
    count, num_queries = len(result.queries), result.summary.num_queries
    if num_queries == count:
        return f"{count:,} predictions"
    return f"the mean {_measure(result.summary)} of {count:,} predictions (anchors)"


def _sign(summary: ResultSummary) -> str:
    """Return the sentences on the sign as Markdown."""
    return summary.sign.replace(f" {summary.measure} of the query", f" {_measure(summary)} of the query")


def _unit(summary: ResultSummary) -> str:
    """Return the sentence on what scores predict as Markdown; empty if they predict nothing."""
    words = ScoreWords(summary)
    caption = words.caption.replace(
        f" {words.subject} of", f" {words.subject.replace(summary.measure, _measure(summary))} of"
    )
    return caption.replace("A number", "`predicted_loss_change`") if words.predicts else ""


def _per_influence(summary: ResultSummary) -> str:
    """Return the predicted change as a formula; empty if there is none."""
    factor = summary.change_per_influence
    return "" if factor is None else f"{'−' if factor < 0 else ''}influence / {summary.num_train:,}"


def _measure(summary: ResultSummary) -> str:
    """Return what is measured as Markdown: words about the loss as they are, and anything else as code."""
    measure = " ".join(summary.measure.split())
    if verbs_of(measure)["helpful"] == "lower":
        return measure
    longest = max(map(len, re.findall("`+", measure)), default=0)
    fence, pad = "`" * (longest + 1), " " * bool(longest)  # Markdown ends code at as many backticks as it begins with
    return f"{fence}{pad}{measure}{pad}{fence}"


def _candidates_text(summary: ResultSummary, recall: CardSection | None) -> str:
    k = summary.num_neighbors
    if k is None:
        return "Every candidate was scored, so nothing was missed (recall 1)."
    recall_text = about_recall(recall) if recall else NOT_MEASURED
    return f"Only the {k:,} nearest neighbors of each query were scored. {recall_text}"


def _others(names: Sequence[str], computed: Sequence[str]) -> str:
    return "".join(f", `{name}`" for name in names if name not in computed)
