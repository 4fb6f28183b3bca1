"""Publish an index with its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, Unpack

import faiss
import numpy as np
from datasets import Dataset, concatenate_datasets
from huggingface_hub import CommitInfo, DatasetCard

from hf_fastif.artifacts import NOT_MEASURED, CardSection, PushOptions, push
from hf_fastif.artifacts.cards import about_recall, dataset_card, digest_cells
from hf_fastif.artifacts.plots import try_to_draw
from hf_fastif.artifacts.upload import files_in
from hf_fastif.data import plain_columns, prefixed, set_apart, without_indexes
from hf_fastif.errors import InfluenceError


MANIFEST = "manifest.json"


class WrittenIndex(Protocol):
    """The attributes of an [`InfluenceIndex`] that are published."""

    name: str
    faiss_index: faiss.Index
    manifest: dict[str, Any]
    folder: Path
    sketches: Any

    def __len__(self) -> int: ...


def push_index(
    index: WrittenIndex,
    repo_id: str,
    dataset: Dataset | None,
    include_text: bool,
    recall: CardSection | None,
    **options: Unpack[PushOptions],
) -> CommitInfo:
    """Publish an index; see `InfluenceIndex.push_to_hub` for arguments and errors."""
    if include_text and (dataset is None or len(dataset) != len(index)):
        given = "None" if dataset is None else f"{len(dataset):,} rows"
        raise InfluenceError(
            f"include_text=True, dataset={given}: the texts come from the {len(index):,} rows that were indexed; "
            "give the dataset that was indexed."
        )

    def stage(folder: Path, repo_id: str) -> tuple[DatasetCard, dict[str, Path]]:
        rows = Dataset.from_dict({"train_index": np.arange(len(index))})
        if include_text:
            plain = plain_columns(without_indexes(dataset))
            rows = concatenate_datasets([rows, prefixed(set_apart(plain), "train_")], axis=1)
        rows.to_parquet(folder / "rows.parquet")
        (folder / "figures").mkdir()
        figure = folder / "figures" / "recall.png"
        has_figure = recall is not None and try_to_draw(lambda: recall.plot(figure))
        names = [MANIFEST, *index.manifest["files"]]
        files = files_in(folder) | {f"indexes/{name}": index.folder / name for name in names}
        return index_card(index, repo_id, include_text, recall, has_figure), files

    return push(repo_id, "dataset", stage, ["indexes/*", "rows.parquet", "figures/*"], **options)


FEATURES = {
    "pooled": "the model's pooled state",
    "mean_pooled": "the mean of the model's last states",
    "gradient_sketch": "the loss gradient along the directions of most curvature",
    "own": "features that the publisher supplied",
}


def index_card(
    index: WrittenIndex, repo_id: str, include_text: bool, recall: CardSection | None, has_figure: bool
) -> DatasetCard:
    """Return the card of an index; see `InfluenceIndex.push_to_hub` for the arguments."""
    manifest = index.manifest
    return dataset_card(
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
        sketches=index.sketches is not None,
        recall=about_recall(recall) if recall else NOT_MEASURED,
        recall_figure=has_figure,
        **digest_cells(manifest),
    )
