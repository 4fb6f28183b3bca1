"""How much signal a checkpoint holds: whether its training examples still pull at the parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hf_fastif.checkpoints import Checkpoint
from hf_fastif.objective import Batch
from hf_fastif.passes import Passes
from hf_fastif.solving import SolverSetup


@dataclass(frozen=True)
class Signal:
    """What a sample of the training set says at one checkpoint.

    Attributes:
        checkpoint ([`Checkpoint`]): Where.
        loss (`float`): Mean loss.
        residual (`float`): Mean of ||dL/df||, the distance of outputs from labels. Every gradient is a product of it
            with a Jacobian: where it has vanished, the few examples that are not fitted yet decide all influence.
        trace (`float`, *optional*): Sum of the eigenvalues of the Gauss-Newton matrix; not known of the Hessian.
    """

    checkpoint: Checkpoint
    loss: float
    residual: float
    trace: float | None


def measure_signal(setup: SolverSetup, checkpoint: Checkpoint, passes: Passes) -> Signal:
    """The signal of the checkpoint that is in the model, for a forward pass and the spectrum of a sample."""
    objective = setup.objective

    def compute(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            logits = objective.logits(objective.theta, batch)
        with torch.enable_grad():
            losses = objective.losses_of_logits(logits.requires_grad_(), batch["labels"])
            (residual,) = torch.autograd.grad(losses.sum(), logits)
        return torch.stack([losses.detach(), residual.norm(dim=1)], dim=1)

    rows = np.concatenate(setup.sample.batches)
    loss, residual = passes.over(setup.examples, rows, 2, compute, "Signal").mean(axis=0)
    known = setup.args.curvature == "gauss_newton"
    trace = float(setup.spectrum.eigenvalues.sum()) if known else None
    return Signal(checkpoint, float(loss), float(residual), trace)
