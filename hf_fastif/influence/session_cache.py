"""Keep results of earlier sessions of a trainer for later ones."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hf_fastif.index import InfluenceIndex
from hf_fastif.model import FrozenStates, LossFacts


@dataclass
class SessionCache:
    """Results of earlier calls that later calls reuse.

    Attributes:
        indexes (`dict`): Indexes that are attached to a dataset, by its fingerprint.
        built (`dict`): The last index that was built or read in each folder, and what it depends on, by folder name.
        coordinates (`dict`): Queries in the coordinates of an index, by query and index.
        states (`dict`): Cached outputs of frozen layers, by dataset; None if a dataset has none to cache.
        fitted (`dict`): Fitted spectra, factors and the like, by the model and settings that they belong to.
        trained_on (`dict`): Whether the training set holds all rows of a pool, by the digests of both.
        digests (`dict`): Digests of the stored rows of datasets, by fingerprint.
        checked (`dict`): The collator that each dataset was checked with.
        positions (`dict`): The collator, and whether token positions are counted from the mask, by model and dataset.
        losses (`dict`): Facts that were established by probing a loss.
        loss_identities (`list[str]`): Identities of the losses used so far.
        checkpoint_notice (`str`): The last message to the user that tells which checkpoints are used.
        prepared (`bool`): Whether the output folder was checked and prepared.
        begun (`set[Path]`): Folders with permanent results that were opened already.
    """

    indexes: dict[str, InfluenceIndex] = field(default_factory=dict)
    built: dict[str, tuple[str, InfluenceIndex]] = field(default_factory=dict)
    coordinates: dict[Hashable, list[torch.Tensor]] = field(default_factory=dict)
    states: dict[tuple[Hashable, ...], FrozenStates | None] = field(default_factory=dict)
    fitted: dict[tuple[Hashable, ...], Any] = field(default_factory=dict)
    trained_on: dict[tuple[str, str], bool] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    checked: dict[tuple[Hashable, ...], Any] = field(default_factory=dict)
    positions: dict[tuple[Hashable, ...], tuple[Any, bool]] = field(default_factory=dict)
    losses: dict[Hashable, LossFacts] = field(default_factory=dict)
    loss_identities: list[str] = field(default_factory=list)
    checkpoint_notice: str = ""
    prepared: bool = False
    begun: set[Path] = field(default_factory=set)


def evict(states: dict[tuple[Hashable, ...], FrozenStates | None], memory: int) -> None:
    """Evict cached activations, least recently used first.

    All datasets except the current one fit into `memory` bytes together afterwards.
    """
    used = 0
    for key in list(states)[-2::-1]:
        used += 0 if states[key] is None else states[key].used
        if used > memory:
            del states[key]
