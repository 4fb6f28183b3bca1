"""The chosen solver, and what all solvers share: curvature, damping, Kronecker factors."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers.utils import logging

from hf_fastif.artifacts import atomic_write, differences
from hf_fastif.curvature import (
    CurvatureSample,
    GaussNewton,
    Hessian,
    KroneckerFactors,
    Spectrum,
    fit_kronecker_factors,
    share_of,
)
from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import from_main
from hf_fastif.model import Objective, trained_part
from hf_fastif.settings import SolverSettings
from hf_fastif.solvers.base import Precondition, Solver
from hf_fastif.solvers.registry import AUTO, RegisteredSolver, find_solver
from hf_fastif.solvers.system import DampedSystem, rows_fit


logger = logging.get_logger(__name__)
LAYER_DAMPING = 0.1  # of a layer's mean eigenvalue
LEAST_DAMPING = 1e-3  # of what the mean over all parameters asks for: a layer may have no curvature at all
FEW_THRESHOLD = 0.5  # of the parameters in Kronecker blocks: less is worth a warning


class SolverSetup:
    """Curvature, damping and solver for one model and one training set.

    Eigenvalues, Kronecker factors and the like are fitted when they are first needed and stay in `fitted` for as long
    as weights, training set and settings are the same. Kronecker factors are also written to a file and read from it.

    Args:
        args ([`InfluenceConfig`]): The settings.
        objective (`Objective`): The loss.
        examples (`ExampleBatches`): The training set.
        loss (`str`): The identity of the loss.
        accelerator (`Accelerator`): The processes.
        fitted (`dict`): Fits of earlier setups, to which this one adds.
        factors_file (`Path`): Where Kronecker factors are read from and written to.
    """

    def __init__(
        self,
        args: SolverSettings,
        objective: Objective,
        examples: ExampleBatches,
        loss: str,
        accelerator: Accelerator,
        fitted: dict[tuple[Hashable, ...], Any],
        factors_file: Path,
    ):
        self.args = args
        self.objective = objective
        self.examples = examples
        self.loss = loss
        self.accelerator = accelerator
        self.fitted = fitted
        self.factors_file = factors_file
        self.curvature = GaussNewton(objective) if args.curvature == "gauss_newton" else Hessian(objective)
        self.sample = self.draw_sample(args.curvature_samples, args.seed)

    @cached_property
    def name(self) -> str:
        """The name of the solver, "auto" resolved."""
        return self._automatic() if self.args.solver == AUTO else self.args.solver

    def _automatic(self) -> str:
        """Return "sdca" where the Jacobian rows of several examples fit into memory, else "lissa"."""
        return "sdca" if rows_fit(self.curvature, self.examples) else "lissa"

    def solver(self) -> Solver:
        """Build the solver.

        Raises:
            InfluenceError: If it does not work for this model or training set, naming one that does.
        """
        return self._registered.build(self, self._registered.read_settings(self.args))

    def describe(self) -> str:
        """Put the solver and its settings into a line."""
        return self._registered.describe(self, self._registered.read_settings(self.args))

    @property
    def _registered(self) -> RegisteredSolver:
        return find_solver(self.name)

    @cached_property
    def system(self) -> DampedSystem:
        """The system that iterative solvers solve."""
        return self.system_damped_by(self.damping)

    def system_damped_by(self, damping: float) -> DampedSystem:
        """Return that system with another lambda."""
        show, seed = not self.args.disable_tqdm, self.args.seed
        return DampedSystem(self.curvature, self.examples, self.sample, damping, self.accelerator, seed, show)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Eigenvalues on a sample of the training set."""
        return self.fit_once(("spectrum", self.args.curvature_samples), self.sample.spectrum)

    @cached_property
    def damping(self) -> float:
        """lambda."""
        return self.spectrum.damping(self.args.damping) + self._decay

    @cached_property
    def ekfac_damping(self) -> dict[str, float]:
        """lambda of each parameter where EK-FAC stands for C; "auto" is a tenth of its layer's mean eigenvalue.

        In EK-FAC's basis the curvature lies along far more directions than examples have, and a lambda of 1 % of the
        largest eigenvalue of C would swamp nearly all of them.
        """
        if self.args.damping != "auto":
            return dict.fromkeys(self.objective.theta, self.damping)
        means = self.factors().mean_eigenvalues()
        sizes = dict(zip(self.objective.theta, self.objective.space.sizes, strict=True))
        least = LEAST_DAMPING * sum(sizes[name] * mean for name, mean in means.items()) / self.objective.space.size
        if not least:
            self.spectrum.damping("auto")  # says that there is no curvature
        return {name: LAYER_DAMPING * max(means[name], least) + self._decay for name in sizes}

    @property
    def damps_by_layer(self) -> bool:
        """Whether the solver damps each layer with a lambda of its own."""
        return self._registered.damps_by_layer and self.args.damping == "auto"

    @property
    def _decay(self) -> float:
        return self.args.weight_decay if self.args.weight_decay_in_damping else 0.0

    def preconditioner(self) -> Precondition | None:
        """Return the approximate inverse of C + lambda I that `args.preconditioner` names, if it names one."""
        if self.args.preconditioner is None:
            return None
        factors, damping = self.factors(), self.damping
        return lambda vectors: factors.solve(self.objective.space, vectors, damping)

    @property
    def preconditioned_by(self) -> str:
        """The preconditioner, as the end of a description."""
        return ", preconditioned by EK-FAC" if self.args.preconditioner else ""

    def draw_sample(self, count: int, seed: int) -> CurvatureSample:
        """Return a sample of the training set of `count` examples, or all of them if there are fewer."""
        size = self.args.influence_batch_size
        return CurvatureSample(self.curvature, self.examples, count, size, seed, self.accelerator)

    def at_most(self, count: int) -> int:
        """Return a number of training examples, or how many there are if that is less."""
        return min(count, len(self.examples))

    def fit_once(self, key: tuple[Hashable, ...], fit: Callable[[], Any]) -> Any:
        """Return what `fit` returns, computed once for the same key, weights, training set, loss, curvature, seed."""
        key = (*key, self.objective.fingerprint, self.examples.digest, self.loss, self.args.curvature, self.args.seed)
        if key not in self.fitted:
            self.fitted[key] = fit()
        return self.fitted[key]

    def factors(self) -> KroneckerFactors:
        """Return EK-FAC of the training loss, fitted or read."""
        return self.fit_once(("ekfac", self.args.ekfac_samples), self._load_or_fit_factors)

    @cached_property
    def factors_manifest(self) -> dict[str, str]:
        """What must be the same for Kronecker factors to be used."""
        args, seed = self.args, self.args.seed
        return {
            "trained": trained_part(self.objective.model),
            "model": self.objective.fingerprint,
            "dataset": self.examples.digest,
            "loss": self.loss,
            "settings": f"blocks=linear,norms samples={args.ekfac_samples} seed={seed} bf16={args.influence_bf16} "
            f"batch={args.influence_batch_size}",
        }

    def adopt_factors(self, path: Path, manifest: Mapping[str, Any]) -> KroneckerFactors:
        """Take over factors that were fitted elsewhere.

        Args:
            path (`Path`): Their file.
            manifest (`Mapping`): Its manifest.

        Raises:
            InfluenceError: If they were fitted to another model or training set, or otherwise, naming both.
        """
        for what in differences(manifest, self.factors_manifest):
            raise InfluenceError(
                f"The EK-FAC factors were fitted with the {what} {manifest.get(what)}, and this is "
                f"{self.factors_manifest[what]}; do not load them, and EK-FAC is fitted here when it is needed."
            )
        if self.accelerator.is_main_process:
            self.factors_file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.factors_file, lambda file: shutil.copyfile(path, file))
        self.accelerator.wait_for_everyone()
        for key in [key for key in self.fitted if key[0] == "ekfac"]:
            del self.fitted[key]
        return self.factors()

    def _load_or_fit_factors(self) -> KroneckerFactors:
        args, path, manifest = self.args, self.factors_file, self.factors_manifest
        if from_main(self._factors_fit, self.accelerator):
            return KroneckerFactors.load(path, manifest, self.accelerator.device)
        sample = self.draw_sample(args.ekfac_samples, args.seed)
        show = not args.disable_tqdm
        factors = fit_kronecker_factors(
            GaussNewton(self.objective), self.examples, sample.batches, args.seed, self.accelerator, show
        )
        share = share_of([block.layer for block in factors.blocks], self.objective)
        (logger.info if share > FEW_THRESHOLD else logger.warning)(
            f"EK-FAC holds {share:.1%} of the trained parameters in blocks of linear layers and norms, and of the "
            "others a diagonal."
        )
        if self.accelerator.is_main_process:
            factors.save(path, manifest)
        return factors

    def _factors_fit(self) -> bool:
        """Tell whether there is a file of factors, and it is whole and fits."""
        if not self.factors_file.exists():
            return False
        try:
            factors = KroneckerFactors.load(self.factors_file, self.factors_manifest, torch.device("cpu"))
        except ValueError as error:
            logger.warning(f"{error} EK-FAC is fitted anew.")
            return False
        if factors is None:
            logger.warning(
                f"{self.factors_file} was fitted to another model, training set or setting; EK-FAC is fitted anew."
            )
        return factors is not None
