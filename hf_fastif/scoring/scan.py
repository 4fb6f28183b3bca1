"""The influence of many candidates on some queries."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm

from hf_fastif.batches import ExampleBatches
from hf_fastif.curvature.captures import Layer, captured_layers, covered_names
from hf_fastif.objective import Objective
from hf_fastif.scoring.by_rows import batch_scores_by_rows
from hf_fastif.scoring.forward_mode import batch_scores


def influence_scores(
    objective: Objective,
    examples: ExampleBatches,
    s_test: torch.Tensor,
    rows: np.ndarray,
    batch_size: int,
    accelerator: Accelerator,
    show_progress: bool = True,
) -> np.ndarray:
    """The influence of chosen rows of a dataset on Q queries.

    Batches are dealt to the processes; each holds one at a time. A single query is scored in forward mode; several
    from the gradients of single examples, where captures can tell those.

    Args:
        objective (`Objective`): The per-example loss.
        examples (`ExampleBatches`): The candidates.
        s_test (`torch.Tensor` of shape `(Q, P)`): One vector for each query.
        rows (`np.ndarray` of shape `(k,)`): Which candidates to score.
        batch_size (`int`): Candidates in one pass.
        accelerator (`Accelerator`): Collects what the processes found.
        show_progress (`bool`): Whether the main process shows a bar.

    Returns:
        `np.ndarray` of shape `(Q, k)`, float32, in the order of `rows`.

    Raises:
        ValueError: If the score of some candidate is NaN, naming its row.
    """
    place = np.empty(len(examples), dtype=np.int64)  # row of the dataset -> column of the answer
    place[rows] = np.arange(len(rows))
    scores = torch.zeros(len(s_test), len(rows), device=s_test.device)
    batches = examples.grouped_by_length(rows, batch_size)
    layers = _layers(objective, examples, rows) if len(s_test) > 1 else None
    own = batches[accelerator.process_index :: accelerator.num_processes]
    for batch_rows in tqdm(own, desc="Scoring", disable=not show_progress, leave=False):
        columns = torch.from_numpy(place[batch_rows]).to(s_test.device)
        batch = examples.take(batch_rows)
        if layers is None:
            scores[:, columns] = batch_scores(objective, batch, s_test).float()
        else:
            scores[:, columns] = batch_scores_by_rows(objective, batch, s_test, layers).float()
    scores = accelerator.reduce(scores, "sum").cpu().numpy()
    if not np.isfinite(scores).all():
        row = int(rows[np.flatnonzero(~np.isfinite(scores).all(axis=0))[0]])
        raise ValueError(f"candidates: row {row} has a NaN or infinite influence; look at its text, label and loss.")
    return scores


def _layers(objective: Objective, examples: ExampleBatches, rows: np.ndarray) -> list[Layer] | None:
    """The layers that hold all trained parameters, or None where some are elsewhere or in every loss."""
    layers = captured_layers(objective, examples.take(rows[:2]))
    return layers if len(covered_names(layers)) == len(objective.theta) and not objective.weight_decay else None
