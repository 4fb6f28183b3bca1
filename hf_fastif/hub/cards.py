"""Cards of what is published, filled from what ran. Templates: `model_cards/`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, RepoCard, SpaceCardData

from hf_fastif.analysis import Recall
from hf_fastif.curvature import KroneckerFactors
from hf_fastif.diagnosis import Diagnosis
from hf_fastif.index import InfluenceIndex
from hf_fastif.results import NUMBERS, SIGN, InfluenceResult
from hf_fastif.visualization.report import settings_table


TEMPLATES = Path(__file__).parent.parent / "model_cards"
LIBRARY = "hf_fastif"
TAGS = [LIBRARY, "influence-functions", "training-data-attribution"]
FEATURES = {
    "pooled": "the model's pooled state",
    "mean_pooled": "the mean of the model's last states",
    "last_layer_gradient": "the gradient of the loss in the output layer, (softmax − onehot) × [h; 1]",
    "gradient_sketch": "the entries of the loss gradient that carry most curvature, in EK-FAC's eigenbasis",
    "own": "features of the publisher's own",
}
SOUND = (0.003, 0.03)  # lambda over the largest eigenvalue
NOT_MEASURED = "Recall was not measured (`hf_fastif.analysis.recall` measures it)."


def result_card(
    result: InfluenceResult, repo_id: str, include_text: bool, diagnosis: Diagnosis | None, recall: Recall | None
) -> DatasetCard:
    """The card of a result; see `push_result`."""
    summary = result.summary
    return _dataset_card(
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
        settings=_cells(settings_table(result)),
        damping=about_damping(summary),
        residual=about_residual(result),
        recall=_about_candidates(summary, recall),
        recall_figure=recall is not None,
        diagnosis=diagnosis,
    )


def index_card(index: InfluenceIndex, repo_id: str, include_text: bool, recall: Recall | None) -> DatasetCard:
    """The card of an index; see `push_index`."""
    manifest = index.manifest
    return _dataset_card(
        "index.md",
        manifest,
        ["rows"],
        ["faiss"],
        repo_id=repo_id,
        include_text=include_text,
        model=manifest["model_name"],
        rows=f"{len(index):,}",
        width=f"{index.faiss_index.d:,}",
        num_neighbors=max(1, len(index) // 100),
        features=FEATURES[index.name],
        compared="inner product, half of the candidates from each end" if manifest["inner_product"] else "L2 distance",
        factory=manifest["factory"],
        search=manifest["search"],
        parts=index.parts is not None,
        recall=_about_recall(recall) if recall else NOT_MEASURED,
        recall_figure=recall is not None,
        **_digests(manifest),
    )


def factors_card(factors: KroneckerFactors, manifest: dict[str, Any], repo_id: str) -> DatasetCard:
    """The card of EK-FAC factors; see `push_factors`."""
    return _dataset_card(
        "factors.md",
        manifest,
        ["layers"],
        repo_id=repo_id,
        model=manifest["model_name"],
        settings=manifest["settings"],
        num_layers=len(factors.blocks),
        num_diagonal=f"{sum(values.numel() for values in factors.diagonal.values()):,}",
        **_digests(manifest),
    )


def analysis_card(
    about: dict[str, Any], settings: Sequence[tuple[str, str]], tables: Sequence[str], **values: Any
) -> DatasetCard:
    """The card of an analysis; see `push_analysis`."""
    title = values["name"].replace("_", " ").capitalize()
    known = {"title": title, "model": about["model"], "settings": _cells(settings), "tables": tables}
    return _dataset_card("analysis.md", about, tables, **known, **values)


def space_card(result: InfluenceResult, title: str, include_text: bool) -> RepoCard:
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


def model_card(
    card: ModelCard,
    repo_id: str,
    datasets: Sequence[str],
    artifacts: Sequence[tuple[str, str]],
    index: str | None,
    result: InfluenceResult | None,
    figure: bool,
    include_text: bool,
) -> ModelCard:
    """A model's card, with a section about what lies in `influence/`.

    Args:
        card (`ModelCard`): As the `Trainer` wrote it.
        repo_id (`str`): Of the model.
        datasets (`Sequence[str]`): The ids of the training sets that are on the Hub.
        artifacts (`Sequence[tuple[str, str]]`): What there is: path and description.
        index (`str`, *optional*): The path of an index.
        result ([`InfluenceResult`], *optional*): The result.
        figure (`bool`): Whether there is a figure of a diagnosis.
        include_text (`bool`): Whether there are texts.
    """
    card.data.datasets = card.data.datasets or list(datasets) or None
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *TAGS]))
    return ModelCard.from_template(
        card.data,
        template_path=str(TEMPLATES / "model.md"),
        training=card.text.strip(),
        repo_id=repo_id,
        artifacts=artifacts,
        index=index,
        settings=_cells(settings_table(result)) if result else None,
        damping=about_damping(result.summary) if result else None,
        residual=about_residual(result) if result else None,
        figure=figure,
        include_text=include_text,
        limits=_part("limits"),
        citation=_part("citation"),
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


def about_residual(result: InfluenceResult) -> str:
    """How well s_test was solved for."""
    known = dict(settings_table(result))
    residual = f"Residual of s_test, ‖v − (C + λI) x‖ / ‖v‖ on a sample of the training set: {known['Residual']}"
    error = f"Its standard error: {known['Standard error']}." if "Standard error" in known else ""
    return f"{residual} (0 is exact, from the best query to the worst). {error}".strip()


def _dataset_card(
    template: str, known: dict[str, Any], configs: Sequence[str], tags: Sequence[str] = (), **values: Any
) -> DatasetCard:
    """A card whose first config is what `load_dataset` gives; `known` has the base model and the data sets."""
    data = DatasetCardData(
        pretty_name=values["repo_id"].split("/")[-1],
        library_name=LIBRARY,
        tags=[*TAGS, *tags],
        base_model=known.get("base_model"),
        datasets=known.get("datasets") or None,
        configs=[
            {"config_name": name, "data_files": [{"split": "train", "path": f"{name}.parquet"}]}
            | ({"default": True} if name == configs[0] else {})
            for name in configs
        ],
    )
    values |= {"limits": _part("limits"), "citation": _part("citation")}
    return DatasetCard.from_template(data, template_path=str(TEMPLATES / template), **values)


def _asked(result: InfluenceResult) -> str:
    count, num_queries = len(result.queries), result.summary["num_queries"]
    return f"{count:,} predictions" if num_queries == count else f"the mean loss of {count:,} predictions (anchors)"


def _part(name: str) -> str:
    return (TEMPLATES / f"_{name}.md").read_text("utf-8")


def _about_candidates(summary: dict[str, Any], recall: Recall | None) -> str:
    k = summary["num_neighbors"]
    if k is None:
        return "Every candidate was scored, so nothing was missed (recall 1)."
    found = _about_recall(recall) if recall else NOT_MEASURED
    return f"Only the {k:,} nearest neighbors of each query were scored. {found}"


def _about_recall(recall: Recall) -> str:
    return f"Recall, the share of the top m of a full scan that is among the k nearest:\n\n```text\n{recall}\n```"


def _digests(manifest: dict[str, Any]) -> dict[str, str]:
    return {
        "model_digest": manifest["model"],
        "dataset_digest": manifest["dataset"],
        "datasets": ", ".join(manifest["datasets"]) or "a dataset that is not on the Hub",
        "versions": ", ".join(f"{name} {number}" for name, number in manifest["versions"].items()),
    }


def _others(names: Sequence[str], computed: Sequence[str]) -> str:
    return "".join(f", `{name}`" for name in names if name not in computed)


def _cells(rows: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Text that stays in its cell of a table."""
    return [(name, value.replace("|", "\\|").replace("\n", " ")) for name, value in rows]
