"""Let the output layer of a language model compute only the outputs that losses depend on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hf_fastif.model.heads import Batch, Head, TokenHead
from hf_fastif.model.parameters import without_adapters


def vocabulary_layer(model: nn.Module, head: Head) -> nn.Module | None:
    """Return the linear layer, perhaps adapted by PEFT, whose outputs `head` selects from; None if there is none."""
    if not isinstance(head, TokenHead) or head.whole:
        return None
    layer = without_adapters(model).get_output_embeddings()
    adapted = getattr(layer, "base_layer", getattr(layer, "original_module", layer))
    return layer if isinstance(adapted, nn.Linear) else None


@contextmanager
def selecting_places(layer: nn.Module, head: TokenHead, batch: Batch) -> Iterator[list[torch.Size | None]]:
    """Give a layer only the labelled places of its input (B, T', H), so that a vocabulary is multiplied with few rows.

    Yields:
        `list`: For every call of the layer, the shape (B, L) of the places that were selected, or None if its input
            does not hold the places of the batch, so that it stayed whole.
    """
    size, length = batch["labels"].shape
    calls: list[torch.Size | None] = []

    def select(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
        states = args[0]
        fits = states.ndim == 3 and len(states) == size and states.shape[1] >= length
        selected = head.at_labels(states, batch) if fits else None
        calls.append(None if selected is None else selected.shape[:2])
        return selected

    handle = layer.register_forward_pre_hook(select)
    try:
        yield calls
    finally:
        handle.remove()
