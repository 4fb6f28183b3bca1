"""The training signal at a checkpoint: whether its training examples still have a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hf_fastif.checkpoints import Checkpoint
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import DatasetSweep
from hf_fastif.model import Batch
from hf_fastif.solvers import SolverSetup


@dataclass(frozen=True)
class CheckpointSignal:
    """Loss, residual and curvature of a sample of the training set at one checkpoint.

    Attributes:
        checkpoint ([`Checkpoint`]): The checkpoint.
        is_automatic (`bool`): Whether checkpoints="auto" sums over it.
        loss (`float`): Mean loss.
        residual (`float`): Mean of ||dL/df||, the distance of outputs from labels. Every gradient is its product with
            a Jacobian: once it has vanished, the few examples that are not fitted yet determine all influence. For
            examples with several labels it is averaged over these.
        trace (`float`, *optional*): Sum of the eigenvalues of the Gauss-Newton matrix, if all are known.
    """

    checkpoint: Checkpoint
    is_automatic: bool
    loss: float
    residual: float
    trace: float | None


def measure_checkpoint_signal(
    setup: SolverSetup, checkpoint: Checkpoint, is_automatic: bool, sweep: DatasetSweep
) -> CheckpointSignal:
    """Measure the signal of the checkpoint that the model holds, on a sample of the training set.

    Args:
        setup (`SolverSetup`): The model with the checkpoint's weights, and the training set.
        checkpoint ([`Checkpoint`]): The checkpoint.
        is_automatic (`bool`): Whether checkpoints="auto" sums over it.
        sweep (`DatasetSweep`): How to divide the pass over the sample.

    Raises:
        InfluenceError: If `compute_loss` is overridden, so that the outputs are unknown.
    """
    objective = setup.objective
    if objective.custom_compute_loss is not None:
        raise InfluenceError(
            "compute_loss: it is overridden, so diagnose() cannot compute the distance of outputs from labels; give "
            "the loss as compute_loss_func(outputs, labels, num_items_in_batch)."
        )

    def compute(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            logits = objective.logits(objective.theta, batch)
        labels = objective.labels(batch)
        with torch.enable_grad():
            losses = objective.losses_of_logits(logits.requires_grad_(), labels)
            (residual,) = torch.autograd.grad(losses.sum(), logits)
        residual = residual.norm(dim=-1)
        if objective.head.has_token_outputs:
            residual = residual.sum(dim=1) / objective.head.weights(labels, residual.dtype).sum(dim=1).clamp_min(1e-9)
        return torch.stack([losses.detach(), residual], dim=1)

    rows = np.concatenate(setup.sample.batches)
    loss, residual = sweep.over(setup.examples, rows, 2, compute, "Signal").mean(axis=0)
    return CheckpointSignal(checkpoint, is_automatic, float(loss), float(residual), _trace(setup))


def _trace(setup: SolverSetup) -> float | None:
    """Return the trace of the curvature on the sample; None if only its largest eigenvalue can be computed."""
    if setup.iterative != "sdca":
        return None
    spectrum = setup.fit_once(("spectrum", setup.args.curvature_samples), setup.sample.spectrum)
    return float(spectrum.eigenvalues.sum()) if spectrum.whole else None
