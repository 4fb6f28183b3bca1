"""Refuse an index that does not match the dataset, the model or the loss."""

from __future__ import annotations

from collections.abc import Mapping

from hf_fastif.artifacts import differences
from hf_fastif.errors import InfluenceError
from hf_fastif.index.influence_index import InfluenceIndex


def check_num_neighbors(num_neighbors: int | None, num_candidates: int) -> None:
    """Refuse a k that is not between 1 and the number of candidates; None means that every candidate is scored.

    Raises:
        InfluenceError: If k is out of range.
    """
    if num_neighbors is not None and not 1 <= num_neighbors <= num_candidates:
        raise InfluenceError(
            f"num_neighbors={num_neighbors}: there are {num_candidates} candidates; give 1 to {num_candidates}, or "
            "None to score every candidate."
        )


def check_index(name: str, index: InfluenceIndex, belongs: Mapping[str, str]) -> InfluenceIndex:
    """Return the index that is attached to a dataset, if it was built with the current model, loss and rows.

    Args:
        name (`str`): The argument that the dataset was given as, for messages.
        index ([`InfluenceIndex`]): The index.
        belongs (`Mapping[str, str]`): Current digests of model, trained parameters, dataset and loss.

    Raises:
        InfluenceError: If model, dataset or loss changed after the index was built.
    """
    rebuild = "trainer.build_index()" if name == "train_dataset" else f"trainer.build_index({name})"
    reasons = {
        "trained": "(other parameters have requires_grad)",
        "model": "(or other checkpoints were chosen)",
        "dataset": "(its rows, its transform or the data_collator)",
        "loss": "(compute_loss_func, or one of its settings)",
    }
    names = {"trained": "trained part of the model"}
    for what in differences(index.manifest, belongs):
        raise InfluenceError(
            f"{name}: the {names.get(what, what)} was changed after its index was built {reasons[what]}: it was "
            f"{index.manifest.get(what)} and is now {belongs[what]}. Call {rebuild} again."
        )
    return index
