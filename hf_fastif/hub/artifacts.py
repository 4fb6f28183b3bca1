"""What is published of a result, an index, factors and a report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from datasets import Dataset, concatenate_datasets
from huggingface_hub import CommitInfo, DatasetCard, RepoCard

from hf_fastif.analysis import Recall
from hf_fastif.columns import plain_columns, prefixed, set_apart
from hf_fastif.curvature import KroneckerFactors
from hf_fastif.diagnosis import Diagnosis
from hf_fastif.errors import InfluenceError
from hf_fastif.hub.cards import factors_card, index_card, result_card, space_card
from hf_fastif.hub.figures import plot_influences
from hf_fastif.hub.loading import FACTORS
from hf_fastif.hub.publishing import PushOptions, push
from hf_fastif.index import InfluenceIndex, without_indexes
from hf_fastif.index.influence_index import MANIFEST
from hf_fastif.manifests import describe_files
from hf_fastif.results import NUMBERS, SUMMARY, InfluenceResult


def push_result(
    result: InfluenceResult,
    repo_id: str,
    include_text: bool,
    diagnosis: Diagnosis | None,
    recall: Recall | None,
    **options: Unpack[PushOptions],
) -> CommitInfo:
    """Publishes a result; see `InfluenceResult.push_to_hub`."""
    shared = result if include_text else result.without_text()

    def stage(folder: Path, repo_id: str) -> tuple[DatasetCard, dict[str, Path]]:
        shared.save_to_disk(folder)
        shared.to_html(folder / "report.html", diagnosis=diagnosis)
        (folder / "figures").mkdir()
        plot_influences(shared, folder / "figures" / "influences.png")
        for name, source in (("diagnosis", diagnosis), ("recall", recall)):
            if source is not None:
                source.plot(folder / "figures" / f"{name}.png")
        return result_card(shared, repo_id, include_text, diagnosis, recall), _files(folder)

    return push(repo_id, "dataset", stage, [SUMMARY, *NUMBERS, "report.html", "figures/*"], **options)


def push_index(
    index: InfluenceIndex,
    repo_id: str,
    dataset: Dataset | None,
    include_text: bool,
    recall: Recall | None,
    **options: Unpack[PushOptions],
) -> CommitInfo:
    """Publishes an index; see `InfluenceIndex.push_to_hub`."""
    if include_text and (dataset is None or len(dataset) != len(index)):
        given = "None" if dataset is None else f"{len(dataset):,} rows"
        raise InfluenceError(
            f"include_text=True, dataset={given}: the texts are those of the {len(index):,} rows that were indexed; "
            "give the dataset that holds them."
        )

    def stage(folder: Path, repo_id: str) -> tuple[DatasetCard, dict[str, Path]]:
        rows = Dataset.from_dict({"train_index": np.arange(len(index))})
        if include_text:
            plain = plain_columns(without_indexes(dataset))
            rows = concatenate_datasets([rows, prefixed(set_apart(plain), "train_")], axis=1)
        rows.to_parquet(folder / "rows.parquet")
        if recall is not None:
            (folder / "figures").mkdir()
            recall.plot(folder / "figures" / "recall.png")
        names = [MANIFEST, *index.manifest["files"]]
        files = _files(folder) | {f"indexes/{name}": index.folder / name for name in names}
        return index_card(index, repo_id, include_text, recall), files

    return push(repo_id, "dataset", stage, ["indexes/*", "rows.parquet", "figures/*"], **options)


def push_factors(
    factors: KroneckerFactors, path: Path, manifest: Mapping[str, Any], repo_id: str, **options: Unpack[PushOptions]
) -> CommitInfo:
    """Publishes EK-FAC factors; see `InfluenceTrainer.push_factors_to_hub`.

    Args:
        factors (`KroneckerFactors`): The factors.
        path (`Path`): Their file.
        manifest (`Mapping`): What they belong to, and where that is from.
        repo_id (`str`): The repository.
        **options: See `PushOptions`.
    """

    def stage(folder: Path, repo_id: str) -> tuple[DatasetCard, dict[str, Path]]:
        layers = [
            {
                "layer": block.layer.module,
                "outputs": block.eigenvalues.shape[0],
                "inputs": block.eigenvalues.shape[1],
                "sum_of_eigenvalues": float(block.eigenvalues.sum()),
                "largest_eigenvalue": float(block.eigenvalues.max()),
            }
            for block in factors.blocks
        ]
        Dataset.from_list(layers).to_parquet(folder / "layers.parquet")
        # Those of a checkpoint have its digest in their local name.
        whole = dict(manifest) | {"files": {FACTORS: describe_files(path.parent, [path.name])[path.name]}}
        (folder / "manifest.json").write_text(json.dumps(whole, indent=2), "utf-8")
        files = {
            "layers.parquet": folder / "layers.parquet",
            "factors/manifest.json": folder / "manifest.json",
            f"factors/{FACTORS}": path,
        }
        return factors_card(factors, whole, repo_id), files

    return push(repo_id, "dataset", stage, ["factors/*", "layers.parquet"], **options)


def push_report(
    result: InfluenceResult, repo_id: str, include_text: bool, title: str, **options: Unpack[PushOptions]
) -> CommitInfo:
    """Publishes a report as a static Space; see `InfluenceResult.push_report_to_hub`."""
    shared = result if include_text else result.without_text()

    def stage(folder: Path, repo_id: str) -> tuple[RepoCard, dict[str, Path]]:
        return space_card(shared, title, include_text), {"index.html": shared.to_html(folder / "index.html", title)}

    return push(repo_id, "space", stage, ["index.html"], **options)


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
