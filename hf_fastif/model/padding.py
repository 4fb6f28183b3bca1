"""Ensure on a few rows that the outputs of an example do not depend on the padding of its batch."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.model.heads import IGNORED, NEVER, Batch, SpanHead
from hf_fastif.model.objective import Objective
from hf_fastif.model.parameters import without_adapters


COMPARED = 4  # rows, from the shortest to the longest
MAX_SEARCHED = 16  # rows from all over the dataset to search if the first ones have the same length
TOLERANCE = {False: 1e-3, True: 0.1}  # relative, in full and in half precision


@dataclass(frozen=True)
class Difference:
    """The largest difference between a row's outputs alone and in a batch, relative to the largest output."""

    row: int
    size: float


Settled = dict[tuple[Hashable, ...], tuple[Any, bool]]


def settle_padding(name: str, objective: Objective, examples: ExampleBatches, settled: Settled) -> None:
    """Make outputs independent of padding by counting position numbers from the attention mask, if that is enough.

    Rows of several lengths are compared alone and in one batch, once per model, dataset and collator.

    Args:
        name (`str`): Name of the dataset, for the message.
        objective (`Objective`): The loss; its head is told whether to count positions.
        examples (`ExampleBatches`): The dataset.
        settled (`dict`): The results of earlier calls: the collator, and whether positions are counted.

    Raises:
        InfluenceError: If padding changes the outputs either way.
    """
    collate = examples.collate
    key = (id(objective.model), id(collate), examples.digest)
    if key in settled and settled[key][0] is collate:
        objective.head = replace(objective.head, positions=settled[key][1])
        return
    rows = _rows_of_all_lengths(examples)
    difference = _difference(objective, examples, rows) if len(rows) > 1 else None
    if difference is not None and not _other_positions_help(objective, examples, rows):
        raise InfluenceError(
            f"{name}: the outputs of row {difference.row} alone and in a batch of the rows {rows}, the last of "
            f"which is the longest, differ by {difference.size:.2g} of their size. The outputs of {_named(objective)} "
            "depend on padding, but influence functions need outputs that depend on the example only: pad on the "
            "right (processing_class.padding_side='right') with an attention_mask, or pad all rows to one length."
        )
    settled[key] = (collate, objective.head.positions)


def _named(objective: Objective) -> str:
    return type(without_adapters(objective.model)).__name__


def _rows_of_all_lengths(examples: ExampleBatches) -> list[int]:
    """Return some rows, the shortest first; a single row if all have the same length."""
    by_size: dict[int, int] = {}
    for positions in (np.arange(min(COMPARED, len(examples))), np.linspace(0, len(examples) - 1, MAX_SEARCHED)):
        by_size |= {_size(examples.take([row])): row for row in np.unique(positions.astype(int)).tolist()}
        if len(by_size) > 1:
            break
    ordered = [by_size[size] for size in sorted(by_size)]
    places = np.unique(np.linspace(0, len(ordered) - 1, COMPARED).astype(int))
    return [ordered[place] for place in places]


def _size(one: Batch) -> int:
    return sum(values.numel() for values in one.values())


def _other_positions_help(objective: Objective, examples: ExampleBatches, rows: list[int]) -> bool:
    """Switch whether positions are counted from the mask, if that makes outputs agree."""
    if not objective.takes_positions:
        return False
    before = objective.head
    objective.head = replace(before, positions=not before.positions)
    if _difference(objective, examples, rows) is None:
        return True
    objective.head = before
    return False


@torch.no_grad()
def _difference(objective: Objective, examples: ExampleBatches, rows: list[int]) -> Difference | None:
    """Return the largest difference that padding makes; None if it is only rounding."""
    tolerance = TOLERANCE[objective.rounds]
    together = _outputs(objective, examples.take(rows))
    alone = [values for row in rows for values in _outputs(objective, examples.take([row]))]
    worst = Difference(rows[0], 0.0)
    for kind in range(2):  # outputs, losses
        scale = max(_largest(values[kind]) for values in alone)
        if scale == 0 or not math.isfinite(scale):  # a later check refuses losses that are not finite
            continue
        for row, padded, expected in zip(rows, together, alone, strict=True):
            difference = Difference(row, _largest(padded[kind] - expected[kind]) / scale)
            worst = max(worst, difference, key=lambda difference: difference.size)
    return worst if worst.size > tolerance else None


def _largest(values: torch.Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _outputs(objective: Objective, batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the outputs of each example outside padding, and its loss."""
    logits, labels = objective.logits(objective.theta, batch).double(), objective.labels(batch)
    losses, head = objective.losses_of_logits(logits, labels), objective.head
    if isinstance(head, SpanHead):
        inside = [outputs[:, outputs[0] > NEVER / 2] for outputs in logits]
    elif head.has_token_outputs:
        inside = [outputs[label != IGNORED] for outputs, label in zip(logits, labels, strict=True)]
    else:
        inside = list(logits)
    return list(zip(inside, losses, strict=True))
