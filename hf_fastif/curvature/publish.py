"""Publish EK-FAC factors with their card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from datasets import Dataset
from huggingface_hub import CommitInfo, DatasetCard

from hf_fastif.artifacts import (
    PushOptions,
    describe_files,
    push,
)
from hf_fastif.artifacts.cards import dataset_card, digest_cells
from hf_fastif.curvature.factor_files import FACTORS
from hf_fastif.curvature.kronecker import KroneckerFactors


def push_factors(
    factors: KroneckerFactors, path: Path, manifest: Mapping[str, Any], repo_id: str, **options: Unpack[PushOptions]
) -> CommitInfo:
    """Publish EK-FAC factors; see `InfluenceTrainer.push_factors_to_hub`.

    Args:
        factors (`KroneckerFactors`): The factors.
        path (`Path`): The file that holds them.
        manifest (`Mapping`): Names the model, the dataset and the settings of the factors, and their origin.
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
        # The local name of a checkpoint's factors contains its digest; the published name does not.
        whole = dict(manifest) | {"files": {FACTORS: describe_files(path.parent, [path.name])[path.name]}}
        (folder / "manifest.json").write_text(json.dumps(whole, indent=2), "utf-8")
        files = {
            "layers.parquet": folder / "layers.parquet",
            "factors/manifest.json": folder / "manifest.json",
            f"factors/{FACTORS}": path,
        }
        return factors_card(factors, whole, repo_id), files

    return push(repo_id, "dataset", stage, ["factors/*", "layers.parquet"], **options)


def factors_card(factors: KroneckerFactors, manifest: dict[str, Any], repo_id: str) -> DatasetCard:
    """Return the card of EK-FAC factors; see `push_factors`."""
    return dataset_card(
        "factors.md",
        manifest,
        ["layers"],
        repo_id=repo_id,
        model=manifest["model_name"],
        settings=manifest["settings"],
        num_layers=len(factors.blocks),
        num_diagonal=f"{sum(values.numel() for values in factors.diagonal.values()):,}",
        **digest_cells(manifest),
    )
