"""Define the damped linear system that iterative solvers solve."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from hf_fastif.curvature import Curvature, CurvatureSample, GaussNewton
from hf_fastif.data import ExampleBatches
from hf_fastif.execution import SingleProcess


@dataclass(frozen=True)
class DampedSystem:
    """The system (C + lambda I) x = v, and the data needed to solve it.

    Attributes:
        curvature (`Curvature`): Products with the curvature of a batch.
        examples (`ExampleBatches`): The training set, whose mean curvature is C.
        sample (`CurvatureSample`): A fixed sample of the training set, for the residual.
        damping (`float`): lambda.
        accelerator (`Accelerator`): The processes.
        seed (`int`): The seed of all draws of examples.
        show_progress (`bool`): Whether the main process shows a progress bar.
    """

    curvature: Curvature
    examples: ExampleBatches
    sample: CurvatureSample
    damping: float
    accelerator: Accelerator | SingleProcess
    seed: int = 0
    show_progress: bool = True

    def residual(self, vectors: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ||v - (C + lambda I) x|| / ||v|| for Q right-hand sides v (Q, P), C taken on the sample."""
        return self.sample.residual(vectors, x, self.damping)

    def for_one_process(self) -> DampedSystem:
        """Return the same system for one process that works independently of the others."""
        alone, sample = SingleProcess(self.accelerator.device), copy.copy(self.sample)
        sample.accelerator = alone
        return replace(self, accelerator=alone, sample=sample)


def rows_fit(curvature: Curvature, examples: ExampleBatches) -> bool:
    """Return whether Jacobian rows of several examples fit into memory; only the Gauss-Newton matrix has such rows."""
    return isinstance(curvature, GaussNewton) and curvature.holds_rows(examples.take([0]))
