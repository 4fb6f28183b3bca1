"""Refuse an index that does not fit the dataset, the model or the loss."""

from __future__ import annotations

from collections.abc import Mapping

from datasets import Dataset

from hf_fastif.artifacts import differences
from hf_fastif.errors import InfluenceError
from hf_fastif.index.influence_index import InfluenceIndex


def check_num_neighbors(num_neighbors: int | None, num_candidates: int) -> None:
    """k must lie between 1 and the number of candidates."""
    if num_neighbors is not None and not 1 <= num_neighbors <= num_candidates:
        raise InfluenceError(
            f"num_neighbors={num_neighbors}: there are {num_candidates} candidates; give 1 to {num_candidates}, or "
            "None "
            "to score every candidate."
        )


def check_index(
    name: str, dataset: Dataset, indexes: Mapping[str, InfluenceIndex], belongs: Mapping[str, str]
) -> InfluenceIndex:
    """The index of the dataset's present rows, which must have been made with the present model, loss and rows.

    `indexes` maps the fingerprints of datasets to their indexes, `belongs` is what the index must have been made with.
    """
    rebuild = "trainer.build_index()" if name == "train_dataset" else f"trainer.build_index({name})"
    index = indexes.get(dataset._fingerprint)
    if index is None and (indexes or dataset.list_indexes()):
        raise InfluenceError(
            f"{name} is not the dataset that the index was built for (its fingerprint is {dataset._fingerprint}, "
            f"indexed are {', '.join(indexes) or 'none by this trainer'}): rows were changed or replaced since; call "
            f"{rebuild} again."
        )
    if index is None or index.name not in dataset.list_indexes():
        raise InfluenceError(f"{name} has no index to find num_neighbors in; call {rebuild} first.")
    reasons = {
        "trained": "(what has requires_grad)",
        "model": "(or other checkpoints chosen)",
        "dataset": "(its rows, or what its transform or the data_collator makes of them)",
        "loss": "(compute_loss_func, or a setting of it)",
    }
    names = {"trained": "trained part of the model"}
    for what in differences(index.manifest, belongs):
        raise InfluenceError(
            f"{name}: the {names.get(what, what)} was changed after its index was built {reasons[what]}; it was "
            f"{index.manifest.get(what)}, and is {belongs[what]}. Call {rebuild} again."
        )
    return index
