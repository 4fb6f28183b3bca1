"""Compute the influence of many candidates on a few queries."""

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
    """A method to score a batch of candidates.

    Attributes:
        layers (`list[Layer]`, *optional*): The layers whose per-example gradients are multiplied by s_test; None for
            forward mode.
        why (`str`): A description of the method and why it was chosen, for the settings of a result.
    """

    layers: list[Layer] | None
    why: str

    def batch_scores(self, objective: Objective, batch: Batch, s_test: torch.Tensor) -> torch.Tensor:
        """Compute the influence (Q, B) of the B candidates of a batch on Q queries, whose s_test is (Q, P)."""
        if self.layers is None:
            return forward_mode_scores(objective, batch, s_test)
        return gradient_scores(objective, batch, s_test, self.layers)


def choose_scoring(name: ScoringName, objective: Objective, examples: ExampleBatches, num_queries: int) -> Scoring:
    """Choose the cheaper of two exact methods, unless `name` chooses one.

    Forward mode costs a forward pass, plus one tangent per query. The gradient method costs a forward and a backward
    pass, plus a matrix product per query, but all trained parameters must be in layers that can be captured.

    Args:
        name (`str`): `"auto"`, `"forward_mode"` or `"gradients"`.
        objective (`Objective`): The per-example loss.
        examples (`ExampleBatches`): The candidates; the first two reveal which layers can be captured.
        num_queries (`int`): The number of queries that are scored together.

    Raises:
        InfluenceError: If `name` is `"gradients"` and some trained parameters are in no layer that can be captured.
    """
    if name == "forward_mode" or (name == "auto" and num_queries == 1):
        return Scoring(None, f"forward mode, {num_queries} tangents on one forward pass")
    layers = covering_layers(objective, examples, tied=True)
    if layers is not None:
        return Scoring(layers, f"gradients of single examples, layer by layer, shared by {num_queries} queries")
    if name == "gradients":
        raise InfluenceError(
            "scoring='gradients': per-example gradients of some trained parameters cannot be captured, or every loss "
            "depends on them (loss_weight_decay); give scoring='forward_mode' or 'auto'."
        )
    return Scoring(None, f"forward mode, {num_queries} tangents: some parameters are in no layer that can be captured")


def covering_layers(objective: Objective, examples: ExampleBatches, tied: bool = False) -> list[Layer] | None:
    """Return layers that together hold all trained parameters, or None if some are elsewhere or in every loss.

    Set `tied` to count tied parameters as held: their layers suffice for products with vectors, but not for squares.
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
    """Compute the influence of the given rows of a dataset on Q queries, with one batch in memory at a time.

    Args:
        objective (`Objective`): The per-example loss.
        examples (`ExampleBatches`): The candidates.
        s_test (`torch.Tensor` of shape `(Q, P)`): One vector per query.
        rows (`np.ndarray` of shape `(k,)`): The positions of the candidates to score.
        sweep (`DatasetSweep`): Divides the pass over the candidates into batches and processes.
        scoring (`str`, *optional*, defaults to `"auto"`): See `choose_scoring`.
        partials (`PartialResults`, *optional*): Stores finished parts, so that an interrupted scan can resume.
        name (`str`, *optional*): The name of this scan among the partial results.

    Returns:
        `np.ndarray` of shape `(Q, k)`, float32, in the order of `rows`.

    Raises:
        InfluenceError: If a score is NaN or infinite; the message names the row.
    """
    method = choose_scoring(scoring, objective, examples, len(s_test))

    def compute(batch: Batch) -> torch.Tensor:
        return method.batch_scores(objective, batch, s_test).T

    scores = sweep.over(examples, rows, len(s_test), compute, "Scoring", partials, name).T
    if not np.isfinite(scores).all():
        row = int(rows[np.flatnonzero(~np.isfinite(scores).all(axis=0))[0]])
        raise InfluenceError(
            f"candidates: row {row} has a NaN or infinite influence; look at its text, label and loss."
        )
    return scores
