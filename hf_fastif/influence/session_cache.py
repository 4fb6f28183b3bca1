"""What earlier sessions of a trainer have made and later ones may use."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_fastif.index import InfluenceIndex
from hf_fastif.model import FrozenStates, LossFacts


@dataclass
class SessionCache:
    """What earlier calls have made and later ones may use.

    Attributes:
        indexes (`dict`): Indexes by the fingerprint of their dataset.
        states (`dict`): States behind frozen layers, by dataset; None where there are none to keep.
        fitted (`dict`): Spectra, factors and the like, by what they belong to.
        digests (`dict`): Of the stored rows of datasets, by their fingerprint.
        checked (`dict`): The collators that datasets were checked with.
        positions (`dict`): Whether a model is told the positions of tokens, by collator and dataset.
        losses (`dict`): What was found out about losses.
        loss_identities (`list[str]`): What stands for the losses that there were.
        said (`str`): What the user was last told about the moment of training.
        prepared (`bool`): Whether the folder for all this was looked at.
        begun (`set[Path]`): Folders of what is kept for good that were opened.
    """

    indexes: dict[str, InfluenceIndex] = field(default_factory=dict)
    states: dict[tuple[Hashable, ...], FrozenStates | None] = field(default_factory=dict)
    fitted: dict[tuple[Hashable, ...], Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    checked: dict[tuple[Hashable, ...], Any] = field(default_factory=dict)
    positions: dict[tuple[Hashable, ...], tuple[Any, bool]] = field(default_factory=dict)
    losses: dict[Hashable, LossFacts] = field(default_factory=dict)
    loss_identities: list[str] = field(default_factory=list)
    said: str = ""
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
