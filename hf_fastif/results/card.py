"""Fill the cards of a result and of a report that is published as a Space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub import DatasetCard, RepoCard, SpaceCardData

from hf_fastif.artifacts import NOT_MEASURED, TAGS, TEMPLATES, CardSection
from hf_fastif.artifacts.cards import about_recall, cells, dataset_card
from hf_fastif.results.report.page import settings_table
from hf_fastif.results.tables import NUMBERS, ResultTables
from hf_fastif.scoring import SIGN


SOUND = (0.003, 0.03)  # lambda over the largest eigenvalue


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
        summary,
        ["influences", "queries"],
        repo_id=repo_id,
        include_text=include_text,
        model=summary["model"],
        sign=SIGN,
        asked=_asked(result),
        num_predictions=f"{len(result.queries):,}",
        num_candidates=f"{summary['num_candidates']:,}",
        num_influences=f"{len(result.influences):,}",
        influence_columns=_others(result.influences.column_names, NUMBERS["influences.parquet"]),
        query_columns=_others(result.queries.column_names, NUMBERS["queries.parquet"]),
        settings=cells(settings_table(result)),
        damping=about_damping(summary),
        residual=about_residual(result),
        recall=_about_candidates(summary, recall),
        figures=figures,
        diagnosis=diagnosis,
    )


def space_card(result: ResultTables, title: str, include_text: bool) -> RepoCard:
    """The card of a report, which makes a repository a static Space."""
    summary = result.summary
    data = SpaceCardData(
        title=title,
        sdk="static",
        app_file="index.html",
        models=[summary["base_model"]] if summary.get("base_model") else None,
        datasets=summary.get("datasets") or None,
        tags=list(TAGS),
    )
    return RepoCard.from_template(
        data,
        template_path=str(TEMPLATES / "space.md"),
        model=summary["model"],
        asked=_asked(result),
        num_candidates=f"{summary['num_candidates']:,}",
        include_text=include_text,
    )


def about_damping(summary: dict[str, Any]) -> str:
    """Where lambda lies in the spectrum, and what that means."""
    if summary.get("damping_by_layer"):
        return (
            f"Each layer has a λ of its own, a tenth of its mean eigenvalue; their mean is {summary['damping']:.2g}."
        )
    if not summary["largest_eigenvalue"]:
        return "No curvature was used: influence is a product of two gradients."
    share = summary["damping"] / summary["largest_eigenvalue"]
    line = f"λ = {summary['damping']:.4g} is {share:.2%} of the largest eigenvalue of C"
    if share > SOUND[1]:
        return f"{line}: so much that most of the curvature hardly counts, and influence nears a product of gradients."
    if share < SOUND[0]:
        return f"{line}: so little that directions count about which the training set says next to nothing."
    return f"{line}, where 0.3 % to 3 % is sound."


def about_residual(result: ResultTables) -> str:
    """How well s_test was solved for."""
    known = dict(settings_table(result))
    residual = f"Residual of s_test, ‖v − (C + λI) x‖ / ‖v‖ on a sample of the training set: {known['Residual']}"
    error = f"Its standard error: {known['Standard error']}." if "Standard error" in known else ""
    return f"{residual} (0 is exact, from the best query to the worst). {error}".strip()


def _asked(result: ResultTables) -> str:
    count, num_queries = len(result.queries), result.summary["num_queries"]
    return f"{count:,} predictions" if num_queries == count else f"the mean loss of {count:,} predictions (anchors)"


def _about_candidates(summary: dict[str, Any], recall: CardSection | None) -> str:
    k = summary["num_neighbors"]
    if k is None:
        return "Every candidate was scored, so nothing was missed (recall 1)."
    found = about_recall(recall) if recall else NOT_MEASURED
    return f"Only the {k:,} nearest neighbors of each query were scored. {found}"


def _others(names: Sequence[str], computed: Sequence[str]) -> str:
    return "".join(f", `{name}`" for name in names if name not in computed)
