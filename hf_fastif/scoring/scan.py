"""The influence of many candidates on some queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hf_fastif.curvature import Layer, captured_layers, covered_names
from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import DatasetSweep, PartialResults
from hf_fastif.model import Batch, Objective
from hf_fastif.scoring.forward_mode import forward_mode_scores
from hf_fastif.scoring.gradients import gradient_scores
from hf_fastif.settings import ScoringName


@dataclass(frozen=True)
class Scoring:
    """A way to score a batch of candidates.

    Attributes:
        layers (`list[Layer]`, *optional*): The layers whose gradients of single examples are multiplied with s_test;
            None for forward mode.
        why (`str`): What it is and why it was chosen.
    """

    layers: list[Layer] | None
    why: str

    def batch_scores(self, objective: Objective, batch: Batch, s_test: torch.Tensor) -> torch.Tensor:
        """The influence (Q, B) of the B examples of a batch on Q queries, given s_test (Q, P)."""
        if self.layers is None:
            return forward_mode_scores(objective, batch, s_test)
        return gradient_scores(objective, batch, s_test, self.layers)


def choose_scoring(name: ScoringName, objective: Objective, examples: ExampleBatches, num_queries: int) -> Scoring:
    """The cheaper of two exact ways.

    Forward mode costs a forward pass, and a tangent of it for each query. Gradients cost a forward and a backward
    pass, and a matrix product for each query, but they need to know in which layer each trained parameter is used.

    Raises:
        ValueError: If `"gradients"` is asked for and some trained parameters are in no layer that can be captured.
    """
    if name == "forward_mode" or (name == "auto" and num_queries == 1):
        return Scoring(None, f"forward mode, {num_queries} tangents on one forward pass")
    layers = covering_layers(objective, examples, tied=True)
    if layers is not None:
        return Scoring(layers, f"gradients of single examples, layer by layer, shared by {num_queries} queries")
    if name == "gradients":
        raise InfluenceError(
            "scoring='gradients': some trained parameters are in no layer that tells the gradients of single "
            "examples, or part of every loss (loss_weight_decay); give scoring='forward_mode' or 'auto'."
        )
    return Scoring(None, f"forward mode, {num_queries} tangents: some parameters are in no layer that can be captured")


def covering_layers(objective: Objective, examples: ExampleBatches, tied: bool = False) -> list[Layer] | None:
    """Layers that hold all trained parameters between them, or None if some are elsewhere or in every loss.

    Parameters that are `tied` count as held for products with vectors, and not for squares.
    """
    layers = captured_layers(objective, examples.take(range(min(2, len(examples)))), embeddings=True, tied=tied)
    return layers if len(covered_names(layers)) == len(objective.theta) and not objective.weight_decay else None


def influence_scores(
    objective: Objective,
    examples: ExampleBatches,
    s_test: torch.Tensor,
    rows: np.ndarray,
    sweep: DatasetSweep,
    scoring: ScoringName = "auto",
    partials: PartialResults | None = None,
    name: str | None = None,
) -> np.ndarray:
    """The influence of chosen rows of a dataset on Q queries; memory is bounded by a batch.

    Args:
        objective (`Objective`): The per-example loss.
        examples (`ExampleBatches`): The candidates.
        s_test (`torch.Tensor` of shape `(Q, P)`): One vector for each query.
        rows (`np.ndarray` of shape `(k,)`): Which candidates to score.
        passes (`DatasetSweep`): How the work is cut up.
        scoring (`str`, *optional*, defaults to `"auto"`): See `choose_scoring`.
        pieces (`PartialResults`, *optional*): Keeps what is finished.
        name (`str`, *optional*): Of the pieces.

    Returns:
        `np.ndarray` of shape `(Q, k)`, float32, in the order of `rows`.

    Raises:
        ValueError: If the score of some candidate is NaN, naming its row.
    """
    way = choose_scoring(scoring, objective, examples, len(s_test))

    def compute(batch: Batch) -> torch.Tensor:
        return way.batch_scores(objective, batch, s_test).T

    scores = sweep.over(examples, rows, len(s_test), compute, "Scoring", partials, name).T
    if not np.isfinite(scores).all():
        row = int(rows[np.flatnonzero(~np.isfinite(scores).all(axis=0))[0]])
        raise InfluenceError(
            f"candidates: row {row} has a NaN or infinite influence; look at its text, label and loss."
        )
    return scores
