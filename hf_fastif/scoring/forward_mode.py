"""Influence as a directional derivative: one forward pass with tangents scores a whole batch of candidates."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch.func import jvp, vmap

from hf_fastif.batches import ExampleBatches
from hf_fastif.objective import Batch, Objective


def batch_scores(objective: Objective, batch: Batch, s_test: torch.Tensor) -> torch.Tensor:
    """I(z, z') = - s_test(z') . grad L(z) (equation 1 of the paper) for Q queries and the B examples z of a batch.

    s_test . grad L(z) is the derivative of L(z) along s_test. Forward mode gives it for all examples of a batch at
    about twice the cost of a forward pass, and no gradient is ever formed; the queries share the primal pass.

    Args:
        objective (`Objective`): The per-example loss.
        batch (`dict`): B examples.
        s_test (`torch.Tensor` of shape `(Q, P)`): One vector for each query.

    Returns:
        `torch.Tensor` of shape `(Q, B)`: Positive is harmful, negative helpful.
    """

    def derivative_along(tangent):
        return jvp(lambda theta: objective.losses(theta, batch), (objective.theta,), (tangent,))[1]

    with torch.no_grad():
        return -vmap(derivative_along)(objective.space.split(s_test))


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

    Batches are dealt to the processes; each holds one at a time.

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
    own = batches[accelerator.process_index :: accelerator.num_processes]
    for batch_rows in tqdm(own, desc="Scoring", disable=not show_progress, leave=False):
        columns = torch.from_numpy(place[batch_rows]).to(s_test.device)
        scores[:, columns] = batch_scores(objective, examples.take(batch_rows), s_test).float()
    scores = accelerator.reduce(scores, "sum").cpu().numpy()
    if not np.isfinite(scores).all():
        row = int(rows[np.flatnonzero(~np.isfinite(scores).all(axis=0))[0]])
        raise ValueError(f"candidates: row {row} has a NaN or infinite influence; look at its text, label and loss.")
    return scores
